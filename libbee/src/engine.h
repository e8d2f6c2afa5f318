/* Engines and sessions from the inside. */
#ifndef BEE_ENGINE_H
#define BEE_ENGINE_H

#include <pthread.h>

#include "copy_draft.h"
#include "draft_length.h"
#include "forward.h"

struct bee_engine {
    pthread_mutex_t mutex; /* one pass at a time; also guards the state of the engine's sessions */
    const Ops *ops;
    Backend *backend;
    bee_file *file, *drafter_file;
    Model *target, *drafter; /* drafter may be NULL */
    Workspace work, draft_work;
    int32_t taps[BEE_MAX_TAPS];
    int n_taps;
    DraftCosts costs;
    DraftChances usual; /* what drafts of all requests did, which a new one starts from */
    bee_log_function log;
    void *log_user;
};

/* tokens[0 .. n_tokens) are committed; the target's cache holds the first n_cached of them, the drafter's the first
 * n_injected, and the features of the n_waiting behind these are at hand. While a request runs, n_cached < n_tokens: at
 * least the last token still waits for a pass. */
struct bee_session {
    bee_engine *engine;
    int32_t n_ctx;
    Cache *cache, *draft_cache;
    float *features; /* [n_ctx][n_taps * n_embd], NULL unless kept */
    float *waiting;  /* [BEE_MAX_PASS_ROWS][feature_stride], NULL without a drafter */
    int32_t *tokens; /* [n_ctx] */
    int32_t n_tokens, n_cached, n_injected, n_waiting;
    CopyIndex copies; /* of tokens, as far as they were looked up in this request */
    atomic_bool cancelled;

    /* the request */
    bool active;
    bee_sampling sampling;
    int32_t max_tokens;
    bee_speculation speculation;
    int32_t draft_length; /* -1: chosen before each cycle */
    bool uses_drafter;
    DraftChances chances;
    int32_t stop_tokens[BEE_MAX_STOP_TOKENS];
    int32_t n_stop_tokens;
    bee_stats stats;
};

double monotonic_seconds(void);

/* Refuses ids that are not in the vocabulary; `name` is what the message calls a token. */
bee_status check_tokens(const bee_engine *engine, const char *name, const int32_t *tokens, int32_t n, bee_error *error);

/* Drafts for a session's next cycle: what the request asks, as far as context, output and the drafter's state allow,
 * and at most `longest`, in a pass of so many sessions. `match` is what a copy would follow, chosen or not. */
DraftChoice session_choose_drafts(bee_session *session, int longest, int n_sessions, CopyMatch *match);

/* Fills engine->costs: with what is known, or else by running passes and drafts. */
bee_status open_costs(bee_engine *engine, const bee_costs *known, bee_error *error);

#endif
