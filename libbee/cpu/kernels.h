/* The packed forms of weights and activations, and the table of kernels that one instruction set offers.
 *
 * Weights. Rows are packed in blocks of 16, columns in pairs of 32-column groups, both padded with zeros:
 *
 *   block 0 (rows 0-15)                               block 1 ...
 *   | pair 0 (columns 0-63) | pair 1 (64-127) | ... |
 *
 *   one pair of a 4-bit form:
 *   | 8 x 64 bytes of codes                       | scales, group 0 | group 1 | minima, group 0 | group 1 |
 *     byte 64 j + 4 r + i holds, for row r, column 4 j + i: group 0 in the low nibble, group 1 in the high one
 *
 *   one pair of an 8-bit form:
 *   | 8 x 64 codes of group 0 | 8 x 64 codes of group 1 | scales ...      | minima ...                        |
 *
 *   scales and minima: 16 values a group, one per row, float16 or float32. weight = scale * (code - zero) + minimum.
 *   FORM_6K has a scale for every 16 columns: 32 values a group, those of its first half first.
 *
 *   float forms: column by column, the 16 rows side by side.
 *
 * Activations (`Operand`). Tiles of 16 tokens; per group of 32 columns the 16 tokens lie side by side, so that a
 * kernel broadcasts four successive columns of one token from memory. See `Operand`. */
#ifndef BEE_KERNELS_H
#define BEE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BLOCK_ROWS = 16, GROUP = 32, PAIR = 64, TILE = 16 };

typedef enum Form {
    FORM_4,  /* 4 bits, zero 8, scale f16: Q4_0 */
    FORM_4M, /* 4 bits, scale and minimum f16: Q4_1 */
    FORM_4K, /* 4 bits, scale and minimum f32: Q4_K, whose scales are products of two numbers */
    FORM_8,  /* 8 bits, zero 128, scale f16: Q8_0 */
    FORM_5,  /* 5 bits in a byte, zero 16, scale f16: Q5_0 */
    FORM_5M, /* 5 bits in a byte, scale and minimum f16: Q5_1 */
    FORM_5K, /* 5 bits in a byte, scale and minimum f32: Q5_K */
    FORM_6K, /* 6 bits in a byte, zero 32, scale f32 for every 16 columns: Q6_K */
    FORM_F16,
    FORM_BF16,
    FORM_F32,
    FORM_COUNT
} Form;

typedef struct FormLayout {
    int code_bits; /* 4 or 8; 0: float form */
    int scale_bytes;
    bool has_minimum;
    int scale_columns; /* columns that share a scale: 32 or 16 */
    int element_bytes; /* of float forms */
} FormLayout;

extern const FormLayout form_layouts[FORM_COUNT];

typedef struct Weight {
    Form form;
    int rows, columns;
    int n_blocks; /* of 16 rows */
    int n_pairs;  /* of groups; unused by float forms */
    size_t block_bytes;
    uint8_t *data; /* 64-byte aligned */
} Weight;

/* Activations of up to `max_tokens` tokens as the integer forms and the float forms want them.
 *   codes  int8  [tile][group][16 tokens][32]    x = scale * code, |code| <= 127
 *   scale  float [tile][group][16]
 *   sum    float [tile][group][16]               scale * (sum of the group's codes): what a minimum multiplies
 *   total  int32 [tile][group][16]               sum of the group's codes: what a zero point multiplies
 *   half   int32 [tile][2 group][16]             the same over each 16 columns
 *   values float [tile][column][16]              only where `keep_values` */
typedef struct Operand {
    int columns;
    int n_groups; /* even */
    int max_tokens;
    bool keep_codes, keep_values;
    int8_t *codes;
    float *scale, *sum;
    int32_t *total, *half;
    float *values;
} Operand;

/* Scores are computed for whole blocks of 16 positions: keys lie [block][dimension][16 positions]. */
enum { POSITION_BLOCK = 16, MAX_HEAD_ROWS = 4 };

/* One token's attention over one key-value head, for the query heads that share it. */
typedef struct Attention {
    const float *query;     /* [n_heads][head_size], already scaled */
    const uint16_t *keys;   /* float16 [position block][head_size][16] */
    const uint16_t *values; /* float16 [position][head_size] */
    int head_size;          /* a multiple of 16 */
    int n_heads;
    int n_positions; /* positions seen: 0 .. n_positions - 1 */
    float *scores;   /* scratch [n_heads][n_positions rounded up to 16] */
    float *out;      /* [n_heads][head_size] */
} Attention;

typedef struct Kernels {
    const char *name;
    /* out[token][row] (+)= sum over columns of weight[row][column] * in[token][column], for the rows of blocks
     * [first, last) and tokens 0 .. n_tokens - 1. `out` has room for whole blocks. The sum of one output runs over
     * the groups in order, whatever the other tokens are: block-invariant. */
    void (*multiply)(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                     size_t out_stride, bool add);
    /* Quantises one token's activations into an operand; `x` is zero from `columns` up to whole pairs. */
    void (*store_operand)(const float *x, Operand *out, int token);
    /* out = x / sqrt(mean(x^2) + eps) * gain over n values; reads and writes up to the next multiple of 16. */
    void (*rms_norm)(const float *x, const float *gain, float eps, int n, float *out);
    /* out = silu(gate) * up over n values, up to the next multiple of 16. */
    void (*swiglu)(const float *gate, const float *up, int n, float *out);
    void (*attend)(const Attention *attention);
    void (*to_float16)(const float *x, uint16_t *out, int n); /* n a multiple of 16 */
    float (*largest)(const float *x, int n);                  /* n at least 1 */
    /* Sum of exp(x - shift), x <= shift. */
    float (*sum_exp)(const float *x, int n, float shift);
} Kernels;

extern const Kernels bee_kernels_avx512, bee_kernels_avx2, bee_kernels_portable;

#endif
