/* Keys and values of one sequence. */
#ifndef BEE_CACHE_H
#define BEE_CACHE_H

#include <stddef.h>
#include <stdint.h>

enum { CACHE_CHUNK = 128 }; /* positions */

/* What caches of a model hold: sums and maxima over its layers. */
typedef struct CacheShape {
    int columns;               /* keys of one position: the sum of n_head_kv * head_size */
    int n_head, query_columns; /* the most of a layer: heads, n_head * head_size */
} CacheShape;

/* float16, in whole chunks of positions. In what order, is the backend's business. */
typedef struct Cache {
    int n_ctx; /* whole chunks */
    int columns;
    uint16_t *keys, *values;
} Cache;

static inline int cache_chunks(int n_positions) { return (n_positions + CACHE_CHUNK - 1) / CACHE_CHUNK; }

/* Of keys and values together. */
static inline uint64_t cache_position_bytes(const CacheShape *shape) {
    return 2 * sizeof(uint16_t) * (uint64_t)shape->columns;
}

/* Of the keys alone, or the values. */
static inline size_t cache_half_bytes(const Cache *cache) {
    return sizeof(uint16_t) * (size_t)cache->columns * (size_t)cache->n_ctx;
}

#endif
