/* Keys and values of one sequence. */
#ifndef BEE_CACHE_H
#define BEE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { CACHE_CHUNK = 128 }; /* positions */

/* Layers that see everything, and layers with a window. A windowed layer remembers its window and some positions more:
 * those of a pass, and as far as a conversation usually goes back. */
enum { CACHE_REGIONS = 2, CACHE_BEYOND_WINDOW = 512 };

/* What caches of a model hold: sums and maxima over its layers. */
typedef struct CacheShape {
    int columns[CACHE_REGIONS]; /* keys of one position: the sum of n_head_kv * head_size */
    int window;                 /* the widest; 0: no layer has one */
    int n_head, query_columns;  /* the most of a layer: heads, n_head * head_size */
} CacheShape;

/* float16, in whole chunks of positions. In what order, is the backend's business. Position p of a region lies where
 * p % n_positions does. */
typedef struct Cache {
    int n_ctx; /* positions that its sequence may have */
    int columns[CACHE_REGIONS], n_positions[CACHE_REGIONS];
    uint16_t *keys[CACHE_REGIONS], *values[CACHE_REGIONS];
} Cache;

static inline int cache_chunks(int n_positions) { return (n_positions + CACHE_CHUNK - 1) / CACHE_CHUNK; }

/* Positions that a region remembers: whole chunks. */
static inline int cache_positions(const CacheShape *shape, int region, int n_ctx) {
    const int all = cache_chunks(n_ctx) * CACHE_CHUNK;
    if (!region || !shape->window || shape->window >= all - CACHE_BEYOND_WINDOW) return all;
    return cache_chunks(shape->window + CACHE_BEYOND_WINDOW) * CACHE_CHUNK;
}

/* A cache's numbers, without its memory. */
static inline Cache cache_layout(const CacheShape *shape, int n_ctx) {
    Cache cache;
    memset(&cache, 0, sizeof cache);
    cache.n_ctx = n_ctx;
    for (int r = 0; r < CACHE_REGIONS; r++) {
        cache.columns[r] = shape->columns[r];
        cache.n_positions[r] = shape->columns[r] ? cache_positions(shape, r, n_ctx) : 0;
    }
    return cache;
}

/* Of the keys alone, or the values. */
static inline size_t cache_half_bytes(const Cache *cache, int region) {
    return sizeof(uint16_t) * (size_t)cache->columns[region] * (size_t)cache->n_positions[region];
}

/* Of a whole cache. */
static inline uint64_t cache_bytes(const CacheShape *shape, int n_ctx) {
    const Cache cache = cache_layout(shape, n_ctx);
    return 2 * (uint64_t)(cache_half_bytes(&cache, 0) + cache_half_bytes(&cache, 1));
}

/* Of keys and values of one position, while no window is full. */
static inline uint64_t cache_position_bytes(const CacheShape *shape) {
    return 2 * sizeof(uint16_t) * ((uint64_t)shape->columns[0] + (uint64_t)shape->columns[1]);
}

/* Whether every position that one at `position` sees is still remembered, where positions before `written` have been
 * written. */
static inline bool cache_reaches_back(const Cache *cache, const CacheShape *shape, int position, int written) {
    return !cache->columns[1] || written <= cache->n_positions[1] ||
           position - shape->window >= written - cache->n_positions[1];
}

#endif
