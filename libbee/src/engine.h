/* Engines and sessions from the inside. */
#ifndef BEE_ENGINE_H
#define BEE_ENGINE_H

#include <pthread.h>

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
    DraftCosts draft_costs;
    bee_log_function log;
    void *log_user;
};

/* tokens[0 .. n_tokens) are committed; the caches hold the first n_cached of them, the drafter's the first
 * n_injected. While a request runs, n_cached < n_tokens: at least the last token still waits for a pass. */
struct bee_session {
    bee_engine *engine;
    int32_t n_ctx;
    Cache *cache, *draft_cache;
    float *features; /* [n_ctx][n_taps * n_embd], NULL unless kept */
    int32_t *tokens; /* [n_ctx] */
    int32_t n_tokens, n_cached, n_injected;
    atomic_bool cancelled;

    /* the request */
    bool active;
    bee_sampling sampling;
    int32_t max_tokens;
    int32_t draft_length; /* -1: chosen before each cycle */
    DraftChances chances;
    int32_t stop_tokens[BEE_MAX_STOP_TOKENS];
    int32_t n_stop_tokens;
    bee_stats stats;
};

double monotonic_seconds(void);

/* Drafts for a session's next cycle: what the request asks, as far as context, output and the drafter's state allow. */
int session_draft_length(const bee_session *session);

/* Fills engine->draft_costs by measuring passes and drafts of every length. */
bee_status measure_draft_costs(bee_engine *engine, bee_error *error);

#endif
