/* How much memory the CUDA backend takes for its work, in plain C: the backend allocates by these, and the plan, which
 * needs no device, adds them up. */
#ifndef BEE_CUDA_WORK_SIZES_H
#define BEE_CUDA_WORK_SIZES_H

#include "../include/bee.h"
#include "layout.h"

enum {
    ATTENTION_ROWS = 16,  /* rows whose attention is computed together */
    PRODUCTS_TOGETHER = 3 /* of one operand, in one launch */
};

/* Of each of the two buffers that weights are uploaded through. */
static const size_t STAGING_BYTES = 16 << 20;

/* What an allocation really takes. */
static inline size_t device_bytes(size_t bytes) { return bytes ? (bytes + 255) / 256 * 256 : 256; }

/* Chunks of so many positions, rounded up to a power of two. */
static inline int chunk_bucket(int n_positions) {
    int chunks = 1;
    while (chunks * CACHE_CHUNK < n_positions) chunks *= 2;
    return chunks;
}

/* Bytes of an operand's parts: operand.h. */
typedef struct OperandSizes {
    int n_groups, max_rows;
    size_t codes, scales, halves, factors, values;
} OperandSizes;

static inline OperandSizes operand_sizes(int columns, int max_rows) {
    OperandSizes s;
    s.n_groups = (columns + 63) / 64 * 2;
    s.max_rows = (max_rows + 7) / 8 * 8;
    const size_t groups = (size_t)s.n_groups * (size_t)s.max_rows;
    s.codes = groups * 32;
    s.scales = groups * 8;
    s.halves = groups * 128;
    s.factors = groups * 4;
    s.values = (size_t)s.max_rows * (size_t)columns * 4;
    return s;
}

/* Where the products of gate and up matrices lie until they become one. */
static inline size_t gate_bytes(int rows) {
    return 2 * (size_t)BEE_MAX_PASS_ROWS * (((size_t)rows + 63) / 64 * 64) * sizeof(float);
}

#endif
