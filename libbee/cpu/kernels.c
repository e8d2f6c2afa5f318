/* Every kernel of the CPU backend, written once against sixteen lanes and compiled once per instruction set. */
#include "kernels.h"
#include "amx.h"
#include "planar_grids.h"
#include "products.h"
#include "simd.h"
#include "simd_words.h"

#include "ops.h"
#include "sampling/sample.h"

#include <float.h>
#include <math.h>
#include <string.h>

QUANTISED_TYPES(MAKE_CODES)
FLOAT_TYPES(MAKE_FLOATS)

INLINE const Multiply *multiply_table(TensorType type) {
    switch (type) {
        WEIGHT_TYPES(FIND_TABLE)
    default: return NULL;
    }
}

static void multiply(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                     size_t out_stride, bool add) {
    multiply_blocks(multiply_table(weight->type), weight, first, last, in, n_tokens, out, out_stride, add);
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
    for (int i = 0; i < 2; i++) {
        out->half[2 * group + i] = (int16_t)half[i];
        out->biased[2 * group + i] = BIAS_BITS - BIASED_ZERO * half[i];
    }
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

static VF within(VF x, float bound) { return vf_max(vf_set(-bound), vf_min(vf_set(bound), x)); }

/* 32 numbers, or 16; the scale, as float16. */
static uint16_t store_codes(const float *x, int n, int8_t *codes) {
    const VF a = vf_load(x), b = vf_load(x + n - 16);
    const uint16_t half = f16_from_float(vf_largest(vf_max(vf_abs(a), vf_abs(b))) / 127.0f);
    const float scale = float_from_f16(half);
    const bool fits = vf_finite(a) && vf_finite(b) && 127.0f * scale <= 65504.0f;
    if (fits && scale > 0) {
        vf_store_int8(codes, within(vf_div(a, vf_set(scale)), 127));
        vf_store_int8(codes + n - 16, within(vf_div(b, vf_set(scale)), 127));
    } else {
        memset(codes, 0, (size_t)n);
    }
    return fits ? half : 0x7e00; /* NaN */
}

static void to_codes(const float *x, int8_t *codes, uint16_t *scales, int n) {
    for (int i = 0; i < n; i += CACHE_BLOCK)
        scales[i / CACHE_BLOCK] = store_codes(x + i, n - i < CACHE_BLOCK ? n - i : CACHE_BLOCK, codes + i);
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

enum { MAX_CODE_BLOCKS = 2 };

/* Into the second-level cache what is at work later: while it is the keys' turn the values, line by line as they lie,
 * and while it is the values' the keys of the head that follows. So all of it comes from memory long before it is
 * needed, in long stretches, though sums go through it in short ones. */
INLINE void prefetch_later(const uint8_t *line) { __builtin_prefetch(line, 0, 2); }

/* Scores of n queries against n_blocks blocks of 16 positions, two at a time where the registers hold the sums: more
 * products under way. */
INLINE void score(int n, const Attention *a, const float *const *queries, int first_block, int n_blocks,
                  float (*scores)[POSITION_CHUNK]) {
    const bool two = 2 * n <= FLOAT_SUMS;
    for (int block = two ? first_block / 2 * 2 : first_block; block < n_blocks; block += two ? 2 : 1) {
        const size_t before = (size_t)block * POSITION_BLOCK * a->head_size;
        const uint16_t *keys = (const uint16_t *)a->keys + before;
        const uint16_t *more = keys + (size_t)POSITION_BLOCK * a->head_size;
        const uint8_t *later = a->values + sizeof(uint16_t) * before;
        VF acc[MAX_QUERIES][2];
        UNROLL for (int q = 0; q < n; q++) acc[q][0] = acc[q][1] = vf_set(0);
        for (int d = 0; d < a->head_size; d++) {
            if (d % 2 == 0) { /* two rows of 16 a line */
                prefetch_later(later + 32 * d);
                if (two) prefetch_later(later + 32 * (a->head_size + d));
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

/* Of keys and values in 8 bits, queries and weights become integers of 16 bits: 2^-16 of the largest of a block is far
 * less than what the codes' own rounding lost, and sums of products with codes are exact. */
typedef struct Words {
    int16_t queries[MAX_QUERIES][MAX_HEAD_SIZE], weights[MAX_QUERIES][MAX_CODE_BLOCKS][POSITION_CHUNK];
    float query_scales[MAX_QUERIES][MAX_HEAD_SIZE / CACHE_BLOCK];
} Words;

/* 32 numbers, or 16; returns their scale. */
INLINE float store_words(const float *x, int n, int16_t *words) {
    const VF a = vf_load(x), b = vf_load(x + n - 16);
    const float largest = vf_largest(vf_max(vf_abs(a), vf_abs(b)));
    /* Below 2^-110 the quotient could overflow: such a block counts as zero. */
    const VF inverse = vf_set(largest > 0x1p-110f ? (float)INT16_MAX / largest : 0);
    vf_store_int16(words, vf_mul(a, inverse));
    vf_store_int16(words + n - 16, vf_mul(b, inverse));
    return vf_finite(a) && vf_finite(b) ? largest / (float)INT16_MAX : NAN;
}

INLINE void store_queries(int n, int head_size, const float *const *queries, Words *words) {
    for (int q = 0; q < n; q++)
        for (int d = 0; d < head_size; d += CACHE_BLOCK)
            words->query_scales[q][d / CACHE_BLOCK] = store_words(
                queries[q] + d, head_size - d < CACHE_BLOCK ? head_size - d : CACHE_BLOCK, words->queries[q] + d);
}

/* The same of keys in 8 bits, with queries that store_queries has put there: the products of 32 dimensions are summed
 * up before their scale is known. */
INLINE void score_codes(int n, const Attention *a, const Words *words, int first_block, int n_blocks,
                        float (*scores)[POSITION_CHUNK]) {
    const bool two = 2 * n <= FLOAT_SUMS;
    const size_t block_bytes = key_block_bytes(a->head_size);
    for (int block = two ? first_block / 2 * 2 : first_block; block < n_blocks; block += two ? 2 : 1) {
        for (int first = 0; first < a->head_size; first += CACHE_BLOCK) {
            const uint8_t *scales = a->keys + (size_t)block * block_bytes + key_scales_at(first);
            const uint8_t *later = a->values + (scales - a->keys);
            const int8_t *codes = (const int8_t *)scales + key_code_at(0, 0);
            const int width = a->head_size - first < CACHE_BLOCK ? a->head_size - first : CACHE_BLOCK;
            SUMS acc[MAX_QUERIES][2];
            UNROLL for (int q = 0; q < n; q++) acc[q][0] = acc[q][1] = sums_zero();
            prefetch_later(later);
            if (two) prefetch_later(later + block_bytes);
            for (int d = 0; d < width; d += 2, codes += 2 * POSITION_BLOCK) {
                if (d % 4 == 0) { /* four dimensions of 16 positions a line */
                    prefetch_later(later + key_code_at(d, 0));
                    if (two) prefetch_later(later + block_bytes + key_code_at(d, 0));
                }
                const WORDS k = words_load(codes), l = two ? words_load(codes + block_bytes) : k;
                UNROLL for (int q = 0; q < n; q++) {
                    const int16_t *pair = words->queries[q] + first + d;
                    acc[q][0] = sums_dot(acc[q][0], k, pair);
                    if (two) acc[q][1] = sums_dot(acc[q][1], l, pair);
                }
            }
            const VF s = vf_load_f16((const uint16_t *)scales);
            const VF t = two ? vf_load_f16((const uint16_t *)(scales + block_bytes)) : s;
            UNROLL for (int q = 0; q < n; q++) {
                const VF scale = vf_set(words->query_scales[q][first / CACHE_BLOCK]);
                float *at = scores[q] + block * POSITION_BLOCK, *more = at + POSITION_BLOCK;
                const VF x = vf_mul(vf_from_sums(acc[q][0]), scale);
                vf_store(at, first ? vf_fma(s, x, vf_load(at)) : vf_mul(s, x));
                if (two) {
                    const VF y = vf_mul(vf_from_sums(acc[q][1]), scale);
                    vf_store(more, first ? vf_fma(t, y, vf_load(more)) : vf_mul(t, y));
                }
            }
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

/* `width` x 16 dimensions of the values, weighted, for n queries. The positions that all queries see are read once; the
 * few before and after, which only some tokens see, query by query: the order of each sum is that of the positions. */
INLINE void weigh(int n, int width, const Attention *a, const int *n_hidden, const int *n_visible, int dimension,
                  const float (*weights)[POSITION_CHUNK], float *const *partials) {
    const size_t head_size = (size_t)a->head_size;
    const uint16_t *all = (const uint16_t *)a->values + dimension;
    VF acc[MAX_QUERIES][4];
    UNROLL for (int q = 0; q < n; q++) UNROLL for (int c = 0; c < width; c++) acc[q][c] = vf_set(0);
    const int begin = n_hidden[n - 1], end = n_visible[0] < begin ? begin : n_visible[0];
    UNROLL for (int q = 0; q < n; q++) {
        const uint16_t *early = all + (size_t)n_hidden[q] * head_size;
        for (int p = n_hidden[q]; p < begin && p < n_visible[q]; p++, early += head_size)
            UNROLL for (int c = 0; c < width; c++) acc[q][c] =
                vf_fma(vf_load_f16(early + 16 * c), vf_set(weights[q][p]), acc[q][c]);
    }
    const uint16_t *values = all + (size_t)begin * head_size;
    const uint8_t *later = a->next + sizeof(uint16_t) * POSITION_CHUNK * (size_t)dimension;
    for (int p = begin; p < end; p++, values += head_size) {
        for (int c = 0; c < width; c += 2) prefetch_later(later + 32 * (p * width + c));
        UNROLL for (int c = 0; c < width; c++) {
            const VF v = vf_load_f16(values + 16 * c);
            UNROLL for (int q = 0; q < n; q++) acc[q][c] = vf_fma(v, vf_set(weights[q][p]), acc[q][c]);
        }
    }
    UNROLL for (int q = 0; q < n; q++) {
        const uint16_t *rest = values;
        for (int p = end; p < n_visible[q]; p++, rest += head_size)
            UNROLL for (int c = 0; c < width; c++) acc[q][c] =
                vf_fma(vf_load_f16(rest + 16 * c), vf_set(weights[q][p]), acc[q][c]);
        UNROLL for (int c = 0; c < width; c++) vf_store(partials[q] + PARTIAL_HEAD + dimension + 16 * c, acc[q][c]);
    }
}

/* Of 32 dimensions, what makes weights of positions [hidden, visible) integers that have the values' scales in them: 0
 * for all others of [begin, end). Returns what sums of products with those are to be multiplied by. */
INLINE float weight_factors(const Attention *a, int dimension, int begin, int end, int hidden, int visible,
                            float *factors) {
    const uint16_t *scales = (const uint16_t *)(a->values + value_scales_at(dimension));
    const VF zero = vf_set(0);
    VF top = zero, poison = zero; /* a maximum forgets NaN, so a sum remembers it */
    const uint8_t *later = a->next + POSITION_CHUNK * (size_t)a->head_size + value_scales_at(dimension);
    for (int p = begin; p < end; p += 16) {
        const int seen = visible - p;
        if (p % 32 == 0) prefetch_later(later + 2 * p); /* what weigh_codes leaves of the next head's keys */
        vf_store(factors + p, seen > 0 ? vf_keep(vf_load_f16(scales + p), seen, 0) : zero);
        if (p < hidden) memset(factors + p, 0, (size_t)(hidden - p < 16 ? hidden - p : 16) * sizeof(float));
        top = vf_max(vf_load(factors + p), top);
        poison = vf_fma(vf_load(factors + p), zero, poison);
    }
    const float largest = vf_largest(top) + vf_sum(poison);
    const VF inverse = vf_set(largest > 0 ? (float)INT16_MAX / largest : 0);
    for (int p = begin; p < end; p += 16) vf_store(factors + p, vf_mul(vf_load(factors + p), inverse));
    return largest / (float)INT16_MAX;
}

/* Weights are at most 1. Positions that a query does not see get 0, whatever lies there. */
INLINE void store_weights(int n, const Attention *a, const int *n_hidden, const int *n_visible, int dimension, int at,
                          const float (*scores)[POSITION_CHUNK], Words *words, float *sum_scales) {
    const int begin = n_hidden[0] / 16 * 16, end = n_visible[n - 1];
    float factors[POSITION_CHUNK];
    for (int q = 0; q < n; q++) {
        if (q && n_hidden[q] == n_hidden[q - 1] && n_visible[q] == n_visible[q - 1])
            sum_scales[q] = sum_scales[q - 1];
        else
            sum_scales[q] = weight_factors(a, dimension, begin, end, n_hidden[q], n_visible[q], factors);
        for (int p = begin; p < end; p += 16)
            vf_store_int16(words->weights[q][at] + p, vf_mul(vf_load(scores[q] + p), vf_load(factors + p)));
    }
}

/* `width` x 16 dimensions of values in 8 bits, for n queries. */
INLINE void weigh_codes(int n, int width, const Attention *a, int begin, int end, int dimension, const Words *words,
                        const float (*sum_scales)[MAX_QUERIES], float *const *partials) {
    const size_t head_size = (size_t)a->head_size;
    const int8_t *values = (const int8_t *)a->values + value_code_at(a->head_size, begin, dimension);
    const uint8_t *later = a->next + POSITION_CHUNK * (size_t)dimension;
    SUMS acc[MAX_QUERIES][4];
    UNROLL for (int q = 0; q < n; q++) UNROLL for (int c = 0; c < width; c++) acc[q][c] = sums_zero();
    for (int p = begin; p < end; p += 2, values += 2 * head_size) {
        for (int c = 0; c < width; c += 2) prefetch_later(later + 16 * (p * width + 2 * c));
        UNROLL for (int c = 0; c < width; c++) {
            const WORDS v = words_load(values + 32 * c);
            UNROLL for (int q = 0; q < n; q++) acc[q][c] = sums_dot(acc[q][c], v, words->weights[q][c / 2] + p);
        }
    }
    UNROLL for (int q = 0; q < n; q++) UNROLL for (int c = 0; c < width; c++) vf_store(
        partials[q] + PARTIAL_HEAD + dimension + 16 * c, vf_mul(vf_from_sums(acc[q][c]), vf_set(sum_scales[c / 2][q])));
}

/* How many times 16 dimensions of the values the registers hold the sums of. */
enum { WIDEST = 2 * MAX_CODE_BLOCKS };

INLINE int widest(int n) { return 4 * n <= FLOAT_SUMS ? WIDEST : 2 * n <= FLOAT_SUMS ? 2 : 1; }

INLINE void attend_queries(int n, const Attention *a, int first) {
    float scores[MAX_QUERIES][POSITION_CHUNK];
    const int *n_visible = a->n_visible + first, *n_hidden = a->n_hidden + first;
    const int blocks = (n_visible[n - 1] + POSITION_BLOCK - 1) / POSITION_BLOCK;
    float *const *partials = a->partials + first;
    score(n, a, a->queries + first, n_hidden[0] / POSITION_BLOCK, blocks, scores);
    for (int q = 0; q < n; q++) soften(scores[q], n_hidden[q], n_visible[q], a->softcap, partials[q]);
    for (int d = 0; d < a->head_size;) {
        const int width = d + 16 * widest(n) <= a->head_size ? widest(n) : 1;
        if (width == 1)
            weigh(n, 1, a, n_hidden, n_visible, d, scores, partials);
        else
            weigh(n, widest(n), a, n_hidden, n_visible, d, scores, partials);
        d += 16 * width;
    }
}

/* Zeros before and behind the blocks of positions that soften has looked at. */
INLINE void clear_unseen(float *scores, int begin, int end, int hidden, int visible) {
    const int first = hidden / 16 * 16, behind = (visible + 15) / 16 * 16;
    if (first > begin) memset(scores + begin, 0, (size_t)(first - begin) * sizeof(float));
    if (end > behind) memset(scores + behind, 0, (size_t)(end - behind) * sizeof(float));
}

INLINE void attend_to_codes(int n, const Attention *a, int first) {
    float scores[MAX_QUERIES][POSITION_CHUNK], sum_scales[MAX_CODE_BLOCKS][MAX_QUERIES];
    Words words;
    const int *n_visible = a->n_visible + first, *n_hidden = a->n_hidden + first;
    const int blocks = (n_visible[n - 1] + POSITION_BLOCK - 1) / POSITION_BLOCK;
    const int begin = n_hidden[0] / POSITION_BLOCK * POSITION_BLOCK, end = blocks * POSITION_BLOCK;
    float *const *partials = a->partials + first;
    store_queries(n, a->head_size, a->queries + first, &words);
    score_codes(n, a, &words, n_hidden[0] / POSITION_BLOCK, blocks, scores);
    for (int q = 0; q < n; q++) {
        soften(scores[q], n_hidden[q], n_visible[q], a->softcap, partials[q]);
        clear_unseen(scores[q], begin, end, n_hidden[q], n_visible[q]);
    }
    for (int d = 0; d < a->head_size;) {
        const int width = d + 16 * widest(n) <= a->head_size ? widest(n) : 1;
        for (int block = d; block < d + 16 * width; block += CACHE_BLOCK)
            if (block % CACHE_BLOCK == 0)
                store_weights(n, a, n_hidden, n_visible, block, (block - d) / CACHE_BLOCK, scores, &words,
                              sum_scales[(block - d) / CACHE_BLOCK]);
        if (width == 1)
            weigh_codes(n, 1, a, begin, n_visible[n - 1], d, &words, sum_scales, partials);
        else
            weigh_codes(n, widest(n), a, begin, n_visible[n - 1], d, &words, sum_scales, partials);
        d += 16 * width;
    }
}

#define ATTEND(n)                                                                                                    \
    static __attribute__((noinline)) void attend_##n(const Attention *a, int first) { attend_queries(n, a, first); } \
    static __attribute__((noinline)) void attend_codes_##n(const Attention *a, int first) {                          \
        attend_to_codes(n, a, first);                                                                                \
    }
ATTEND(1)
ATTEND(2)
ATTEND(3)
ATTEND(4)
ATTEND(5)
ATTEND(6)
#if MAX_QUERIES > 6
_Static_assert(MAX_QUERIES == 8, "a function for each number of queries");
ATTEND(7)
ATTEND(8)
#define SEVEN_AND_EIGHT(name) , name##_7, name##_8
#else
#define SEVEN_AND_EIGHT(name)
#endif
#define ALL_ATTEND(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6 SEVEN_AND_EIGHT(name)}

static void (*const attend_table[][MAX_QUERIES])(const Attention *a, int first) = {
    [BEE_KV_F16] = ALL_ATTEND(attend),
    [BEE_KV_Q8_0] = ALL_ATTEND(attend_codes),
};

/* Each query's arithmetic is the same whichever queries are computed beside it. */
static void attend(const Attention *a) {
    const int n_parts = (a->n_queries + MAX_QUERIES - 1) / MAX_QUERIES;
    for (int part = 0, first = 0; part < n_parts; part++) { /* parts as even as possible */
        const int n = (a->n_queries - first + n_parts - part - 1) / (n_parts - part);
        attend_table[a->type][n - 1](a, first);
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

#define OTHER_KERNELS                                                                                       \
    .store_operand = store_operand, .norm = norm, .add = add, .rotate = rotate, .gate = gate, .cap = cap,   \
    .attend = attend, .fold = fold, .convolve = convolve, .recur = recur, .to_float16 = to_float16,         \
    .to_codes = to_codes, .largest = largest, .sum_exp = sum_exp, .may_win = may_win, .read_all = read_all, \
    .dot_products = dot_products

const Kernels ISA_KERNELS = {.name = ISA_NAME, .multiply = multiply, OTHER_KERNELS};

#if defined(BEE_ISA_AVX512) && defined(BEE_HAVE_AVX512_VBMI)
static void multiply_any(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                         size_t out_stride, bool add) {
    const CodeKind kind = traits_of(weight->type).kind;
    if (kind == GRID_INDICES || kind == NIBBLE_TABLE)
        bee_multiply_planar_grids(weight, first, last, in, n_tokens, out, out_stride, add);
    else
        multiply(weight, first, last, in, n_tokens, out, out_stride, add);
}

const Kernels bee_kernels_avx512_vbmi = {
    .name = "avx512_vbmi", .planar_grids = true, .multiply = multiply_any, OTHER_KERNELS};

#if defined(BEE_HAVE_AMX)
static void multiply_tiles(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                           size_t out_stride, bool add) {
    bee_multiply_tiles(weight, first, last, in, n_tokens, out, out_stride, add, multiply_any);
}

const Kernels bee_kernels_amx = {.name = "amx", .planar_grids = true, .multiply = multiply_tiles, OTHER_KERNELS};
#endif
#endif
