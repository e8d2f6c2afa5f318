/* Engines and sessions from the inside. */
#ifndef BEE_ENGINE_H
#define BEE_ENGINE_H

#include <pthread.h>

#include "forward.h"

struct bee_engine {
    pthread_mutex_t mutex; /* one pass at a time; also guards `n_sessions` */
    const Ops *ops;
    Backend *backend;
    bee_file *file, *drafter_file;
    Model *target, *drafter; /* drafter may be NULL */
    Workspace work, draft_work;
    int32_t taps[BEE_MAX_TAPS];
    int n_taps;
    int n_sessions;
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
    int32_t max_tokens, draft_length;
    int32_t stop_tokens[BEE_MAX_STOP_TOKENS];
    int32_t n_stop_tokens;
    bee_stats stats;
};

double monotonic_seconds(void);

/* A session's largest draft: what block size, context and the drafter's state allow, and the request asks. */
int session_draft_limit(const bee_session *session);

#endif
