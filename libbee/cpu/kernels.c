/* Every kernel of the CPU backend, written once against sixteen lanes and compiled once per instruction set. */
#include "kernels.h"

#include "sampling/sample.h"

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
#elif defined(BEE_ISA_AVX2) || defined(BEE_ISA_AVXVNNI)
#include "simd_avx2.h"
#elif defined(BEE_ISA_NEON) || defined(BEE_ISA_NEON_DOTPROD)
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif

/* Keeps the compiler from dropping what nobody else reads, and from knowing what it reads. */
INLINE void escape(const void *memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

/* ---- matrix times a few tokens ------------------------------------------------------------------ */

/* Weights are multiplied STEP_ROWS rows of a block at a time: as many as let 32 columns of them stay in registers while
 * the tokens go by. RF, RI and RCODES hold a float, an int32 and four codes of each of these rows. */
#if STEP_ROWS == 16
typedef VF RF;
typedef VI RI;
#define rf_load vf_load
#define rf_load_f16 vf_load_f16
#define rf_load_bf16 vf_load_bf16
#define rf_load_int8 vf_load_int8
#define rf_store vf_store
#define rf_set vf_set
#define rf_add vf_add
#define rf_mul vf_mul
#define rf_fma vf_fma
#define rf_from_ri vf_from_vi
#define ri_set vi_set
#define ri_add vi_add
#endif

enum { STEPS = BLOCK_ROWS / STEP_ROWS };

/* Where the registers hold the sums of a whole tile too, the loop over the tokens is laid out for each number of them.
 * Otherwise the sums lie in memory, to be read and written once per group; left alone, compilers would lay that loop
 * out as well, and then move everything else to the stack. */
#if REGISTER_TOKENS == 16
#define TOKEN_LOOP UNROLL
#elif defined(BEE_SANITIZED)
#define TOKEN_LOOP
#else
#define TOKEN_LOOP _Pragma("GCC unroll 1")
#endif

/* Where a pair's parts are, and its place in the span. */
typedef struct Pair {
    const uint8_t *span, *codes, *small, *scales;
    int index;
} Pair;

/* The codes of one group, of the step's rows. */
INLINE void load_integers(WeightTraits t, int group, int step, const uint8_t *w, RCODES *codes) {
    w += 4 * STEP_ROWS * step;
    if (t.bits == 8) {
        UNROLL for (int j = 0; j < 8; j++) codes[j] = codes_load(w + 512 * group + 64 * j);
        return;
    }
    if (t.bits == 4) {
        UNROLL for (int j = 0; j < 8; j++) codes[j] = group ? codes_high(w + 64 * j) : codes_low(w + 64 * j);
        return;
    }
    const uint8_t *twos = w + (t.bits & 4 ? 512 : 0), *ones = twos + (t.bits & 2 ? 256 : 0);
    UNROLL for (int j = 0; j < 8; j++) {
        codes[j] = !(t.bits & 4) ? codes_set(0) : group ? codes_upper(w + 64 * j) : codes_low(w + 64 * j);
        const int two = t.bits & 4, one = t.bits == 1 ? 1 : t.bits & 6; /* the places of these bits */
        if (t.bits & 2)
            codes[j] = codes_join(codes[j], codes_load(twos + 128 * group + 64 * (j / 4)), two - 2 * (j % 4), 3 << two);
        if (t.bits & 1) codes[j] = codes_join(codes[j], codes_load(ones + 64 * group), one - j, 1 << one);
    }
}

INLINE void load_nibbles(TensorType type, int group, int step, const uint8_t *w, RCODES *codes) {
    const NibbleTable table = table_of(type);
    w += 4 * STEP_ROWS * step;
    UNROLL for (int j = 0; j < 8; j++) codes[j] =
        codes_look_up(table.words, group ? codes_upper(w + 64 * j) : codes_low(w + 64 * j));
}

INLINE const uint32_t *grid_of(TensorType type) {
    switch (type) {
    case TYPE_IQ3_S: return iq3_s_grid;
    case TYPE_IQ3_XXS: return iq3_xxs_grid;
    case TYPE_IQ2_S: return iq2_s_grid;
    case TYPE_IQ2_XS: return iq2_xs_grid;
    case TYPE_IQ2_XXS: return iq2_xxs_grid;
    default: return iq1_grid;
    }
}

/* Higher bits of the entries of each row, as many as they have. */
INLINE RI load_high_bits(const uint8_t *p, int bits, int row) {
    return bits == 8 ? ri_load_u8(p + row) : bits == 16 ? ri_load_u16(p + 2 * row) : ri_load(p + 4 * row);
}

INLINE void load_entries(TensorType type, int group, int step, const uint8_t *w, RCODES *codes) {
    const WeightTraits t = traits_of(type);
    const uint32_t *grid = grid_of(type);
    const int per_group = GROUP / t.entry, more = high_bits(t), row = STEP_ROWS * step;
    const uint8_t *upper = w + 2 * per_group * BLOCK_ROWS, *signs = upper + per_group * more / 4 * BLOCK_ROWS;
    const RI high = more ? load_high_bits(upper, 2 * per_group * more, row) : ri_set(0);
    UNROLL for (int i = 0; i < per_group; i++) {
        const int number = group * per_group + i, at = number * more;
        RI index = ri_load_u8(w + number * BLOCK_ROWS + row), eighth = ri_set(0);
        if (t.index_bits > 8) index = ri_add(index, ri_left(ri_bits(high, at, (1 << (t.index_bits - 8)) - 1), 8));
        if (t.flags & EIGHTHS) /* two more where the sign is not set */
            eighth = ri_bits(ri_add(ri_bits(high, at + more - 1, 1), ri_set(-1)), 0, 0x02020202);
        if (t.entry == 4) {
            codes[i] = codes_from_grid(grid, index, eighth);
        } else {
            codes[2 * i] = codes_from_grid(grid, ri_left(index, 1), eighth);
            codes[2 * i + 1] = codes_from_grid(grid + 1, ri_left(index, 1), eighth);
        }
    }
    if (!(t.flags & SIGNS)) return;
    const RCODES planes = codes_load(signs + 64 * group + 4 * row);
    UNROLL for (int j = 0; j < 8; j++) codes[j] = codes_signed(codes[j], planes, j, t.zero);
}

INLINE void load_digits(int group, int step, Pair at, RCODES *codes) {
    for (int j = 0; j < 8; j++) {
        const int k = 16 * at.index + 8 * group + j;
        codes[j] = codes_digit(codes_load(at.span + 64 * (k / 5) + 4 * STEP_ROWS * step), k % 5);
    }
}

INLINE void load_codes(TensorType type, int group, int step, Pair at, RCODES *codes) {
    const WeightTraits t = traits_of(type);
    if (t.kind == INTEGERS) load_integers(t, group, step, at.codes, codes);
    if (t.kind == NIBBLE_TABLE) load_nibbles(type, group, step, at.codes, codes);
    if (t.kind == GRID_INDICES) load_entries(type, group, step, at.codes, codes);
    if (t.kind == DIGITS) load_digits(group, step, at, codes);
}

/* Whether load_codes leaves the factor HIGH_NIBBLE in the codes of group 1. */
INLINE bool leaves_factor(WeightTraits t) { return t.kind == INTEGERS && t.bits == 4 && HIGH_NIBBLE != 1; }

/* The zero point of a group's codes as load_codes leaves them. */
INLINE int zero_of(WeightTraits t, int group) {
    return t.bits == 8 ? WIDE_ZERO : leaves_factor(t) && group ? t.zero * HIGH_NIBBLE : t.zero;
}

/* Of columns 0 to 15 and, where these have their own, of columns 16 to 31. */
typedef struct GroupScales {
    RF scale[2], minimum[2];
} GroupScales;

/* Products of a float16 and a small integer are exact. */
INLINE RF super_scale(const uint8_t *super, const uint8_t *small) {
    return rf_mul(rf_load_f16((const uint16_t *)super), rf_load_int8((const int8_t *)small));
}

INLINE RF power_scales(const uint8_t *p) { /* as power_scale */
    const RI exponent = ri_load_u8(p);
    const RI usual = ri_add(ri_left(exponent, 23), ri_set(-(1 << 23)));
    return rf_from_bits(ri_largest(usual, ri_left(ri_add(exponent, ri_set(1)), 21)));
}

INLINE RF small_float_scales(const uint8_t *p) { /* as small_float_scale */
    return rf_mul(rf_from_bits(ri_left(ri_load_u8(p), 20)), rf_set(0x1p119f));
}

INLINE RF odd_scales(RF super, RI nibbles) { return rf_mul(super, rf_from_ri(ri_add(ri_left(nibbles, 1), ri_set(1)))); }

/* Scales whose small integers are nibbles. */
INLINE GroupScales load_nibble_scales(WeightTraits t, int group, int row, Pair at) {
    const float unit = value_of_bits((uint32_t)(127 + t.unit) << 23);
    RF super = rf_load_f16((const uint16_t *)(at.scales + 2 * row));
    if (t.unit) super = rf_mul(super, rf_set(unit));
    GroupScales g;
    if (t.flags & MINIMUM) {
        const RF minimum = rf_load_f16((const uint16_t *)(at.scales + 2 * BLOCK_ROWS + 2 * row));
        UNROLL for (int half = 0; half < 2; half++) {
            const RI both = ri_load_u8(at.small + BLOCK_ROWS * (2 * group + half) + row);
            g.scale[half] = rf_mul(super, rf_from_ri(ri_bits(both, 0, 15)));
            g.minimum[half] = rf_mul(minimum, rf_mul(rf_from_ri(ri_bits(both, 4, 15)), rf_set(-1)));
        }
        return g;
    }
    const bool halves = t.flags & HALVES;
    const RI nibbles = ri_load_u8(at.small + (halves ? BLOCK_ROWS * group : 0) + row);
    g.scale[0] = odd_scales(super, ri_bits(nibbles, halves ? 0 : 4 * group, 15));
    if (halves) g.scale[1] = odd_scales(super, ri_bits(nibbles, 4, 15));
    return g;
}

INLINE GroupScales load_scales(WeightTraits t, int group, int step, Pair at) {
    const int row = STEP_ROWS * step, halves = t.flags & HALVES ? 2 : 1;
    GroupScales g;
    if (t.flags & ODD || (t.flags & HALVES && t.flags & MINIMUM)) return load_nibble_scales(t, group, row, at);
    if (t.flags & WHOLE) {
        g.scale[0] = rf_load_f16((const uint16_t *)(at.scales + 2 * row));
    } else if (t.flags & SUPER) {
        const uint8_t *super = at.scales + 2 * row, *small = at.small + row;
        UNROLL for (int half = 0; half < halves; half++) g.scale[half] =
            super_scale(super, small + BLOCK_ROWS * (halves * group + half));
        if (t.flags & MINIMUM) g.minimum[0] = super_scale(super + 32, small + 32 + 16 * group);
    } else if (t.flags & (EXPONENT | SMALL_FLOAT)) {
        UNROLL for (int half = 0; half < halves; half++) {
            const uint8_t *p = at.small + BLOCK_ROWS * (halves * group + half) + row;
            g.scale[half] = t.flags & EXPONENT ? power_scales(p) : small_float_scales(p);
        }
    } else {
        g.scale[0] = rf_load_f16((const uint16_t *)(at.small + 32 * group + 2 * row));
        if (t.flags & MINIMUM) g.minimum[0] = rf_load_f16((const uint16_t *)(at.small + 64 + 32 * group + 2 * row));
    }
    /* the factor is a power of two: exact */
    if (leaves_factor(t) && group) g.scale[0] = rf_mul(g.scale[0], rf_set(1.0f / HIGH_NIBBLE));
    return g;
}

/* One group of 32 columns: STEP_ROWS rows x n tokens. */
INLINE void multiply_group(TensorType type, int n, int group, int step, Pair at, const OperandPair *a, RF *acc) {
    const WeightTraits t = traits_of(type);
    const int zero = zero_of(t, group);
    const GroupScales s = load_scales(t, group, step, at);
    RCODES codes[8];
    load_codes(type, group, step, at, codes);
    TOKEN_LOOP for (int i = 0; i < n; i++) {
        const int8_t *x = a[i].codes + GROUP * group;
        const RF token_scale = rf_set(a[i].scale[group]);
        if (t.flags & HALVES) {
            UNROLL for (int half = 0; half < 2; half++) {
                const int total = a[i].half[2 * group + half];
                const RI d = dot(ri_set(-zero * total), codes + 4 * half, x + 16 * half, 4, t.bits);
                acc[i] = rf_fma(rf_from_ri(d), rf_mul(s.scale[half], token_scale), acc[i]);
                if (t.flags & MINIMUM)
                    acc[i] = rf_fma(s.minimum[half], rf_set(a[i].scale[group] * (float)total), acc[i]);
            }
            continue;
        }
        RI d = ri_set(-zero * a[i].total[group]);
        if (n < TWO_CHAINS_BELOW) { /* few tokens leave the products waiting for each other; sums are exact */
            d = dot(d, codes, x, 4, t.bits);
            d = ri_add(d, dot(ri_set(0), codes + 4, x + 16, 4, t.bits));
        } else {
            d = dot(d, codes, x, 8, t.bits);
        }
        acc[i] = rf_fma(rf_from_ri(d), rf_mul(s.scale[0], token_scale), acc[i]);
        if (t.flags & MINIMUM) acc[i] = rf_fma(s.minimum[0], rf_set(a[i].sum[group]), acc[i]);
    }
}

INLINE void store_sums(float *out, RF sums, bool add) { rf_store(out, add ? rf_add(rf_load(out), sums) : sums); }

/* 16 rows x n tokens, n <= TILE, all columns. */
INLINE void multiply_codes(TensorType type, int n, const uint8_t *w, int n_pairs, const OperandPair *a, float *out,
                           size_t out_stride, bool add) {
    const WeightTraits t = traits_of(type);
    const int in_span = span_pairs(t), lines = (span_bytes(t) / 64 + in_span - 1) / in_span;
    RF acc[STEPS][TILE];
    UNROLL for (int step = 0; step < STEPS; step++) TOKEN_LOOP for (int i = 0; i < n; i++) acc[step][i] = rf_set(0);
    for (int first = 0; first < n_pairs; first += in_span, w += span_bytes(t)) {
        const uint8_t *small = w + in_span * code_bytes(t), *scales = small + in_span * small_scale_bytes(t);
        for (int p = 0; p < in_span; p++, a += TILE) {
            const Pair at = {w, w + p * code_bytes(t), small + p * small_scale_bytes(t), scales, p};
            /* Ahead of the hardware's prefetcher, which stops at every page: a sixth of a single token's time. */
            for (int i = p * lines; i < (p + 1) * lines; i++) __builtin_prefetch(w + 4096 + 64 * i);
            UNROLL for (int step = 0; step < STEPS; step++) {
                multiply_group(type, n, 0, step, at, a, acc[step]);
                if (STEPS > 1) escape(w); /* or it keeps all nibbles for the other group, on the stack */
                multiply_group(type, n, 1, step, at, a, acc[step]);
            }
        }
    }
    UNROLL for (int step = 0; step < STEPS; step++) TOKEN_LOOP for (int i = 0; i < n; i++)
        store_sums(out + i * out_stride + STEP_ROWS * step, acc[step][i], add);
}

INLINE void multiply_floats(TensorType type, int n, const uint8_t *w, int columns, const float *a, float *out,
                            size_t out_stride, bool add) {
    RF acc[STEPS][TILE];
    UNROLL for (int step = 0; step < STEPS; step++) UNROLL for (int t = 0; t < n; t++) acc[step][t] = rf_set(0);
    for (int k = 0; k < columns; k++) UNROLL for (int step = 0; step < STEPS; step++) {
            const int at = k * BLOCK_ROWS + STEP_ROWS * step;
            const RF column = type == TYPE_F32   ? rf_load((const float *)w + at)
                              : type == TYPE_F16 ? rf_load_f16((const uint16_t *)w + at)
                                                 : rf_load_bf16((const uint16_t *)w + at);
            UNROLL for (int t = 0; t < n; t++) acc[step][t] = rf_fma(column, rf_set(a[k * TILE + t]), acc[step][t]);
        }
    UNROLL for (int step = 0; step < STEPS; step++) UNROLL for (int t = 0; t < n; t++)
        store_sums(out + t * out_stride + STEP_ROWS * step, acc[step][t], add);
}

/* Multiplies some of the `left` tokens from `token` on, all in one tile of the operand, and returns how many. */
typedef int (*Multiply)(const Weight *weight, const uint8_t *w, const Operand *in, int token, int left, float *out,
                        size_t out_stride, bool add);

/* Each type, for each number of tokens, becomes a function of its own: the constants fold into it. */
#define CODES(name, size, n, TYPE)                                                                                     \
    static __attribute__((noinline)) int name##_##size(const Weight *weight, const uint8_t *w, const Operand *in,      \
                                                       int token, int left, float *out, size_t out_stride, bool add) { \
        const OperandPair *a = in->pairs + (size_t)(token / TILE) * in->n_pairs * TILE + token % TILE;                 \
        (void)left;                                                                                                    \
        multiply_codes(TYPE_##TYPE, n, w, weight->n_pairs, a, out, out_stride, add);                                   \
        return n;                                                                                                      \
    }
#define FLOATS(name, size, n, TYPE)                                                                                    \
    static __attribute__((noinline)) int name##_##size(const Weight *weight, const uint8_t *w, const Operand *in,      \
                                                       int token, int left, float *out, size_t out_stride, bool add) { \
        const float *a = in->values + (size_t)(token / TILE) * in->columns * TILE + token % TILE;                      \
        (void)left;                                                                                                    \
        multiply_floats(TYPE_##TYPE, n, w, weight->columns, a, out, out_stride, add);                                  \
        return n;                                                                                                      \
    }

/* Tables by the number of tokens that are left, less one. */
#if REGISTER_TOKENS == 16
#define REGISTER_TILES(MAKE, name, TYPE)                                                                \
    MAKE(name, 1, 1, TYPE)                                                                              \
    MAKE(name, 2, 2, TYPE)                                                                              \
    MAKE(name, 3, 3, TYPE)                                                                              \
    MAKE(name, 4, 4, TYPE)                                                                              \
    MAKE(name, 5, 5, TYPE)                                                                              \
    MAKE(name, 6, 6, TYPE)                                                                              \
    MAKE(name, 8, 8, TYPE)                                                                              \
    MAKE(name, 12, 12, TYPE)                                                                            \
    MAKE(name, 16, 16, TYPE)                                                                            \
    static const Multiply name[TILE] = {name##_1,  name##_2,  name##_3,  name##_4, name##_5, name##_6,  \
                                        name##_6,  name##_8,  name##_8,  name##_8, name##_8, name##_12, \
                                        name##_12, name##_12, name##_12, name##_16};
#define ANY_TILES REGISTER_TILES
#else
#define REGISTER_TILES(MAKE, name, TYPE) \
    MAKE(name, 1, 1, TYPE)               \
    MAKE(name, 2, 2, TYPE)               \
    MAKE(name, 4, 4, TYPE)               \
    static const Multiply name[TILE] = {name##_1, name##_2, name##_2, [3 ... TILE - 1] = name##_4};
#define ANY_TILES(MAKE, name, TYPE) \
    MAKE(name, 1, 1, TYPE)          \
    MAKE(name, any, left, TYPE)     \
    static const Multiply name[TILE] = {name##_1, [1 ... TILE - 1] = name##_any};
#endif

#define MAKE_CODES(NAME, name, number) ANY_TILES(CODES, multiply_##name, NAME)
#define MAKE_FLOATS(NAME, name, number) REGISTER_TILES(FLOATS, multiply_##name, NAME)
QUANTISED_TYPES(MAKE_CODES)
FLOAT_TYPES(MAKE_FLOATS)

INLINE const Multiply *multiply_table(TensorType type) {
#define CASE(NAME, name, number) \
    case TYPE_##NAME: return multiply_##name;
    switch (type) {
        WEIGHT_TYPES(CASE)
    default: return NULL;
    }
#undef CASE
}

static void multiply(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                     size_t out_stride, bool add) {
    const Multiply *table = multiply_table(weight->type);
    for (int block = first; block < last; block++) {
        const uint8_t *w = weight->data + block * weight->block_bytes;
        for (int token = 0; token < n_tokens;) {
            const int room = TILE - token % TILE, left = n_tokens - token < room ? n_tokens - token : room;
            token += table[left - 1](weight, w, in, token, left,
                                     out + token * out_stride + (block - first) * BLOCK_ROWS, out_stride, add);
        }
    }
}

/* ---- activations -------------------------------------------------------------------------------- */

static void store_group(const float *x, OperandPair *out, int group) {
    const VF a = vf_load(x), b = vf_load(x + 16);
    const float largest = vf_largest(vf_max(vf_abs(a), vf_abs(b)));
    /* Below 2^-119 the quotient could overflow: such a group counts as zero. */
    const VF inverse = vf_set(largest > 0x1p-119f ? 127.0f / largest : 0.0f);
    vf_store_int8(out->codes + GROUP * group, vf_mul(a, inverse));
    vf_store_int8(out->codes + GROUP * group + 16, vf_mul(b, inverse));
    int32_t half[2];
    sum_halves(out->codes + GROUP * group, half);
    /* Codes cannot say NaN or infinity: the scale says it, and makes all products of the token NaN. */
    const float scale = vf_finite(a) && vf_finite(b) ? largest / 127.0f : NAN;
    const int32_t total = half[0] + half[1];
    out->scale[group] = scale;
    out->sum[group] = scale * (float)total;
    out->total[group] = total;
    out->half[2 * group] = (int16_t)half[0];
    out->half[2 * group + 1] = (int16_t)half[1];
}

static void store_operand(const float *x, Operand *out, int token, int first, int last) {
    const int tile = token / TILE, t = token % TILE;
    if (out->pairs) {
        OperandPair *pairs = out->pairs + (size_t)tile * out->n_pairs * TILE + t;
        for (int g = first; g < last; g++) store_group(x + (g - first) * GROUP, pairs + (size_t)(g / 2) * TILE, g % 2);
    }
    if (out->values) {
        float *values = out->values + (size_t)tile * out->columns * TILE + t;
        for (int k = first * GROUP; k < last * GROUP && k < out->columns; k++)
            values[(size_t)k * TILE] = x[k - first * GROUP];
    }
}

static float mean_of(const float *x, int n) {
    VF sum = vf_set(0);
    for (int i = 0; i < n; i += 16) sum = vf_add(sum, vf_keep(vf_load(x + i), n - i, 0));
    return vf_sum(sum) / (float)n;
}

static void norm(const float *x, const float *gain, bool centred, float eps, int n, float *out) {
    const VF mean = vf_set(centred ? mean_of(x, n) : 0);
    VF squares = vf_set(0);
    for (int i = 0; i < n; i += 16) {
        const VF v = vf_keep(vf_sub(vf_load(x + i), mean), n - i, 0);
        squares = vf_fma(v, v, squares);
    }
    const VF factor = vf_set(1.0f / sqrtf(vf_sum(squares) / (float)n + eps)), one = vf_set(1);
    for (int i = 0; i < n; i += 16) {
        const VF v = vf_mul(vf_sub(vf_load(x + i), mean), factor);
        vf_store(out + i, vf_keep(vf_mul(v, gain ? vf_load(gain + i) : one), n - i, 0));
    }
}

static void add(const float *y, float scale, float whole, int n, float *x) {
    const VF s = vf_set(scale), w = vf_set(whole);
    for (int i = 0; i < n; i += 16) vf_store(x + i, vf_mul(vf_fma(vf_load(y + i), s, vf_load(x + i)), w));
}

static void rotate(float *x, int n, const float *turn, int n_rotated, bool neox, float scale) {
    const int half = n_rotated / 2;
    for (int i = 0; i < half; i++) {
        float *a = neox ? x + i : x + 2 * i, *b = neox ? a + half : a + 1;
        const float c = turn[2 * i], s = turn[2 * i + 1], first = *a, second = *b;
        *a = first * c - second * s;
        *b = first * s + second * c;
    }
    for (int i = 0; i < n; i++) x[i] *= scale;
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

/* x / (1 + exp(-y)); the bound keeps exp finite where the quotient is all but 0 */
INLINE VF over_logistic(VF x, VF y) {
    const VF down = vf_exp(vf_sub(vf_set(0), vf_max(y, vf_set(-87.0f))));
    return vf_div(x, vf_add(vf_set(1), down));
}

/* gelu(x) = x / 2 (1 + tanh u) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3) */
INLINE VF activate(Activation activation, VF x) {
    if (activation == ACTIVATION_SILU) return over_logistic(x, x);
    if (activation == ACTIVATION_LOGISTIC) return over_logistic(vf_set(1), x);
    if (activation == ACTIVATION_RELU_SQUARED) return vf_mul(vf_max(vf_set(0), x), vf_max(vf_set(0), x));
    const VF cubic = vf_fma(vf_mul(x, x), vf_set(0.044715f), vf_set(1));
    return over_logistic(x, vf_mul(vf_mul(vf_set(2 * 0.7978845608f), x), cubic));
}

INLINE VF vf_min(VF a, VF b) { return vf_sub(vf_set(0), vf_max(vf_sub(vf_set(0), a), vf_sub(vf_set(0), b))); }

INLINE VF clamped_product(VF gate, VF up) {
    const VF g = vf_min(vf_set(7), gate), u = vf_min(vf_set(7), vf_max(vf_set(-7), up));
    return vf_mul(over_logistic(g, vf_mul(vf_set(1.702f), g)), vf_add(u, vf_set(1)));
}

INLINE void gate_all(Activation activation, const float *gate, const float *up, int n, float *out) {
    for (int i = 0; i < n; i += 16) {
        const VF u = vf_load(up + i);
        if (activation == ACTIVATION_CLAMPED) {
            vf_store(out + i, clamped_product(vf_load(gate + i), u));
            continue;
        }
        vf_store(out + i, gate ? vf_mul(activate(activation, vf_load(gate + i)), u) : activate(activation, u));
    }
}

static void gate(Activation activation, const float *gates, const float *up, int n, float *out) {
    switch (activation) {
    case ACTIVATION_SILU: gate_all(ACTIVATION_SILU, gates, up, n, out); return;
    case ACTIVATION_GELU: gate_all(ACTIVATION_GELU, gates, up, n, out); return;
    case ACTIVATION_CLAMPED: gate_all(ACTIVATION_CLAMPED, gates, up, n, out); return;
    case ACTIVATION_LOGISTIC: gate_all(ACTIVATION_LOGISTIC, gates, up, n, out); return;
    case ACTIVATION_RELU_SQUARED: gate_all(ACTIVATION_RELU_SQUARED, gates, up, n, out); return;
    }
}

/* softcap * tanh(x / softcap), as 1 - 2 / (exp(2 x) + 1); beyond 15 tanh is 1. */
INLINE VF capped(VF x, float softcap) {
    const VF limit = vf_set(30), two = vf_set(2);
    VF twice = vf_mul(x, vf_set(2 / softcap));
    twice = vf_sub(vf_set(0), vf_max(vf_sub(vf_set(0), limit), vf_sub(vf_set(0), twice))); /* min; NaN stays */
    const VF down = vf_div(two, vf_add(vf_exp(twice), vf_set(1)));
    return vf_mul(vf_set(softcap), vf_sub(vf_set(1), down));
}

static void cap(float scale, float softcap, int n, float *x) {
    float last[16];
    for (int i = 0; i < n; i += 16) {
        float *at = n - i < 16 ? last : x + i;
        if (at == last) memcpy(last, x + i, (size_t)(n - i) * sizeof(float));
        const VF scaled = vf_mul(vf_load(at), vf_set(scale));
        vf_store(at, softcap ? capped(scaled, softcap) : scaled);
        if (at == last) memcpy(x + i, last, (size_t)(n - i) * sizeof(float));
    }
}

/* ---- recurrences -------------------------------------------------------------------------------- */

static void convolve(const float *const *in, const float *const *taps, int n_taps, const float *bias, bool silu, int n,
                     float *out) {
    for (int i = 0; i < n; i += 16) {
        VF sum = vf_set(0);
        for (int t = 0; t < n_taps; t++) sum = vf_fma(vf_load(in[t] + i), vf_load(taps[t] + i), sum);
        if (bias) sum = vf_add(sum, vf_load(bias + i));
        vf_store(out + i, silu ? over_logistic(sum, sum) : sum);
    }
}

INLINE VF sum_of_parts(const VF *parts) { return vf_add(vf_add(parts[0], parts[1]), vf_add(parts[2], parts[3])); }

/* decay (state' key) is (decay state)' key: so the state is read twice and written once. */
static void recur(float *state, int n_keys, const float *key, const float *query, float decay, float rate,
                  bool corrects, const float *value, float *out) {
    enum { PARTS = 4 };
    VF change = vf_load(value), parts[PARTS];
    const VF keep = vf_set(decay);
    UNROLL for (int p = 0; p < PARTS; p++) parts[p] = vf_set(0);
    if (corrects) {
        for (int i = 0; i < n_keys; i += PARTS)
            UNROLL for (int p = 0; p < PARTS; p++) parts[p] =
                vf_fma(vf_load(state + 16 * (i + p)), vf_set(key[i + p]), parts[p]);
        change = vf_sub(change, vf_mul(keep, sum_of_parts(parts)));
        UNROLL for (int p = 0; p < PARTS; p++) parts[p] = vf_set(0);
    }
    change = vf_mul(vf_set(rate), change);
    for (int i = 0; i < n_keys; i += PARTS) UNROLL for (int p = 0; p < PARTS; p++) {
            float *at = state + 16 * (i + p);
            const VF next = vf_fma(vf_set(key[i + p]), change, vf_mul(keep, vf_load(at)));
            vf_store(at, next);
            if (out) parts[p] = vf_fma(next, vf_set(query[i + p]), parts[p]);
        }
    if (out) vf_store(out, sum_of_parts(parts));
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

/* A noise of at least g needs u > exp(-exp(-g)), and so 1 - u < exp(-g). `lead` - (logit - top) / temperature is that
 * g; 1 - u is at least the upper half of the inverted bits, over 2^32. A hundredth covers the rounding of all this. */
static bool may_win(const float *logits, const int32_t *ids, int32_t first, float top, float inverse_temperature,
                    uint64_t key, float lead) {
    float rest[16];
    for (int i = 0; i < 16; i++) rest[i] = (float)(uint32_t)(~token_bits(key, ids ? ids[i] : first + i) >> 32);
    const VF behind = vf_mul(vf_sub(vf_load(logits), vf_set(top)), vf_set(inverse_temperature));
    /* exp(-g) is at most 1.01 / 0.99 where it matters: a larger one wins anyway */
    const VF chance = vf_exp(vf_sub(vf_set(0), vf_max(vf_set(0), vf_sub(vf_set(lead), behind))));
    return vf_largest(vf_sub(vf_mul(chance, vf_set(0x1p32f * 1.01f)), vf_load(rest))) >= 0;
}

/* ---- attention ---------------------------------------------------------------------------------- */

enum { MAX_QUERIES = 6 };

/* Scores of n queries against n_blocks blocks of 16 positions, two at a time where the registers hold the sums: more
 * products under way. */
INLINE void score(int n, const Attention *a, const float *const *queries, int first_block, int n_blocks,
                  float (*scores)[POSITION_CHUNK]) {
    const bool two = 2 * n <= FLOAT_SUMS;
    for (int block = two ? first_block / 2 * 2 : first_block; block < n_blocks; block += two ? 2 : 1) {
        const uint16_t *keys = a->keys + (size_t)block * POSITION_BLOCK * a->head_size;
        const uint16_t *more = keys + (size_t)POSITION_BLOCK * a->head_size;
        VF acc[MAX_QUERIES][2];
        UNROLL for (int q = 0; q < n; q++) acc[q][0] = acc[q][1] = vf_set(0);
        for (int d = 0; d < a->head_size; d++) {
            if (d % 2 == 0) { /* two rows of 16 a line; as far ahead as in multiply_codes */
                __builtin_prefetch(keys + d * POSITION_BLOCK + 2048);
                if (two) __builtin_prefetch(more + d * POSITION_BLOCK + 2048);
            }
            const VF k = vf_load_f16(keys + d * POSITION_BLOCK);
            const VF l = two ? vf_load_f16(more + d * POSITION_BLOCK) : k;
            UNROLL for (int q = 0; q < n; q++) {
                const VF x = vf_set(queries[q][d]);
                acc[q][0] = vf_fma(k, x, acc[q][0]);
                if (two) acc[q][1] = vf_fma(l, x, acc[q][1]);
            }
        }
        UNROLL for (int q = 0; q < n; q++) {
            vf_store(scores[q] + block * POSITION_BLOCK, acc[q][0]);
            if (two) vf_store(scores[q] + (block + 1) * POSITION_BLOCK, acc[q][1]);
        }
    }
}

/* In place: exp(score - largest). Leaves the largest and the sum at the head of the partial result. */
INLINE void soften(float *scores, int n_hidden, int n_visible, float softcap, float *partial) {
    /* Lanes beyond the positions seen, on either side, may hold anything, NaN included. */
    const int first = n_hidden / 16 * 16, whole = n_visible / 16 * 16, rest = n_visible - whole;
    for (int p = first; softcap && p < n_visible; p += 16) vf_store(scores + p, capped(vf_load(scores + p), softcap));
    if (rest) vf_store(scores + whole, vf_keep(vf_load(scores + whole), rest, -INFINITY));
    for (int p = first; p < n_hidden; p++) scores[p] = -INFINITY;
    VF top = vf_set(-INFINITY), sum = vf_set(0);
    for (int p = first; p < n_visible; p += 16) top = vf_max(top, vf_load(scores + p));
    partial[0] = vf_largest(top);
    const VF shift = vf_set(partial[0]);
    for (int p = first; p < n_visible; p += 16) {
        VF e = vf_exp(vf_sub(vf_load(scores + p), shift));
        if (p == whole) e = vf_keep(e, rest, 0);
        vf_store(scores + p, e);
        if (p < n_hidden) { /* exp is never quite 0 */
            memset(scores + p, 0, (size_t)(n_hidden - p) * sizeof(float));
            e = vf_load(scores + p);
        }
        sum = vf_add(sum, e);
    }
    partial[1] = vf_sum(sum);
}

/* `width` x 16 dimensions of the values, weighted, for n queries. The positions that all of them see are read once; the
 * few before and after, which only some tokens see, query by query: the order of each sum is that of the positions. */
INLINE void weigh(int n, int width, const Attention *a, const int *n_hidden, const int *n_visible, int dimension,
                  const float (*scores)[POSITION_CHUNK], float *const *partials) {
    VF acc[MAX_QUERIES][4];
    UNROLL for (int q = 0; q < n; q++) UNROLL for (int c = 0; c < width; c++) acc[q][c] = vf_set(0);
    const int begin = n_hidden[n - 1], end = n_visible[0] < begin ? begin : n_visible[0];
    UNROLL for (int q = 0; q < n; q++) {
        const uint16_t *early = a->values + dimension + (size_t)n_hidden[q] * a->head_size;
        for (int p = n_hidden[q]; p < begin && p < n_visible[q]; p++, early += a->head_size)
            UNROLL for (int c = 0; c < width; c++) acc[q][c] =
                vf_fma(vf_load_f16(early + 16 * c), vf_set(scores[q][p]), acc[q][c]);
    }
    const uint16_t *values = a->values + dimension + (size_t)begin * a->head_size;
    for (int p = begin; p < end; p++, values += a->head_size) {
        for (int c = 0; c < width; c += 2) __builtin_prefetch(values + 16 * c + 2048);
        UNROLL for (int c = 0; c < width; c++) {
            const VF v = vf_load_f16(values + 16 * c);
            UNROLL for (int q = 0; q < n; q++) acc[q][c] = vf_fma(v, vf_set(scores[q][p]), acc[q][c]);
        }
    }
    UNROLL for (int q = 0; q < n; q++) {
        const uint16_t *rest = values;
        for (int p = end; p < n_visible[q]; p++, rest += a->head_size)
            UNROLL for (int c = 0; c < width; c++) acc[q][c] =
                vf_fma(vf_load_f16(rest + 16 * c), vf_set(scores[q][p]), acc[q][c]);
        UNROLL for (int c = 0; c < width; c++) vf_store(partials[q] + PARTIAL_HEAD + dimension + 16 * c, acc[q][c]);
    }
}

INLINE void attend_queries(int n, const Attention *a, int first) {
    float scores[MAX_QUERIES][POSITION_CHUNK];
    const int *n_visible = a->n_visible + first, *n_hidden = a->n_hidden + first;
    const int blocks = (n_visible[n - 1] + POSITION_BLOCK - 1) / POSITION_BLOCK;
    float *const *partials = a->partials + first;
    score(n, a, a->queries + first, n_hidden[0] / POSITION_BLOCK, blocks, scores);
    for (int q = 0; q < n; q++) soften(scores[q], n_hidden[q], n_visible[q], a->softcap, partials[q]);
    const int width = 4 * n <= FLOAT_SUMS ? 4 : 2 * n <= FLOAT_SUMS ? 2 : 1;
    int d = 0;
    for (; d + 16 * width <= a->head_size; d += 16 * width)
        weigh(n, width, a, n_hidden, n_visible, d, scores, partials);
    for (; d < a->head_size; d += 16) weigh(n, 1, a, n_hidden, n_visible, d, scores, partials);
}

#define ATTEND(n) \
    static __attribute__((noinline)) void attend_##n(const Attention *a, int first) { attend_queries(n, a, first); }
ATTEND(1)
ATTEND(2)
ATTEND(3)
ATTEND(4)
ATTEND(5)
ATTEND(6)

static void (*const attend_table[MAX_QUERIES])(const Attention *a, int first) = {
    attend_1, attend_2, attend_3, attend_4, attend_5, attend_6,
};

/* Each query's arithmetic is the same whichever queries are computed beside it. */
static void attend(const Attention *a) {
    const int n_parts = (a->n_queries + MAX_QUERIES - 1) / MAX_QUERIES;
    for (int part = 0, first = 0; part < n_parts; part++) { /* parts as even as possible */
        const int n = (a->n_queries - first + n_parts - part - 1) / (n_parts - part);
        attend_table[n - 1](a, first);
        first += n;
    }
}

static float exp_of(float x) {
    float lanes[16];
    vf_store(lanes, vf_exp(vf_set(x)));
    return lanes[0];
}

static void fold(const float *partials, size_t stride, int n_chunks, int head_size, const float *sink, float *out) {
    float top = partials[0], sum = partials[1];
    memcpy(out, partials + PARTIAL_HEAD, (size_t)head_size * sizeof(float));
    for (int c = 1; c < n_chunks; c++) {
        const float *partial = partials + c * stride;
        const float larger = partial[0] > top ? partial[0] : top;
        const float old = exp_of(top - larger), new = exp_of(partial[0] - larger);
        top = larger;
        sum = sum * old + partial[1] * new;
        for (int d = 0; d < head_size; d += 16)
            vf_store(out + d,
                     vf_fma(vf_load(partial + PARTIAL_HEAD + d), vf_set(new), vf_mul(vf_load(out + d), vf_set(old))));
    }
    float share = 1;
    if (sink) {
        const float larger = *sink > top ? *sink : top;
        share = exp_of(top - larger);
        sum = sum * share + exp_of(*sink - larger);
    }
    const VF inverse = vf_set(share / sum);
    for (int d = 0; d < head_size; d += 16) vf_store(out + d, vf_mul(vf_load(out + d), inverse));
}

/* ---- what the machine allows -------------------------------------------------------------------- */

static void read_all(const uint8_t *data, size_t bytes) {
    enum { SUMS = 4, STREAMS = 4, STEP = 512 }; /* one stream alone is a tenth slower */
    const size_t part = bytes / STREAMS;
    VF sums[SUMS];
    float out[16];
    UNROLL for (int i = 0; i < SUMS; i++) sums[i] = vf_set(0);
    for (size_t done = 0; done < part; done += STEP)
        for (int stream = 0; stream < STREAMS; stream++) {
            const uint8_t *p = data + stream * part + done;
            UNROLL for (int i = 0; i < 8; i++) __builtin_prefetch(p + 4096 + 64 * i);
            UNROLL for (int i = 0; i < 8; i++) sums[i % SUMS] =
                vf_add(sums[i % SUMS], vf_load((const float *)p + 16 * i));
        }
    vf_store(out, vf_add(vf_add(sums[0], sums[1]), vf_add(sums[2], sums[3])));
    escape(out);
}

/* As many chains as the registers hold beside their operands: more than the instruction's latency asks for. */
static int64_t dot_products(int rounds) {
    enum { REPEATS = 4, COLUMNS = 4 };
    uint8_t weights[4 * BLOCK_ROWS * COLUMNS] = {0};
    int8_t x[4 * COLUMNS * CHAINS] = {0};
    RI sums[CHAINS];
    float out[16];
    UNROLL for (int i = 0; i < CHAINS; i++) sums[i] = ri_set(0);
    for (int round = 0; round < rounds; round++) {
        for (int repeat = 0; repeat < REPEATS; repeat++) {
            escape(weights);
            escape(x);
            RCODES codes[COLUMNS];
            UNROLL for (int j = 0; j < COLUMNS; j++) codes[j] = codes_load(weights + 4 * BLOCK_ROWS * j);
            UNROLL for (int i = 0; i < CHAINS; i++) sums[i] = dot(sums[i], codes, x + 4 * COLUMNS * i, COLUMNS, 4);
        }
    }
    UNROLL for (int i = 1; i < CHAINS; i++) sums[0] = ri_add(sums[0], sums[i]);
    rf_store(out, rf_from_ri(sums[0]));
    escape(out);
    return (int64_t)rounds * REPEATS * CHAINS * COLUMNS * 4 * STEP_ROWS;
}

const Kernels ISA_KERNELS = {
    .name = ISA_NAME,
    .multiply = multiply,
    .store_operand = store_operand,
    .norm = norm,
    .add = add,
    .rotate = rotate,
    .gate = gate,
    .cap = cap,
    .attend = attend,
    .fold = fold,
    .convolve = convolve,
    .recur = recur,
    .to_float16 = to_float16,
    .largest = largest,
    .sum_exp = sum_exp,
    .may_win = may_win,
    .read_all = read_all,
    .dot_products = dot_products,
};
