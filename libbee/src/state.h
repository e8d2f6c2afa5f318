/* The data of an engine and of its sessions. */
#ifndef BEE_STATE_H
#define BEE_STATE_H

#include <pthread.h>

#include "devices.h"
#include "draft/source.h"
#include "forward/forward.h"
#include "model/packed_weights.h"
#include "sampling/logit_edits.h"

struct bee_engine {
    pthread_mutex_t mutex; /* one pass at a time; also guards the state of the engine's sessions */
    const Device *device;
    const Ops *ops;
    Backend *backend;
    bee_device_info device_info;
    char device_note[256];
    bee_file *file, *drafter_file;
    PackedCache packed;
    Model *target, *drafter; /* drafter may be NULL */
    bool predicts;           /* the drafter is a block of the target, of its file or of one of its own */
    Workspace work, draft_work;
    int32_t taps[BEE_MAX_TAPS];
    int n_taps;
    bee_kv_type kv_type;
    PassCosts costs;
    DraftCosts draft_costs[N_DRAFT_SOURCES];
    DraftChances usual[N_DRAFT_SOURCES]; /* what drafts of all requests did, which a new one starts from */
    bee_session *sessions;               /* all that are open */
    bool unshared;                       /* each computes and keeps for itself what several begin with */
    double short_cycle; /* seconds: only what takes less is queued before "auto" knows what comes before it */
    bool unfinished;    /* the device may be at work on what nobody waits for: the next time is not one pass's alone */
    bee_log_function log;
    void *log_user;
};

/* States of the target's recurrent layers behind the first `position` tokens of a session, in ascending order
 * (engine/snapshots.c). */
typedef struct Snapshot {
    int32_t position;
    int slot; /* in `states` */
} Snapshot;

typedef struct Snapshots {
    int n, capacity;
    Snapshot at[MAX_SNAPSHOTS];
    float *states; /* [capacity][floats] */
    size_t floats;
} Snapshots;

/* tokens[0 .. n_tokens) are committed; the target's cache holds the first n_cached of them. While a request runs,
 * n_cached < n_tokens: at least the last token still waits for a pass. */
struct bee_session {
    bee_engine *engine;
    bee_session *next; /* of the engine's */
    bool apart;        /* neither lends nor borrows a beginning: it measures, or keeps features */
    int32_t n_ctx;
    Cache *cache;
    float *features; /* [n_ctx][n_taps * n_embd], NULL unless kept */
    int32_t *tokens; /* [n_ctx] */
    int32_t n_tokens, n_cached;
    int32_t n_written; /* positions from here on were never written since the first one was: what windows forgot */
    Snapshots snapshots;
    void *drafting[N_DRAFT_SOURCES]; /* each source's own state */
    DeviceCycle *cycle;              /* on a device */
    const float *profile; /* of accepted drafts, in place of the drafter's merit: bee_engine_measure_cycles */
    atomic_bool cancelled;

    /* the request */
    bool active;
    bee_sampling sampling;
    int32_t max_tokens;
    bee_speculation speculation;
    int32_t draft_length; /* -1: chosen before each cycle */
    bool uses[N_DRAFT_SOURCES];
    const DraftSource *last_source; /* of the last cycle; NULL: none */
    int32_t n_ahead;                /* cycles that were queued before those before them were known */
    DraftChances chances[N_DRAFT_SOURCES];
    int32_t stop_tokens[BEE_MAX_STOP_TOKENS];
    int32_t n_stop_tokens;
    bool constrained;
    bool free;     /* the constraint said that the next cycle need not ask it, */
    bool watching; /* nor tell of tokens that it does not watch for */
    bool stalled;  /* the last cycle yielded nothing, because its constraint kept none of its tokens */
    bee_constraint constraint;
    uint32_t *masks; /* [BEE_MAX_BLOCK][mask_words], NULL until a request is constrained */
    FullPath full;
    bee_stats stats;
};

/* BEE_OK, or what made the engine's device unusable: nothing that it computed since counts. */
static inline bee_status engine_status(const bee_engine *e, bee_error *error) {
    return e->ops->device ? e->ops->device->status(e->backend, error) : BEE_OK;
}

static inline Cache *cache_for(const bee_engine *e, const Model *model, int n_ctx) {
    const CacheShape shape = shape_cache(&model->shape);
    return e->ops->cache_new(e->backend, &shape, n_ctx);
}

/* Of a constraint's mask. */
static inline size_t mask_words(const bee_engine *e) { return ((size_t)e->target->shape.n_vocab + 31) / 32; }

/* Whether the session's next pass decodes: its prompt has been read but for the last token. */
static inline bool session_decodes(const bee_session *s) { return s->n_tokens - s->n_cached == 1; }

#endif
