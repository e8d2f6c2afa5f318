#include "cache_chunks.h"

#include <stdlib.h>
#include <string.h>

#include "worker.h"

/* ---- chunks --------------------------------------------------------------------------------------- */

static CacheChunk *chunk_new(size_t position_bytes) {
    const size_t half = position_bytes * CACHE_CHUNK;
    CacheChunk *chunk = malloc(sizeof *chunk);
    uint8_t *memory = chunk ? pages_new(2 * half) : NULL;
    if (!memory) {
        free(chunk);
        return NULL;
    }
    *chunk = (CacheChunk){memory, memory + half, 2 * half, 1};
    return chunk;
}

static void let_go(CacheChunk *chunk) {
    if (!chunk || --chunk->n_holders) return;
    pages_free(chunk->keys, chunk->bytes);
    free(chunk);
}

static void copy_chunk(const CacheChunk *to, const CacheChunk *from) { memcpy(to->keys, from->keys, from->bytes); }

static int places(const Cache *cache, int region) { return cache->n_positions[region] / CACHE_CHUNK; }

/* ---- caches --------------------------------------------------------------------------------------- */

void cache_free(Backend *backend, Cache *cache) {
    if (!cache) return;
    for (int r = 0; r < CACHE_REGIONS; r++) {
        for (int i = 0; cache->chunks[r] && i < places(cache, r); i++) let_go(cache->chunks[r][i]);
        free(cache->chunks[r]);
    }
    buffer_free(backend, cache->states);
    buffer_free(backend, cache->kept);
    free(cache->ends);
    free(cache);
}

static bool chunks_new(Cache *cache, int region) {
    const int n = places(cache, region);
    if (!n) return true;
    cache->chunks[region] = calloc((size_t)n, sizeof *cache->chunks[region]);
    for (int i = 0; cache->chunks[region] && i < n; i++)
        if (!(cache->chunks[region][i] = chunk_new(cache->position_bytes[region]))) return false;
    return cache->chunks[region];
}

Cache *cache_allocate(Backend *backend, const CacheShape *shape, int n_ctx) {
    Cache *cache = calloc(1, sizeof *cache);
    if (!cache) return NULL;
    *cache = cache_layout(shape, n_ctx);
    bool ok = true;
    for (int r = 0; r < CACHE_REGIONS; r++) ok = ok && chunks_new(cache, r);
    if (shape->n_states) {
        ok = (cache->states = buffer_new(backend, shape->state_floats)) && ok;
        ok = (cache->kept = buffer_new(backend, shape->kept_floats)) && ok;
        ok = (cache->ends = calloc((size_t)shape->n_states, sizeof *cache->ends)) && ok;
    }
    if (ok) return cache;
    cache_free(backend, cache);
    return NULL;
}

/* ---- sharing -------------------------------------------------------------------------------------- */

/* What the region forgets it soon writes again, so that nothing of it is worth sharing. */
static void take_ring(Cache *to, const Cache *from, int region, int n) {
    for (int c = cache_first_chunk(from, region, n); c < cache_chunks(n); c++)
        copy_chunk(cache_chunk(to, region, c), cache_chunk(from, region, c));
}

void cache_take(Backend *backend, Cache *to, const Cache *from, int n) {
    (void)backend;
    for (int r = 0; r < CACHE_REGIONS; r++) {
        const int whole = n / CACHE_CHUNK;
        if (!places(to, r)) continue;
        if (cache_wraps(to, r)) {
            take_ring(to, from, r, n);
            continue;
        }
        for (int c = 0; c < whole; c++) {
            CacheChunk *shared = from->chunks[r][c];
            shared->n_holders++;
            let_go(to->chunks[r][c]);
            to->chunks[r][c] = shared;
        }
        if (n % CACHE_CHUNK) copy_chunk(to->chunks[r][whole], from->chunks[r][whole]);
    }
}

bool cache_own(Backend *backend, Cache *cache, int n) {
    (void)backend;
    for (int r = 0; r < CACHE_REGIONS; r++)
        for (int c = n / CACHE_CHUNK; c < places(cache, r) && !cache_wraps(cache, r); c++) {
            CacheChunk *held = cache->chunks[r][c];
            if (held->n_holders == 1) continue;
            CacheChunk *own = chunk_new(cache->position_bytes[r]);
            if (!own) return false;
            if (c * CACHE_CHUNK < n) copy_chunk(own, held);
            let_go(held);
            cache->chunks[r][c] = own;
        }
    return true;
}
