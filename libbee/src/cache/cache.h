/* What is remembered of one sequence: keys and values, and the states of recurrent layers. */
#ifndef BEE_CACHE_H
#define BEE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "bee.h"

enum { CACHE_CHUNK = 128 }; /* positions */

/* BEE_KV_Q8_0: so many dimensions of one head and position share a float16 scale; a head's last block may have 16.
 * Their numbers are scale * code, each code from -127 to 127, the scale the largest magnitude / 127, rounded to
 * float16, and the codes the nearest to what the numbers are over that. Where 127 * scale is no float16, or a number is
 * not finite, the scale is NaN, and whoever sees the position gets NaN. */
enum { CACHE_BLOCK = 32 };

/* Layers that see everything, and layers with a window. A windowed layer remembers its window and some positions more:
 * those of a pass, and as far as a conversation usually goes back. */
enum { CACHE_REGIONS = 2, CACHE_BEYOND_WINDOW = 512 };

/* Rows whose inputs a recurrent layer keeps: as many as a pass may read of one sequence before it is known that they
 * stay. */
enum { CACHE_KEPT_ROWS = 16 };

/* Places of a sequence at which states are saved: within so many bytes, but some in any case. */
enum { MAX_SNAPSHOTS = 8, LEAST_SNAPSHOTS = 2, SNAPSHOT_BYTES = 256 << 20 };

/* What caches of a model hold: sums and maxima over its layers. */
typedef struct CacheShape {
    size_t position_bytes[CACHE_REGIONS]; /* keys of one position: the sum of n_head_kv * cache_head_bytes */
    int window;                           /* the widest; 0: no layer has one */
    int n_head, query_columns;            /* the most of a layer: heads, n_head * head_size */
    int n_states;                         /* layers that have one */
    size_t state_floats, kept_floats;     /* of all states; of the rows kept for them */
} CacheShape;

/* Where a recurrent layer stands: its state is that behind the first `position` tokens, and it keeps the inputs of the
 * n_kept that follow. A pass can go on at any place between: it first applies the inputs before that place to the
 * state, and keeps those of its own last rows. So a rejected row was never written, and nothing is ever undone. */
typedef struct StateEnd {
    int32_t position, n_kept;
} StateEnd;

/* 128 positions of a region, all layers: a backend's own, which shares them among caches. */
typedef struct CacheChunk CacheChunk;

/* Whole chunks of positions, in bee_kv_type's numbers. In what order, is the backend's business. Position p of a region
 * lies where p % n_positions does. */
typedef struct Cache {
    int n_ctx; /* positions that its sequence may have */
    size_t position_bytes[CACHE_REGIONS];
    int n_positions[CACHE_REGIONS];
    /* One of the two: chunks one by one, or all of them in one piece. */
    CacheChunk **chunks[CACHE_REGIONS];
    uint8_t *keys[CACHE_REGIONS], *values[CACHE_REGIONS];
    int n_states;
    float *states, *kept; /* in what order a layer's numbers lie, is the backend's business, too */
    StateEnd *ends;       /* [n_states] */
} Cache;

/* Of a head of one position. */
static inline int cache_blocks(int head_size) { return (head_size + CACHE_BLOCK - 1) / CACHE_BLOCK; }

static inline size_t cache_head_bytes(bee_kv_type type, int head_size) {
    const size_t size = (size_t)head_size;
    return type == BEE_KV_Q8_0 ? size + sizeof(uint16_t) * (size_t)cache_blocks(head_size) : sizeof(uint16_t) * size;
}

static inline int cache_chunks(int n_positions) { return (n_positions + CACHE_CHUNK - 1) / CACHE_CHUNK; }

/* Positions that a region remembers: whole chunks. */
static inline int cache_positions(const CacheShape *shape, int region, int n_ctx) {
    const int all = cache_chunks(n_ctx) * CACHE_CHUNK;
    if (!region || !shape->window || shape->window >= all - CACHE_BEYOND_WINDOW) return all;
    return cache_chunks(shape->window + CACHE_BEYOND_WINDOW) * CACHE_CHUNK;
}

/* Whether a region forgets: what lies a lap back is overwritten. Such chunks are never shared. */
static inline bool cache_wraps(const Cache *cache, int region) {
    return cache->n_positions[region] < cache_chunks(cache->n_ctx) * CACHE_CHUNK;
}

/* Chunks of a region that hold what is remembered of the first n positions, as far back as they go: [first, end), where
 * chunk c lies at place c % (n_positions / CACHE_CHUNK). */
static inline int cache_first_chunk(const Cache *cache, int region, int n) {
    const int first = cache_chunks(n) - cache->n_positions[region] / CACHE_CHUNK;
    return first > 0 ? first : 0;
}

/* A cache's numbers, without its memory. */
static inline Cache cache_layout(const CacheShape *shape, int n_ctx) {
    Cache cache;
    memset(&cache, 0, sizeof cache);
    cache.n_ctx = n_ctx;
    cache.n_states = shape->n_states;
    for (int r = 0; r < CACHE_REGIONS; r++) {
        cache.position_bytes[r] = shape->position_bytes[r];
        cache.n_positions[r] = shape->position_bytes[r] ? cache_positions(shape, r, n_ctx) : 0;
    }
    return cache;
}

/* Of the keys alone, or the values. */
static inline size_t cache_half_bytes(const Cache *cache, int region) {
    return cache->position_bytes[region] * (size_t)cache->n_positions[region];
}

/* Of a whole cache. */
static inline uint64_t cache_bytes(const CacheShape *shape, int n_ctx) {
    const Cache cache = cache_layout(shape, n_ctx);
    return 2 * (uint64_t)(cache_half_bytes(&cache, 0) + cache_half_bytes(&cache, 1));
}

/* How many states of a sequence are saved at most. */
static inline int cache_snapshots(const CacheShape *shape) {
    if (!shape->n_states) return 0;
    const size_t fit = SNAPSHOT_BYTES / sizeof(float) / shape->state_floats;
    return fit < LEAST_SNAPSHOTS ? LEAST_SNAPSHOTS : fit < MAX_SNAPSHOTS ? (int)fit : MAX_SNAPSHOTS;
}

/* What they take, with the states of a session and the rows that it keeps. */
static inline uint64_t cache_state_bytes(const CacheShape *shape) {
    return sizeof(float) *
           ((uint64_t)shape->state_floats * (uint64_t)(1 + cache_snapshots(shape)) + shape->kept_floats);
}

/* The places at which every recurrent layer can go on: from the first to the last, none where that comes before it. A
 * pass that was cancelled leaves some layers ahead of others. */
static inline void cache_state_places(const Cache *cache, int *first, int *last) {
    *first = 0;
    *last = cache->n_ctx;
    for (int i = 0; i < cache->n_states; i++) {
        const StateEnd *end = &cache->ends[i];
        if (end->position > *first) *first = end->position;
        if (end->position + end->n_kept < *last) *last = end->position + end->n_kept;
    }
}

/* All layers stand at the same place. */
static inline void cache_set_ends(Cache *cache, StateEnd end) {
    for (int i = 0; i < cache->n_states; i++) cache->ends[i] = end;
}

/* The states are those behind so many tokens, whatever they were; behind none they need not be cleared. */
static inline void cache_set_states(Cache *cache, int position) {
    StateEnd end;
    end.position = position;
    end.n_kept = 0;
    cache_set_ends(cache, end);
}

/* Of keys and values of one position, while no window is full. */
static inline uint64_t cache_position_bytes(const CacheShape *shape) {
    return 2 * (uint64_t)(shape->position_bytes[0] + shape->position_bytes[1]);
}

/* Whether every position that one at `position` sees is still remembered, where positions before `written` have been
 * written. */
static inline bool cache_reaches_back(const Cache *cache, const CacheShape *shape, int position, int written) {
    return !cache->position_bytes[1] || written <= cache->n_positions[1] ||
           position - shape->window >= written - cache->n_positions[1];
}

#endif
