/* How much memory the CUDA backend takes for its work, in plain C: the backend allocates by these, and the plan, which
 * needs no device, adds them up. */
#ifndef BEE_CUDA_WORK_SIZES_H
#define BEE_CUDA_WORK_SIZES_H

#include "bee.h"
#include "layout.h"

enum {
    ATTENTION_ROWS = 16,  /* rows whose attention is computed together: at least, and multiples of it */
    PRODUCTS_TOGETHER = 4 /* of one operand, in one launch */
};

/* Of each of the two buffers that weights are uploaded through. */
static const size_t STAGING_BYTES = 16 << 20;

/* For attention's partial results, unless ATTENTION_ROWS rows of the whole context need more: 128 rows that see 2048
 * positions with 64 heads of 128, or the like. */
static const size_t ATTENTION_BYTES = 72 << 20;

/* What an allocation really takes: small ones share pages of the device's, one of 1 MiB or more has its own. */
static inline size_t device_bytes(size_t bytes) {
    enum { SMALL_UNIT = 256, OWN_PAGES = 1 << 20, PAGE = 2 << 20 };
    const size_t unit = bytes < OWN_PAGES ? SMALL_UNIT : PAGE;
    return bytes ? (bytes + unit - 1) / unit * unit : unit;
}

/* Graphs that are kept, and what each kernel of one takes: estimated, not measured. */
enum { MOST_GRAPHS = 96, GRAPH_KERNEL_BYTES = 2 << 10, LAYER_KERNELS = 16, OTHER_KERNELS = 16 };

static inline size_t graph_bytes(int n_kernels) { return (size_t)n_kernels * GRAPH_KERNEL_BYTES; }

/* Chunks of so many positions, rounded up to a power of two. */
static inline int chunk_bucket(int n_positions) {
    int chunks = 1;
    while (chunks * CACHE_CHUNK < n_positions) chunks *= 2;
    return chunks;
}

/* Of n_chunks, those that a row may see at once. A window may begin anywhere in a chunk, and a row may see to the end
 * of its pass. */
static inline int chunks_at_once(int n_chunks, int window) {
    const int most = cache_chunks(window + BEE_MAX_PASS_ROWS - 2) + 1;
    return window && most < n_chunks ? most : n_chunks;
}

/* Of any layer. */
static inline int attention_chunks(const CacheShape *shape, int n_ctx) {
    return chunks_at_once(chunk_bucket(n_ctx), shape->position_bytes[0] ? 0 : shape->window);
}

/* A row's partial results: maximum, sum and weighted values of each head and chunk. */
static inline size_t attention_row_bytes(int n_head, int query_columns, int n_chunks) {
    return (size_t)n_chunks * ((size_t)query_columns + 2 * (size_t)n_head) * sizeof(float);
}

/* How many rows fit: they share their launches. */
static inline int attention_rows_together(size_t bytes, size_t row_bytes) {
    const size_t rows = bytes / row_bytes / ATTENTION_ROWS * ATTENTION_ROWS;
    if (rows < ATTENTION_ROWS) return ATTENTION_ROWS;
    return rows < BEE_MAX_PASS_ROWS ? (int)rows : BEE_MAX_PASS_ROWS;
}

/* What is reserved: passes that see fewer chunks have room for more rows together. */
static inline size_t attention_bytes(int n_head, int query_columns, int n_chunks) {
    const size_t row_bytes = attention_row_bytes(n_head, query_columns, n_chunks);
    const size_t least = ATTENTION_ROWS * row_bytes, most = BEE_MAX_PASS_ROWS * row_bytes;
    if (most < ATTENTION_BYTES) return most;
    return least > ATTENTION_BYTES ? least : ATTENTION_BYTES;
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
