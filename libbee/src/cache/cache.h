/* Keys and values of one sequence. */
#ifndef BEE_CACHE_H
#define BEE_CACHE_H

#include <stddef.h>
#include <stdint.h>

enum { CACHE_CHUNK = 128 }; /* positions */

/* float16, in whole chunks of positions. In what order, is the backend's business. */
typedef struct Cache {
    int n_ctx, n_layer, n_head_kv, head_size; /* n_ctx: whole chunks */
    uint16_t *keys, *values;
} Cache;

static inline int cache_chunks(int n_positions) { return (n_positions + CACHE_CHUNK - 1) / CACHE_CHUNK; }

/* Of keys and values together. */
static inline uint64_t cache_position_bytes(int n_layer, int n_head_kv, int head_size) {
    return 2 * sizeof(uint16_t) * (uint64_t)n_layer * (uint64_t)n_head_kv * (uint64_t)head_size;
}

/* Of the keys alone, or the values. */
static inline size_t cache_half_bytes(const Cache *cache) {
    return (size_t)cache->n_ctx * cache_position_bytes(cache->n_layer, cache->n_head_kv, cache->head_size) / 2;
}

#endif
