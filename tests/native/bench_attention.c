/* What attention takes where memory does not matter, for docs/performance.md: nanoseconds for 128 positions of a head
 * of 128 dimensions, in the second-level cache, on one thread, the least of many times.
 *
 *     bench_attention [instruction set] */
#define _GNU_SOURCE
#include <float.h>

#include "bench.h"
#include "check.h"
#include "ggml_blocks.h"
#include "random.h"

/* STRIDE: from one query to the next, as rows of a pass have them. */
enum { HEAD_SIZE = 128, CHUNKS = 8, MOST = 24, STRIDE = 2048, REPEATS = 200 };

/* Keys or values of some chunks: as float16 numbers below 1/4, and as codes with scales like them. */
static uint8_t *random_chunks(size_t bytes, Random *random) {
    uint8_t *chunks = aligned_alloc(64, CHUNKS * bytes);
    for (size_t i = 0; i < CHUNKS * bytes; i += 2) {
        const uint16_t half = (uint16_t)(0x3000 + random_below(random, 1024));
        memcpy(chunks + i, &half, sizeof half);
    }
    return chunks;
}

static double least(const Kernels *kernels, bee_kv_type type, int n_queries, const uint8_t *keys, const uint8_t *values,
                    size_t bytes, const float *const *queries, float *const *partials) {
    int n_visible[MOST], n_hidden[MOST] = {0};
    for (int q = 0; q < n_queries; q++) n_visible[q] = POSITION_CHUNK;
    double best = DBL_MAX;
    for (int i = 0; i < REPEATS; i++) {
        const double start = nanoseconds();
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const Attention a = {.type = type,
                                 .keys = keys + chunk * bytes,
                                 .values = values + chunk * bytes,
                                 .next = keys + (chunk + 1) % CHUNKS * bytes,
                                 .head_size = HEAD_SIZE,
                                 .n_queries = n_queries,
                                 .queries = queries,
                                 .n_visible = n_visible,
                                 .n_hidden = n_hidden,
                                 .partials = partials};
            kernels->attend(&a);
        }
        const double taken = nanoseconds() - start;
        best = taken < best ? taken : best;
    }
    return best / CHUNKS;
}

int main(int n_arguments, char **arguments) {
    const Kernels *kernels = kernels_to_measure(n_arguments, arguments);
    enum { COUNTS = 6 };
    static const int counts[COUNTS] = {1, 2, 4, 8, 16, MOST};
    static float rows[MOST][STRIDE], out[MOST][PARTIAL_HEAD + HEAD_SIZE];
    const float *queries[MOST];
    float *partials[MOST];
    Random random = {3};
    for (int q = 0; q < MOST; q++) {
        for (int i = 0; i < HEAD_SIZE; i++) rows[q][i] = (float)random_normal(&random) / 16;
        queries[q] = rows[q];
        partials[q] = out[q];
    }
    printf("%s\nqueries", kernels->name);
    for (int i = 0; i < COUNTS; i++) printf(" %7d", counts[i]);
    for (bee_kv_type type = BEE_KV_F16; type <= BEE_KV_Q8_0; type++) {
        const size_t bytes = POSITION_CHUNK * cache_head_bytes(type, HEAD_SIZE);
        uint8_t *keys = random_chunks(bytes, &random), *values = random_chunks(bytes, &random);
        printf("\n%-7s", type == BEE_KV_F16 ? "f16" : "q8_0");
        for (int i = 0; i < COUNTS; i++)
            printf(" %7.0f", least(kernels, type, counts[i], keys, values, bytes, queries, partials));
        free(keys);
        free(values);
    }
    printf("\n");
    return 0;
}
