/* The packed forms of weights and activations, and the table of kernels that one instruction set offers.
 *
 * Weights. Rows are packed in blocks of 16, columns in pairs of 32-column groups, both padded with zeros:
 *
 *   block 0 (rows 0-15)                               block 1 ...
 *   | pair 0 (columns 0-63) | pair 1 (64-127) | ... |
 *
 *   one pair:
 *   | 8 x 64 bytes of nibbles | bit planes, group 0 | group 1 | scales | to a multiple of 64 |
 *     nibble: of row r, column 4 j + i, in byte 64 j + 4 r + i: group 0 in the low half, group 1 in the high one
 *     planes: of codes of 5 and 6 bits, 1 or 2 vectors of 64 bytes per group with the upper bits of the codes;
 *             byte 4 r + i holds those of columns 4 j + i, in bit j, or in bits 2 (j % 4) of vector j / 4
 *   codes of 8 bits: 8 x 64 bytes of codes per group instead.
 *
 *   scales: weight = scale * (code - zero) + minimum, one scale and minimum per row and group
 *   | 16 scales, group 0 | group 1 | 16 minima, group 0 | group 1 |                       all float16
 *   or, of the K types, whose scales are products of a small number and one for the row's 256 columns:
 *   | 16 or 2 x 16 (HALVES: per half group) int8, group 0 | group 1 | minima: 16 int8, group 0 | group 1 |
 *   | 16 float16 for the scales | 16 float16 for the minima |
 *
 *   float types: column by column, the 16 rows side by side.
 *
 * Activations (`Operand`): one record of 96 bytes for 64 columns of one token, so that threads which write different
 * tokens write different lines of the cache, and a kernel broadcasts from addresses that differ by constants:
 *
 *   tile 0 (tokens 0-15)                                       tile 1 ...
 *   | pair 0: token 0 | token 1 | ... | token 15 | pair 1: ... | */
#ifndef BEE_KERNELS_H
#define BEE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "activation.h"

#include "cache/cache.h"
#include "types/types.h"

enum { BLOCK_ROWS = 16, GROUP = 32, PAIR = 64, TILE = 16 };

/* Parts of a pair, in bytes. */
static inline int code_bytes(WeightTraits f) { return PAIR * BLOCK_ROWS * f.bits / 8; }

static inline int small_scale_bytes(WeightTraits f) { /* of the K types */
    return 2 * BLOCK_ROWS * ((f.scales & HALVES ? 2 : 1) + (f.scales & MINIMUM ? 1 : 0));
}

static inline int pair_bytes(WeightTraits f) {
    const int per_row = f.scales & MINIMUM ? 4 : 2; /* a float16, and one more for minima */
    const int scales = f.scales & SUPER ? small_scale_bytes(f) + BLOCK_ROWS * per_row : 2 * BLOCK_ROWS * per_row;
    return (code_bytes(f) + scales + 63) / 64 * 64;
}

typedef struct Weight {
    TensorType type;
    int rows, columns;
    int n_blocks; /* of 16 rows */
    int n_pairs;  /* of groups; unused by float forms */
    size_t block_bytes;
    uint8_t *data; /* 64-byte aligned */
} Weight;

/* 64 columns of one token for the integer forms: x = scale[group] * code, |code| <= 127. */
typedef struct OperandPair {
    int8_t codes[PAIR];
    float scale[2];
    float sum[2];     /* scale * (sum of the group's codes): what a minimum multiplies */
    int32_t total[2]; /* sum of the group's codes: what a zero point multiplies */
    int16_t half[4];  /* the same over each 16 columns */
} OperandPair;

/* Activations of up to `max_tokens` tokens as the integer forms and the float forms want them. */
typedef struct Operand {
    int columns;
    int n_pairs;
    int max_tokens;
    OperandPair *pairs;  /* [tile][pair][16 tokens]; NULL unless an integer form reads it */
    float *values;       /* [tile][column][16 tokens]; NULL unless a float form reads it */
    struct Operand *own; /* a copy per worker, of one tile, for what each worker computes for itself; may be NULL */
} Operand;

/* Attention reads keys and values in chunks of a fixed number of positions, and folds the chunks in their order: what a
 * token gets does not depend on how the chunks are shared out. Keys lie [block][dimension][16 positions]. */
enum { POSITION_BLOCK = 16, POSITION_CHUNK = CACHE_CHUNK, PARTIAL_HEAD = 16 };

/* One chunk of one key-value head, for some queries. A partial result is float[PARTIAL_HEAD + head_size]: the largest
 * score, the sum of exp(score - largest), unused floats, and the values weighted with those exponentials. */
typedef struct Attention {
    const uint16_t *keys;   /* float16 [position block][head_size][16], an even number of blocks */
    const uint16_t *values; /* float16 [position][head_size] */
    int head_size;          /* a multiple of 16 */
    int n_queries;
    const float *const *queries; /* each [head_size], already scaled */
    const int *n_visible;        /* of the chunk's positions, per query: 1 to POSITION_CHUNK, never falling */
    const int *n_hidden;         /* the first of them, which are out of a query's window: never falling */
    float softcap;               /* scores become softcap * tanh(score / softcap); 0: they stay */
    float *const *partials;      /* out, per query */
} Attention;

typedef struct Kernels {
    const char *name;
    /* out[token][row] (+)= sum over columns of weight[row][column] * in[token][column], for the rows of blocks
     * [first, last), of which out[0] is the first, and tokens 0 .. n_tokens - 1. `out` has room for whole blocks. The
     * sum of one output runs over the groups in order, whatever the other tokens are: block-invariant. */
    void (*multiply)(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                     size_t out_stride, bool add);
    /* Puts groups [first, last) of 32 columns of one token into an operand; x[0] is the first of them, and `x` is zero
     * from the operand's columns up to whole pairs. */
    void (*store_operand)(const float *x, Operand *out, int token, int first, int last);
    /* out = x / sqrt(mean(x^2) + eps) * gain over n values, of which the mean is taken away first where `centred`;
     * gain NULL: 1. Reads and writes up to the next multiple of 16. */
    void (*norm)(const float *x, const float *gain, bool centred, float eps, int n, float *out);
    /* x = (x + scale * y) * whole over n values, up to the next multiple of 16. */
    void (*add)(const float *y, float scale, float whole, int n, float *x);
    /* RoPE over the first n_rotated of n dimensions, then all of them times `scale`; turn = cos, sin per pair. */
    void (*rotate)(float *x, int n, const float *turn, int n_rotated, bool neox, float scale);
    /* out = activation(gate) * up over n values, up to the next multiple of 16; gate NULL: activation(up). */
    void (*gate)(Activation activation, const float *gate, const float *up, int n, float *out);
    /* x = softcap * tanh(scale * x / softcap), or scale * x where softcap is 0. */
    void (*cap)(float scale, float softcap, int n, float *x);
    void (*attend)(const Attention *attention);
    /* Folds the partial results of successive chunks, `stride` floats apart, and divides by the sum, to which a sink, a
     * score without a value, belongs where there is one: out[head_size]. */
    void (*fold)(const float *partials, size_t stride, int n_chunks, int head_size, const float *sink, float *out);
    void (*to_float16)(const float *x, uint16_t *out, int n); /* n a multiple of 16 */
    float (*largest)(const float *x, int n);                  /* n at least 1 */
    /* Sum of exp(x - shift), x <= shift. */
    float (*sum_exp)(const float *x, int n, float shift);
    /* As in Reductions. */
    bool (*may_win)(const float *logits, const int32_t *ids, int32_t first, float top, float inverse_temperature,
                    uint64_t key, float lead);
    /* For measuring what the machine allows: reads `bytes`, a multiple of 2048; and does `rounds` of independent dot
     * products in registers, which returns the number of multiply-adds. */
    void (*read_all)(const uint8_t *data, size_t bytes);
    int64_t (*dot_products)(int rounds);
} Kernels;

extern const Kernels bee_kernels_avx512, bee_kernels_avxvnni, bee_kernels_avx2, bee_kernels_neon_dotprod,
    bee_kernels_neon, bee_kernels_portable;

#endif
