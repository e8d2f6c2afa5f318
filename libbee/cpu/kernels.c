/* Every kernel of the CPU backend, written once against sixteen lanes and compiled once per instruction set. */
#include "kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Inlining must be certain: an accumulator array that survives as an array lives on the stack. Loops whose count is
 * a constant after inlining say so, or gcc gives up on the longest ones. Sanitizers would make so much of all that code
 * that compiling it takes minutes. */
#ifdef BEE_SANITIZED
#define INLINE static __attribute__((unused))
#define UNROLL
#else
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(BEE_ISA_AVX512)
#include "simd_avx512.h"
#elif defined(BEE_ISA_AVX2)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

/* ---- matrix times a few tokens ------------------------------------------------------------------ */

/* Where a tile of an operand begins, at its first token. */
typedef struct TileView {
    const int8_t *codes;
    const float *scale, *sum;
    const int32_t *total, *half;
    const float *values;
} TileView;

INLINE TileView view_tile(const Operand *in, int token) {
    const size_t tile = (size_t)(token / TILE) * in->n_groups * TILE, within = token % TILE;
    return (TileView){
        in->codes + (tile + within) * GROUP,
        in->scale + tile + within,
        in->sum + tile + within,
        in->total + tile + within,
        in->half + 2 * tile + within,
        in->values + (size_t)(token / TILE) * in->columns * TILE + within,
    };
}

/* Everything about a form that the compiler should know while it unrolls. */
typedef struct FormTraits {
    int code_bits, zero; /* zero < 0: WIDE_ZERO, and codes up to 255 */
    bool wide_scale, has_minimum, halves;
} FormTraits;

INLINE VF load_scale(const uint8_t *p, bool wide) {
    return wide ? vf_load((const float *)p) : vf_load_f16((const uint16_t *)p);
}

INLINE VI dot_columns(FormTraits f, VI acc, const VCODES *codes, const int8_t *a, int first, int last) {
    UNROLL for (int j = first; j < last; j++) acc =
        f.zero < 0 ? dot4_wide(acc, codes[j], a + 4 * j) : dot4(acc, codes[j], a + 4 * j);
    return acc;
}

/* One group of 32 columns: 16 rows x n tokens. `odd` selects the high nibbles of a 4-bit pair. */
INLINE void multiply_group(FormTraits f, int n, bool odd, const uint8_t *w, const uint8_t *scale,
                           const uint8_t *minimum, TileView a, VF *acc) {
    const bool high = f.code_bits == 4 && odd;
    const int zero = (f.zero < 0 ? WIDE_ZERO : f.zero) * (high ? HIGH_NIBBLE : 1);
    VCODES codes[8];
    UNROLL for (int j = 0; j < 8; j++) codes[j] = high               ? codes_high(w + 64 * j)
                                                  : f.code_bits == 4 ? codes_low(w + 64 * j)
                                                                     : codes_load(w + 64 * j);
    VF s = load_scale(scale, f.wide_scale), s2 = s, m = s;
    if (f.halves) s2 = load_scale(scale + 64, true);
    if (f.has_minimum) m = load_scale(minimum, f.wide_scale);
    if (high && HIGH_NIBBLE != 1) s = vf_mul(s, vf_set(1.0f / HIGH_NIBBLE)); /* a power of two: exact */
    UNROLL for (int t = 0; t < n; t++) {
        const int8_t *x = a.codes + t * GROUP;
        const VF token_scale = vf_set(a.scale[t]);
        if (f.halves) {
            const VI lo = dot_columns(f, vi_set(-zero * a.half[t]), codes, x, 0, 4);
            const VI hi = dot_columns(f, vi_set(-zero * a.half[TILE + t]), codes, x, 4, 8);
            acc[t] = vf_fma(vf_from_vi(lo), vf_mul(s, token_scale), acc[t]);
            acc[t] = vf_fma(vf_from_vi(hi), vf_mul(s2, token_scale), acc[t]);
            continue;
        }
        /* Two chains, because integer sums are exact in any order. */
        VI d = dot_columns(f, vi_set(-zero * a.total[t]), codes, x, 0, 4);
        d = vi_add(d, dot_columns(f, vi_set(0), codes, x, 4, 8));
        acc[t] = vf_fma(vf_from_vi(d), vf_mul(s, token_scale), acc[t]);
        if (f.has_minimum) acc[t] = vf_fma(m, vf_set(a.sum[t]), acc[t]);
    }
}

INLINE void store_block(int n, const VF *acc, float *out, size_t out_stride, bool add) {
    UNROLL for (int t = 0; t < n; t++)
        vf_store(out + t * out_stride, add ? vf_add(vf_load(out + t * out_stride), acc[t]) : acc[t]);
}

/* 16 rows x n tokens, n <= MAX_TILE, all columns. */
INLINE void multiply_codes(FormTraits f, int n, const uint8_t *w, int n_pairs, TileView a, float *out,
                           size_t out_stride, bool add) {
    const int scale_bytes = BLOCK_ROWS * (f.wide_scale ? 4 : 2) * (f.halves ? 2 : 1);
    const int code_bytes = PAIR * BLOCK_ROWS * f.code_bits / 8, odd_codes = f.code_bits == 4 ? 0 : code_bytes / 2;
    const int pair_bytes = code_bytes + scale_bytes * (f.has_minimum ? 4 : 2);
    VF acc[MAX_TILE];
    UNROLL for (int t = 0; t < n; t++) acc[t] = vf_set(0);
    for (int p = 0; p < n_pairs; p++, w += pair_bytes) {
        /* Ahead of the hardware's prefetcher, which stops at every page: a sixth of a single token's time. */
        for (int i = 0; i < pair_bytes; i += 64) __builtin_prefetch(w + 4096 + i);
        const uint8_t *scale = w + code_bytes, *minimum = scale + 2 * scale_bytes;
        multiply_group(f, n, false, w, scale, minimum, a, acc);
        a.codes += TILE * GROUP, a.scale += TILE, a.sum += TILE, a.total += TILE, a.half += 2 * TILE;
        multiply_group(f, n, true, w + odd_codes, scale + scale_bytes, minimum + scale_bytes, a, acc);
        a.codes += TILE * GROUP, a.scale += TILE, a.sum += TILE, a.total += TILE, a.half += 2 * TILE;
    }
    store_block(n, acc, out, out_stride, add);
}

INLINE void multiply_floats(Form form, int n, const uint8_t *w, int columns, TileView a, float *out, size_t out_stride,
                            bool add) {
    VF acc[MAX_TILE];
    UNROLL for (int t = 0; t < n; t++) acc[t] = vf_set(0);
    for (int k = 0; k < columns; k++) {
        const VF column = form == FORM_F32   ? vf_load((const float *)w + k * BLOCK_ROWS)
                          : form == FORM_F16 ? vf_load_f16((const uint16_t *)w + k * BLOCK_ROWS)
                                             : vf_load_bf16((const uint16_t *)w + k * BLOCK_ROWS);
        UNROLL for (int t = 0; t < n; t++) acc[t] = vf_fma(column, vf_set(a.values[k * TILE + t]), acc[t]);
    }
    store_block(n, acc, out, out_stride, add);
}

typedef void (*Multiply)(const Weight *weight, const uint8_t *w, TileView a, float *out, size_t out_stride, bool add);

/* Each form, for each number of tokens, becomes a function of its own: the constants fold into it. */
#define CODES(name, n, ...)                                                                                          \
    static __attribute__((noinline)) void name##_##n(const Weight *weight, const uint8_t *w, TileView a, float *out, \
                                                     size_t out_stride, bool add) {                                  \
        multiply_codes((FormTraits){__VA_ARGS__}, n, w, weight->n_pairs, a, out, out_stride, add);                   \
    }
#define FLOATS(name, n, form)                                                                                        \
    static __attribute__((noinline)) void name##_##n(const Weight *weight, const uint8_t *w, TileView a, float *out, \
                                                     size_t out_stride, bool add) {                                  \
        multiply_floats(form, n, w, weight->columns, a, out, out_stride, add);                                       \
    }
#if MAX_TILE == 16
#define FOR_TILES(MAKE, name, ...)                                                     \
    MAKE(name, 1, __VA_ARGS__)                                                         \
    MAKE(name, 2, __VA_ARGS__)                                                         \
    MAKE(name, 3, __VA_ARGS__)                                                         \
    MAKE(name, 4, __VA_ARGS__)                                                         \
    MAKE(name, 5, __VA_ARGS__)                                                         \
    MAKE(name, 6, __VA_ARGS__)                                                         \
    MAKE(name, 8, __VA_ARGS__)                                                         \
    MAKE(name, 12, __VA_ARGS__)                                                        \
    MAKE(name, 16, __VA_ARGS__)                                                        \
    static const Multiply name[] = {name##_1, name##_2, name##_3,  name##_4, name##_5, \
                                    name##_6, name##_8, name##_12, name##_16};
static const int tile_sizes[] = {1, 2, 3, 4, 5, 6, 8, 12, 16};
#else /* fewer registers: more tokens at once would spill */
#define FOR_TILES(MAKE, name, ...) \
    MAKE(name, 1, __VA_ARGS__)     \
    MAKE(name, 2, __VA_ARGS__)     \
    static const Multiply name[] = {name##_1, name##_2};
static const int tile_sizes[] = {1, 2};
#endif

/*                                    bits zero wide  min    halves */
FOR_TILES(CODES, multiply_4, 4, 8, false, false, false)
FOR_TILES(CODES, multiply_4m, 4, 0, false, true, false)
FOR_TILES(CODES, multiply_4k, 4, 0, true, true, false)
FOR_TILES(CODES, multiply_8, 8, -1, false, false, false)
FOR_TILES(CODES, multiply_5, 8, 16, false, false, false)
FOR_TILES(CODES, multiply_5m, 8, 0, false, true, false)
FOR_TILES(CODES, multiply_5k, 8, 0, true, true, false)
FOR_TILES(CODES, multiply_6k, 8, 32, true, false, true)
FOR_TILES(FLOATS, multiply_f16, FORM_F16)
FOR_TILES(FLOATS, multiply_bf16, FORM_BF16)
FOR_TILES(FLOATS, multiply_f32, FORM_F32)

static const Multiply *const multiply_table[FORM_COUNT] = {
    multiply_4,  multiply_4m, multiply_4k,  multiply_8,    multiply_5,   multiply_5m,
    multiply_5k, multiply_6k, multiply_f16, multiply_bf16, multiply_f32,
};

static void multiply(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                     size_t out_stride, bool add) {
    const int n_sizes = sizeof tile_sizes / sizeof *tile_sizes;
    for (int block = first; block < last; block++) {
        const uint8_t *w = weight->data + block * weight->block_bytes;
        for (int token = 0; token < n_tokens;) {
            /* The largest tile that fits what is left; tiles never straddle an operand's tile. */
            const int room = TILE - token % TILE, left = n_tokens - token < room ? n_tokens - token : room;
            int size = n_sizes - 1;
            while (tile_sizes[size] > left) size--;
            multiply_table[weight->form][size](weight, w, view_tile(in, token),
                                               out + token * out_stride + block * BLOCK_ROWS, out_stride, add);
            token += tile_sizes[size];
        }
    }
}

/* ---- activations -------------------------------------------------------------------------------- */

static void store_operand(const float *x, Operand *out, int token) {
    const size_t tile = (size_t)(token / TILE) * out->n_groups;
    const int t = token % TILE;
    const VF zero = vf_set(0);
    VF poison = zero;
    for (int g = 0; out->keep_codes && g < out->n_groups; g++, x += GROUP) {
        const VF a = vf_load(x), b = vf_load(x + 16);
        const float largest = vf_largest(vf_max(vf_abs(a), vf_abs(b)));
        const float scale = largest / 127.0f;
        /* Below 2^-119 the quotient could overflow: such a group counts as zero. */
        const VF inverse = vf_set(largest > 0x1p-119f ? 127.0f / largest : 0.0f);
        poison = vf_fma(a, zero, vf_fma(b, zero, poison));
        int8_t *codes = out->codes + ((tile + g) * TILE + t) * GROUP;
        const int32_t first = vi_sum(vf_store_int8(codes, vf_mul(a, inverse)));
        const int32_t second = vi_sum(vf_store_int8(codes + 16, vf_mul(b, inverse)));
        const size_t i = (tile + g) * TILE + t, h = 2 * (tile + g) * TILE + t;
        out->scale[i] = scale;
        out->sum[i] = scale * (float)(first + second);
        out->total[i] = first + second;
        out->half[h] = first;
        out->half[h + TILE] = second;
    }
    /* Codes cannot say NaN or infinity: a scale says it, and makes all products of the token NaN. */
    if (out->keep_codes && isnan(vf_sum(poison))) out->scale[tile * TILE + t] = NAN;
    if (out->keep_values) {
        if (out->keep_codes) x -= (size_t)out->n_groups * GROUP;
        float *values = out->values + (size_t)(token / TILE) * out->columns * TILE + t;
        for (int k = 0; k < out->columns; k++) values[(size_t)k * TILE] = x[k];
    }
}

static void rms_norm(const float *x, const float *gain, float eps, int n, float *out) {
    VF squares = vf_set(0);
    for (int i = 0; i < n; i += 16) {
        const VF v = vf_keep(vf_load(x + i), n - i, 0);
        squares = vf_fma(v, v, squares);
    }
    const VF factor = vf_set(1.0f / sqrtf(vf_sum(squares) / (float)n + eps));
    for (int i = 0; i < n; i += 16)
        vf_store(out + i, vf_keep(vf_mul(vf_mul(vf_load(x + i), factor), vf_load(gain + i)), n - i, 0));
}

/* exp for x <= 88, relative error below 2e-7: 2^n times a polynomial for 2^f on [-1/2, 1/2]. */
INLINE VF vf_exp(VF x) {
    x = vf_max(vf_set(-87.0f), x); /* in this order NaN stays NaN */
    const VF n = vf_round(vf_mul(x, vf_set(1.442695041f)));
    /* ln 2 in two parts, so that x - n ln 2 keeps its last bits */
    VF f = vf_fma(n, vf_set(-0.693359375f), x);
    f = vf_fma(n, vf_set(2.12194440e-4f), f);
    VF p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, f, vf_set(1.3981999507e-3f));
    p = vf_fma(p, f, vf_set(8.3334519073e-3f));
    p = vf_fma(p, f, vf_set(4.1665795894e-2f));
    p = vf_fma(p, f, vf_set(1.6666665459e-1f));
    p = vf_fma(p, f, vf_set(5.0000001201e-1f));
    p = vf_fma(p, vf_mul(f, f), f);
    return vf_scale2(vf_add(p, vf_set(1)), n);
}

static void swiglu(const float *gate, const float *up, int n, float *out) {
    for (int i = 0; i < n; i += 16) {
        const VF g = vf_load(gate + i);
        /* silu(g) = g / (1 + exp(-g)); the bound keeps exp finite where the quotient is all but 0 */
        const VF down = vf_exp(vf_sub(vf_set(0), vf_max(g, vf_set(-87.0f))));
        vf_store(out + i, vf_mul(vf_div(g, vf_add(vf_set(1), down)), vf_load(up + i)));
    }
}

static void to_float16(const float *x, uint16_t *out, int n) {
    for (int i = 0; i < n; i += 16) vf_store_f16(out + i, vf_load(x + i));
}

static float largest(const float *x, int n) {
    const VF lowest = vf_set(-FLT_MAX), zero = vf_set(0);
    VF m = vf_set(-INFINITY), poison = zero;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        /* A maximum forgets NaN, so a sum remembers it; minus infinity is a valid value and left out of that. */
        poison = vf_fma(vf_max(lowest, vf_load(x + i)), zero, poison);
        m = vf_max(m, vf_load(x + i));
    }
    float out = vf_largest(m) + vf_sum(poison);
    for (; i < n; i++) out = x[i] > out || isnan(x[i]) ? x[i] : out;
    return out;
}

static float sum_exp(const float *x, int n, float shift) {
    VF sum = vf_set(0);
    for (int i = 0; i < n; i += 16) {
        float last[16];
        const float *from = x + i;
        if (n - i < 16) memcpy(last, from, (size_t)(n - i) * sizeof(float)), from = last;
        sum = vf_add(sum, vf_keep(vf_exp(vf_sub(vf_keep(vf_load(from), n - i, 0), vf_set(shift))), n - i, 0));
    }
    return vf_sum(sum);
}

/* ---- attention ---------------------------------------------------------------------------------- */

/* Scores of n query heads against 16 positions at a time. */
INLINE void score(int n, const Attention *a, const float *query, float *scores, int stride) {
    for (int p = 0; p < a->n_positions; p += POSITION_BLOCK) {
        const uint16_t *keys = a->keys + (size_t)p * a->head_size;
        VF acc[MAX_HEAD_ROWS];
        UNROLL for (int h = 0; h < n; h++) acc[h] = vf_set(0);
        for (int d = 0; d < a->head_size; d++) {
            const VF k = vf_load_f16(keys + d * POSITION_BLOCK);
            UNROLL for (int h = 0; h < n; h++) acc[h] = vf_fma(k, vf_set(query[h * a->head_size + d]), acc[h]);
        }
        UNROLL for (int h = 0; h < n; h++) vf_store(scores + h * stride + p, acc[h]);
    }
}

/* In place: exp(score - largest), 0 beyond the positions seen; returns 1 / their sum. */
INLINE float softmax(float *scores, int n_positions) {
    VF top = vf_set(-INFINITY);
    for (int p = 0; p < n_positions; p += 16)
        top = vf_max(top, vf_keep(vf_load(scores + p), n_positions - p, -INFINITY));
    const VF shift = vf_set(vf_largest(top));
    VF sum = vf_set(0);
    for (int p = 0; p < n_positions; p += 16) {
        /* Lanes beyond the positions seen may hold anything, NaN included: replace them before exp. */
        const VF s = vf_keep(vf_load(scores + p), n_positions - p, -INFINITY);
        const VF e = vf_keep(vf_exp(vf_sub(s, shift)), n_positions - p, 0);
        vf_store(scores + p, e);
        sum = vf_add(sum, e);
    }
    return 1.0f / vf_sum(sum);
}

/* `width` x 16 dimensions of the values, weighted, for n heads. */
INLINE void weigh(int n, int width, const Attention *a, int dimension, const float *scores, int stride,
                  const float *inverse, float *out) {
    VF acc[MAX_HEAD_ROWS][4];
    UNROLL for (int h = 0; h < n; h++) UNROLL for (int c = 0; c < width; c++) acc[h][c] = vf_set(0);
    for (int p = 0; p < a->n_positions; p++) {
        const uint16_t *values = a->values + (size_t)p * a->head_size + dimension;
        UNROLL for (int c = 0; c < width; c++) {
            const VF v = vf_load_f16(values + 16 * c);
            UNROLL for (int h = 0; h < n; h++) acc[h][c] = vf_fma(v, vf_set(scores[h * stride + p]), acc[h][c]);
        }
    }
    UNROLL for (int h = 0; h < n; h++) UNROLL for (int c = 0; c < width; c++)
        vf_store(out + h * a->head_size + dimension + 16 * c, vf_mul(acc[h][c], vf_set(inverse[h])));
}

INLINE void attend_heads(int n, const Attention *a, int head) {
    const int stride = (a->n_positions + POSITION_BLOCK - 1) / POSITION_BLOCK * POSITION_BLOCK;
    float *scores = a->scores + (size_t)head * stride, *out = a->out + head * a->head_size;
    float inverse[MAX_HEAD_ROWS];
    score(n, a, a->query + head * a->head_size, scores, stride);
    for (int h = 0; h < n; h++) inverse[h] = softmax(scores + h * stride, a->n_positions);
    int d = 0;
    for (; d + 64 <= a->head_size; d += 64) weigh(n, 4, a, d, scores, stride, inverse, out);
    for (; d < a->head_size; d += 16) weigh(n, 1, a, d, scores, stride, inverse, out);
}

/* Each head's arithmetic is the same whichever heads are computed beside it. */
static void attend(const Attention *a) {
    int head = 0;
    for (; head + 4 <= a->n_heads; head += 4) attend_heads(4, a, head);
    switch (a->n_heads - head) {
    case 3: attend_heads(3, a, head); break;
    case 2: attend_heads(2, a, head); break;
    case 1: attend_heads(1, a, head); break;
    default: break;
    }
}

const Kernels ISA_KERNELS = {
    .name = ISA_NAME,
    .multiply = multiply,
    .store_operand = store_operand,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .attend = attend,
    .to_float16 = to_float16,
    .largest = largest,
    .sum_exp = sum_exp,
};
