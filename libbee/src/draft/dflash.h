/* The drafter's side of sessions: the target's features on their way into its cache, and the blocks it drafts.
 *
 * The drafter attends to the features of all positions that the target has run. Projecting them costs a pass that reads
 * the drafter's weights whatever the number of rows, so features wait in the session until the drafter is asked, or
 * until there is no room for more. A session whose features reach the cache's end without a gap can be drafted for. */
#ifndef BEE_DFLASH_DRAFT_H
#define BEE_DFLASH_DRAFT_H

#include "state.h"

/* Whether the drafter can know all that the target's cache holds. */
bool drafter_is_ready(const bee_session *session);

/* Keeps the features of rows [first_row, first_row + n) of the target's last pass: positions from n_cached on, which
 * are about to be committed. For the drafter, where it was ready and `for_drafter`; there must be room. */
void keep_features(bee_session *session, int first_row, int n, bool for_drafter);

/* The same for the drafter alone, and before it is known that they will be committed: they are to wait behind those of
 * n_before positions that are as uncertain. n_waiting does not count them yet. */
void move_features(bee_session *session, int first_row, int n, int n_before);

/* From now on the drafter knows at most the first n positions. */
void forget_features(bee_session *session, int n);

/* Whether n more rows of features may wait. */
bool has_room_for_features(const bee_session *session, int n);

/* Projects what waits. It is gathered in the target's workspace, where the features of its last pass are lost. */
void project_features(bee_engine *engine, bee_session *const *sessions, int n_sessions);

/* `n` drafts after `last_token`, which follows the session's cached tokens. */
typedef struct DraftBlock {
    bee_session *session;
    int32_t last_token;
    const bee_sampling *sampling;
    int n;
    int32_t *drafts; /* out; any token at all where the drafter's logits are not finite: drafts are verified */
} DraftBlock;

/* Drafts all blocks in one pass of at most BEE_MAX_PASS_ROWS rows, n + 1 for each. Their sessions' features must all be
 * projected. */
void draft_blocks(bee_engine *engine, const DraftBlock *blocks, int n_blocks);

/* Another draft for `position`, of those that the mask allows, from row `row` of the last draft_blocks' drafts (those
 * of the first block come first); -1 where the drafter knows none. */
int32_t draft_allowed(bee_engine *engine, const bee_sampling *sampling, int32_t position, int row,
                      const uint32_t *mask);

#endif
