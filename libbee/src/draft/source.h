/* Where drafts come from: what every kind of draft has to offer an engine. A new one is a file with a DraftSource, its
 * name in the list below and its line in sources.c.
 *
 * What a constraint knows of the tokens to come ("forced" ones) is no source: it stands before the drafts of whichever
 * source can go on behind it, or alone. */
#ifndef BEE_DRAFT_SOURCE_H
#define BEE_DRAFT_SOURCE_H

#include "policy.h"

/* In the order in which they are asked: of two that promise the same, the first one drafts. */
typedef enum SourceId { SOURCE_DFLASH, SOURCE_MTP, SOURCE_COPY, N_DRAFT_SOURCES } SourceId;

/* What a session wants of a source in a cycle. */
typedef struct DraftOrder {
    bee_session *session;
    int32_t last_token; /* behind what the target's cache holds */
    const bee_sampling *sampling;
    int n;           /* drafts behind that token; 0: none */
    int n_rows;      /* of the session in the target's pass that follows: `keep` may be called for as many */
    int32_t *drafts; /* out: [n], any token at all where the source knows none: drafts are verified */
    int row;         /* out: of the first draft, for `instead` */
} DraftOrder;

/* What became of a cycle of a session whose request goes on. */
typedef struct DraftOutcome {
    int drafted; /* tokens of this source that were verified; 0: it was not asked */
    const int32_t *tokens;
    int n_tokens; /* that the cycle yielded: the accepted drafts and one more */
} DraftOutcome;

/* Functions may be NULL where nothing is said to the contrary. Those of sessions are called for sources that the engine
 * has, and under its lock. */
typedef struct DraftSource {
    const char *name;
    bee_speculation mode; /* asks for it alone */
    /* A model drafts, in passes that take time: they are measured, and counted as the drafter's. Asked for alone it
     * drafts as much as it can. The drafts of others cost nothing. */
    bool is_model;
    bool on_device;              /* device_cycle.c can run it without the host */
    const double *first_chances; /* [BEE_MAX_BLOCK]: of DraftChances, before anything was drafted */

    /* Drafts of a cycle, at most BEE_MAX_BLOCK - 1; 0 where the engine lacks what it takes. Not NULL. */
    int (*longest)(const bee_engine *engine);

    /* Its state of a session, in session->drafting[id]. False where memory runs out; it is freed then, too. */
    bool (*session_new)(bee_session *session);
    void (*session_free)(bee_session *session);
    /* The first n positions of the target's cache stay, others and all tokens may change. */
    void (*forget)(bee_session *session, int n);
    /* Before it writes again behind what it knows: there it shares nothing with other sessions from now on. False where
     * memory runs out; then it must not write. NULL: it never shares. */
    bool (*own)(bee_session *session);
    /* The session, whose first n tokens are those of `from`, takes over what is known of them there: at least n
     * positions, or else it may stay as it is. It has been told to forget those that it does not hold. NULL: it needs
     * none of it. */
    void (*take)(bee_session *session, const bee_session *from, int n);
    /* How many positions it knows what it must know of; a prefix is reused as far as all sources know it. NULL: any. */
    int (*known)(const bee_session *session);

    /* Whether it could go on behind the first n positions, where those before `written` have been written. NULL: yes.
     */
    bool (*reaches_back)(const bee_session *session, int n, int written);

    /* What it promises for the next cycle, which shares its pass with others; false where it has nothing to draft
     * behind `n_forced` tokens that are not among the session's yet. Not NULL. */
    bool (*offer)(bee_session *session, int n_sessions, int n_forced, DraftOffer *out);
    /* Drafts for all sessions at once, and makes room for what their passes will tell. False where that took more than
     * it usually does, so that its time means nothing. Not NULL. */
    bool (*propose)(bee_engine *engine, DraftOrder *orders, int n_orders);
    /* In place of a draft for `position` that a mask forbids: the best one that it allows, of what row `row` of the
     * last proposal chose from; -1 where there is none. */
    int32_t (*instead)(bee_engine *engine, const bee_sampling *sampling, int32_t position, int row,
                       const uint32_t *mask);
    /* Rows [first_row, first_row + n) of the target's last pass, at positions from n_cached on, are about to be
     * committed. */
    void (*keep)(bee_session *session, int first_row, int n);
    /* Learns. The session's tokens have the outcome's at their end. */
    void (*observe)(bee_session *session, const DraftOutcome *outcome);
} DraftSource;

#endif
