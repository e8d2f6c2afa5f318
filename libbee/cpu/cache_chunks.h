/* Keys and values in the CPU's memory: a chunk of positions is a piece of its own, and the one place that knows where
 * they lie. Caches whose sequences begin alike hold the same chunks. */
#ifndef BEE_CACHE_CHUNKS_H
#define BEE_CACHE_CHUNKS_H

#include "ops.h"

/* 128 positions of a region, so that a short context touches few pages:
 *
 *   | keys: layer 0 (head 0, head 1 ...), layer 1 ... | values: likewise |
 *
 * What a head has in a chunk, kernels.h draws.
 *
 * Written only while one cache holds it. */
struct CacheChunk {
    uint8_t *keys, *values;
    size_t bytes; /* of both */
    int n_holders;
};

static inline const CacheChunk *cache_chunk(const Cache *cache, int region, int chunk) {
    return cache->chunks[region][chunk % (cache->n_positions[region] / CACHE_CHUNK)];
}

/* NULL where memory runs out. */
Cache *cache_allocate(Backend *backend, const CacheShape *shape, int n_ctx);

/* As in Ops. */
void cache_free(Backend *backend, Cache *cache);
void cache_take(Backend *backend, Cache *to, const Cache *from, int n);
bool cache_own(Backend *backend, Cache *cache, int n);

#endif
