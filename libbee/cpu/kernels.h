/* The table of kernels that one instruction set offers. */
#ifndef BEE_KERNELS_H
#define BEE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "activation.h"

#include "cache/cache.h"
#include "packed.h"

/* Attention reads keys and values in chunks of a fixed number of positions, and folds the chunks in their order: what a
 * token gets does not depend on how the chunks are shared out. A chunk of one head, of float16:
 *
 *   keys    [block of 16 positions][dimension][16 positions]
 *   values  [position][dimension]
 *
 * and of 8 bits, with a float16 scale for every 32 dimensions of a position (cache.h):
 *
 *   keys    | block 0 of 16 positions                                            | block 1 ...
 *           | dimensions 0-31                                       | dimensions 32-63 ...|
 *           | 16 scales | codes: [two dimensions][16 positions][2]  |
 *   values  | scales: [32 dimensions][128 positions] | codes: [two positions][dimension][2] |
 *
 * Two codes that are multiplied and added lie side by side. */
enum { POSITION_BLOCK = 16, POSITION_CHUNK = CACHE_CHUNK, PARTIAL_HEAD = 16 };

/* One chunk of one key-value head, for some queries. A partial result is float[PARTIAL_HEAD + head_size]: the largest
 * score, the sum of exp(score - largest), unused floats, and the values weighted with those exponentials. */
typedef struct Attention {
    bee_kv_type type;
    const uint8_t *keys, *values; /* of keys an even number of blocks of 16 positions */
    const uint8_t *next;          /* keys that are likely to be read after these: as much memory; any, where none are */
    int head_size;                /* a multiple of 16 */
    int n_queries;
    const float *const *queries; /* each [head_size], already scaled */
    const int *n_visible;        /* of the chunk's positions, per query: 1 to POSITION_CHUNK, never falling */
    const int *n_hidden;         /* the first of them, which are out of a query's window: never falling */
    float softcap;               /* scores become softcap * tanh(score / softcap); 0: they stay */
    float *const *partials;      /* out, per query */
} Attention;

/* Where keys and values of 8 bits lie in a chunk of a head. Bytes of 16 positions' keys; before the scales of a block
 * of dimensions, and one of its codes; before the scales of values, all of these, and a code. */
static inline size_t key_block_bytes(int head_size) {
    return POSITION_BLOCK * cache_head_bytes(BEE_KV_Q8_0, head_size);
}
static inline size_t key_scales_at(int dimension) {
    return (size_t)(dimension / CACHE_BLOCK) * key_block_bytes(CACHE_BLOCK);
}
static inline size_t key_code_at(int dimension, int lane) {
    const int in_block = dimension % CACHE_BLOCK;
    return key_scales_at(dimension) + sizeof(uint16_t) * POSITION_BLOCK +
           (size_t)(in_block / 2 * 2 * POSITION_BLOCK + 2 * lane + in_block % 2);
}
static inline size_t value_scales_at(int dimension) {
    return sizeof(uint16_t) * POSITION_CHUNK * (size_t)(dimension / CACHE_BLOCK);
}
static inline size_t value_scale_bytes(int head_size) { return value_scales_at(head_size + CACHE_BLOCK - 1); }
static inline size_t value_code_at(int head_size, int position, int dimension) {
    return value_scale_bytes(head_size) + (size_t)(position / 2 * 2 * head_size + 2 * dimension + position % 2);
}

typedef struct Kernels {
    const char *name;
    bool planar_grids; /* the form of GRID_INDICES that `multiply` reads */
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
    /* out = the sum over taps of tap[i] * in[i], in their order, + bias (NULL: 0), n values, a multiple of 16; of that
     * x / (1 + exp(-x)) where `silu`. */
    void (*convolve)(const float *const *in, const float *const *taps, int n_taps, const float *bias, bool silu, int n,
                     float *out);
    /* One row's step of 16 columns of a state, [n_keys][16]: those of Recurrence (ops.h). out = state' query; NULL: it
     * is not wanted. The sums over keys run in four interleaved parts. n_keys is a multiple of 4. */
    void (*recur)(float *state, int n_keys, const float *key, const float *query, float decay, float rate,
                  bool corrects, const float *value, float *out);
    void (*to_float16)(const float *x, uint16_t *out, int n); /* n a multiple of 16 */
    /* Codes, and a scale for every 32 of them, as cache.h has it. n a multiple of 16. */
    void (*to_codes)(const float *x, int8_t *codes, uint16_t *scales, int n);
    float (*largest)(const float *x, int n); /* n at least 1 */
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

extern const Kernels bee_kernels_amx, bee_kernels_avx512_vbmi, bee_kernels_avx512, bee_kernels_avxvnni,
    bee_kernels_avx2, bee_kernels_neon_dotprod, bee_kernels_neon, bee_kernels_portable;

#endif
