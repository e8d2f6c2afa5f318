/* Products of a matrix and a few tokens, written once against the lanes of simd.h. What includes this says of which
 * types it makes functions, and how they are found. */
#ifndef BEE_PRODUCTS_H
#define BEE_PRODUCTS_H

#include "packed.h"
#include "simd.h"

/* Weights are multiplied STEP_ROWS rows of a block at a time: as many as let 32 columns of them stay in registers while
 * the tokens go by. RF, RI and RCODES hold a float, an int32 and four codes of each of these rows. */
#if STEP_ROWS == 16
typedef VF RF;
typedef VI RI;
#define rf_load vf_load
#define rf_load_f16 vf_load_f16
#define rf_load_bf16 vf_load_bf16
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

/* Traits that are looked up and nothing else: compilers that see them changed know them too late to lay loops out,
 * which cost AVX2 a tenth. */
#if PLANAR_GRIDS
#define TRAITS_HERE(type) packed_traits(type, true)
#else
#define TRAITS_HERE(type) traits_of(type)
#endif

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

#if TILE_SUMS
/* Sums over both halves of a pair's groups, or in the first place over all of a group: amx.c. */
typedef struct TileSums {
    _Alignas(64) int32_t of[2][2][TILE][BLOCK_ROWS];
} TileSums;
_Static_assert(HALF_STEP == sizeof((TileSums *)0)->of[0][0], "where dot looks for the other half");
enum { TILE_PAIRS = 4 };

INLINE void tile_multiply(const RCODES *codes, const int8_t *x, size_t x_stride, bool halves,
                          int32_t out[2][TILE][BLOCK_ROWS]);
#endif

/* Where a pair's parts are, and its place in the span. */
typedef struct Pair {
    const uint8_t *span, *codes, *small, *scales;
    int index;
    const int8_t *by_place; /* the tokens' activations as codes of the planar form want them, 64 columns each */
#if TILE_SUMS
    const TileSums *sums;
#endif
} Pair;

/* Pair p of the span at w. */
INLINE Pair pair_of_span(WeightTraits t, const uint8_t *w, int p) {
    const uint8_t *small = w + span_pairs(t) * code_bytes(t), *scales = small + span_pairs(t) * small_scale_bytes(t);
    return (Pair){w, w + p * code_bytes(t), small + p * small_scale_bytes(t), scales, .index = p};
}

INLINE void load_threes(const uint8_t *w, RCODES *codes) {
    const RCODES vectors[3] = {codes_load(w), codes_load(w + 64), codes_load(w + 128)};
    UNROLL for (int j = 0; j < 6; j++) codes[j] = codes_part(vectors[j / 2], -3 * (j % 2), 7);
    UNROLL for (int j = 6; j < 8; j++) codes[j] =
        codes_join(codes_part(vectors[2 * (j - 6)], -6, 3), vectors[1], 2 - j, 4);
}

/* The codes of one group, of the step's rows. */
INLINE void load_integers(WeightTraits t, int group, int step, const uint8_t *w, RCODES *codes) {
    w += 4 * STEP_ROWS * step;
    if (t.bits == 8) {
        UNROLL for (int j = 0; j < 8; j++) codes[j] = codes_flip(codes_load(w + 512 * group + 64 * j), WIDE_FLIP);
        return;
    }
    if (t.bits == 4) {
        UNROLL for (int j = 0; j < 8; j++) codes[j] = group ? codes_high(w + 64 * j) : codes_low(w + 64 * j);
        return;
    }
    if (t.bits == 3) {
        load_threes(w + 192 * group, codes);
        return;
    }
    const uint8_t *twos = w + (t.bits & 4 ? 512 : 0), *ones = twos + (t.bits & 2 ? 256 : 0);
    UNROLL for (int j = 0; j < 8; j++) {
        if (t.bits & 4) codes[j] = group ? codes_upper(w + 64 * j) : codes_low(w + 64 * j);
        if (t.bits & 2) {
            const RCODES plane = codes_load(twos + 128 * group + 64 * (j / 4));
            codes[j] =
                t.bits & 4 ? codes_join(codes[j], plane, 4 - 2 * (j % 4), 0x30) : codes_part(plane, -2 * (j % 4), 3);
        }
        if (t.bits & 1) {
            const RCODES plane = codes_load(ones + 64 * group);
            codes[j] = t.bits == 1 ? codes_part(plane, 1 - j, 2) : codes_join(codes[j], plane, 4 - j, 16);
        }
    }
}

INLINE void load_nibbles(TensorType type, int group, int step, const uint8_t *w, RCODES *codes) {
    NibbleTable table = table_of(type);
    if (traits_of(type).bits == 8)
        for (int i = 0; i < 4; i++) table.words[i] ^= 0x01010101u * WIDE_FLIP;
    w += 4 * STEP_ROWS * step;
    UNROLL for (int j = 0; j < 8; j++) {
#if PLANAR_GRIDS
        /* what is above the nibble does not count */
        codes[j] = codes_of_four_bits(table.words, codes_moved(codes_load(w + 64 * j), -4 * group));
#else
        codes[j] = codes_look_up(table.words, group ? codes_upper(w + 64 * j) : codes_low(w + 64 * j));
#endif
    }
}

/* Higher bits of the entries of each row, as many as they have. */
INLINE RI load_high_bits(const uint8_t *p, int bits, int row) {
    return bits == 8 ? ri_load_u8(p + row) : bits == 16 ? ri_load_u16(p + 2 * row) : ri_load(p + 4 * row);
}

#if PLANAR_GRIDS
/* Codes of digits of three bits, by these and the sign above them. */
INLINE NibbleTable codes_of_threes(TensorType type) {
    const NibbleTable iq3_s = {{0x16141210u, 0x1e1c1a18u, 0x080a0c0eu, 0x00020406u}},
                      iq3_xxs = {{0x5a524a42u, 0x7c726a62u, 0x222a323au, 0x000a121au}};
    return type == TYPE_IQ3_S ? iq3_s : iq3_xxs;
}

/* Codes of digits of two bits, by six: the digit is bits 0 and 1 and its sign bit 4, or bits 2 and 3 and bit 5. What
 * IQ1_M's have in place of signs are those of their eighths; IQ1_S's are known apart. */
#define FIRST_DIGITS(P, M) {P, P, P, P, M, M, M, M, P, P, P, P, M, M, M, M}
#define ALL_FOUR(byte) (0x01010101u * (byte))
#define THREE(p) ALL_FOUR(p & 255), ALL_FOUR(p >> 8 & 255), ALL_FOUR(p >> 16), 0
#define SECOND_DIGITS(P, M) {THREE(P), THREE(P), THREE(M), THREE(M)}
static const uint32_t iq2_digits[2][16] = {FIRST_DIGITS(0x564433u, 0x001223u), SECOND_DIGITS(0x564433u, 0x001223u)},
                      iq1_m_digits[2][16] = {FIRST_DIGITS(0x120a02u, 0x100800u), SECOND_DIGITS(0x120a02u, 0x100800u)},
                      iq1_s_digits[2][16] = {FIRST_DIGITS(0x100800u, 0x100800u), SECOND_DIGITS(0x100800u, 0x100800u)};

/* The digits of a register of entries' halves. */
INLINE void load_halves(TensorType type, int number, const uint8_t *w, RCODES *halves) {
    const WeightTraits t = packed_traits(type, true);
    const int registers = planar_registers(t), more = planar_more(t), first_bits = planar_first_bits(t);
    const uint8_t *firsts = planar_halves(type), *planes = w + 64 * registers;
    const RCODES second = codes_load(w + 64 * number);
    RCODES first = second;
    if (more && registers * more < 8)
        first = codes_with(second, codes_of_nibbles(planes, more * number), (1 << more) - 1);
    else if (more)
        first = codes_with(second, codes_moved(codes_load(planes), -more * number), (1 << more) - 1);
    halves[0] = codes_from_table(firsts, first_bits, first);
    halves[1] = codes_from_table(firsts + (1 << first_bits), 8, second);
}

/* Entries of four columns, 16 columns of a group. */
INLINE void load_entries_of_four(TensorType type, int number, const uint8_t *w, RCODES signs, RCODES *codes) {
    const NibbleTable table = codes_of_threes(type);
    RCODES halves[2];
    load_halves(type, number, w, halves);
    UNROLL for (int half = 0; half < 2; half++) {
        const RCODES digits = codes_with(halves[half], codes_moved(signs, 3 - (number % 2 * 2 + half)), 0x88);
        codes[2 * half] = codes_of_four_bits(table.words, digits);
        codes[2 * half + 1] = codes_of_four_bits(table.words, codes_moved(digits, -4));
    }
}

/* Entries of eight columns, a group. */
INLINE void load_entries_of_eight(TensorType type, int number, const uint8_t *w, RCODES signs, RCODES *codes) {
    const WeightTraits t = packed_traits(type, true);
    const uint32_t (*tables)[16] = t.flags & SIGNS ? iq2_digits : signs_of_entries(t) ? iq1_m_digits : iq1_s_digits;
    RCODES halves[2];
    load_halves(type, number, w, halves);
    UNROLL for (int half = 0; half < 2; half++) {
        const RCODES digits = half ? codes_odd(halves[0], halves[1]) : codes_even(halves[0], halves[1]);
        const RCODES eighths = !signs_of_entries(t) ? signs : half ? codes_odd(signs, signs) : codes_even(signs, signs);
        UNROLL for (int two = 0; two < 2; two++) {
            RCODES index = codes_moved(digits, -4 * two);
            if (t.flags & SIGNS) index = codes_with(index, codes_moved(signs, 4 - 4 * half - 2 * two), 0x30);
            if (signs_of_entries(t)) index = codes_with(index, eighths, 0x30);
            UNROLL for (int k = 0; k < 2; k++) codes[4 * half + 2 * two + k] = codes_of_six_bits(tables[k], index);
        }
    }
}

INLINE void load_planes(TensorType type, int group, const uint8_t *w, RCODES *codes) {
    const WeightTraits t = packed_traits(type, true);
    const int registers = planar_registers(t);
    const uint8_t *behind = w + registers * (64 + 8 * planar_more(t));
    const RCODES signs = t.flags & SIGNS       ? codes_load(behind + 64 * group)
                         : signs_of_entries(t) ? codes_where_set(behind + 8 * group, 0x30)
                                               : codes_set(0);
    if (t.entry == 8)
        load_entries_of_eight(type, group, w, signs, codes);
    else
        UNROLL for (int i = 0; i < 2; i++) load_entries_of_four(type, 2 * group + i, w, signs, codes + 4 * i);
}
#endif

INLINE void load_entries(TensorType type, int group, int step, const uint8_t *w, RCODES *codes) {
    const WeightTraits t = traits_of(type);
    const uint32_t *grid = grid_of(type);
    const int per_group = GROUP / t.entry, more = high_bits(t), row = STEP_ROWS * step;
    const uint8_t *upper = w + 2 * per_group * BLOCK_ROWS, *signs = upper + per_group * more / 4 * BLOCK_ROWS;
    const RI high = more ? load_high_bits(upper, 2 * per_group * more, row) : ri_set(0);
    UNROLL for (int i = 0; i < per_group; i++) {
        const int number = group * per_group + i, at = number * more;
        RI index = ri_load_u8(w + number * BLOCK_ROWS + row), eighth = ri_set(0);
        if (t.index_bits > 8) {
            const RI moved = ri_left(high, at < 8 ? 8 - at : 0);
            index = ri_add(index, ri_bits(moved, at < 8 ? 0 : at - 8, (1 << t.index_bits) - 256));
        }
        if (t.flags & EIGHTHS) /* two more where the sign is not set */
            eighth = ri_bits(ri_add(ri_bits(high, at + more - 1, 1), ri_set(-1)), 0, 0x02020202);
        if (t.entry == 4)
            codes[i] = codes_from_grid(grid, index, eighth);
        else
            codes_pair_from_grid(grid, index, eighth, codes + 2 * i);
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
#if PLANAR_GRIDS
    if (t.kind == GRID_INDICES) load_planes(type, group, at.codes, codes);
#else
    if (t.kind == GRID_INDICES) load_entries(type, group, step, at.codes, codes);
#endif
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
    RF scale[2], minimum;
} GroupScales;

INLINE RF power_scales(const uint8_t *p) { /* as power_scale */
    const RI exponent = ri_load_u8(p);
    const RI usual = ri_add(ri_left(exponent, 23), ri_set(-(1 << 23)));
    return rf_from_bits(ri_largest(usual, ri_left(ri_add(exponent, ri_set(1)), 21)));
}

/* As small_float_scale, by way of float16: many processors take more than a hundred cycles for a product with a
 * subnormal float, which the bits of small numbers would be in place, and no longer than usual for a conversion. */
INLINE RF small_float_scales(const uint8_t *p) {
    uint16_t halves[STEP_ROWS];
    UNROLL for (int row = 0; row < STEP_ROWS; row++) halves[row] = (uint16_t)(p[row] << 7);
    return rf_mul(rf_load_f16(halves), rf_set(0x1p7f));
}

INLINE GroupScales load_scales(WeightTraits t, int group, int step, Pair at) {
    const int row = STEP_ROWS * step, halves = t.flags & HALVES ? 2 : 1;
    GroupScales g;
    if (t.flags & (EXPONENT | SMALL_FLOAT)) {
        UNROLL for (int half = 0; half < halves; half++) {
            const uint8_t *p = at.small + BLOCK_ROWS * (halves * group + half) + row;
            g.scale[half] = t.flags & EXPONENT ? power_scales(p) : small_float_scales(p);
        }
    } else {
        g.scale[0] = rf_load_f16((const uint16_t *)(at.small + 32 * group + 2 * row));
        if (t.flags & MINIMUM) g.minimum = rf_load_f16((const uint16_t *)(at.small + 64 + 32 * group + 2 * row));
    }
    /* the factor is a power of two: exact */
    if (leaves_factor(t) && group) g.scale[0] = rf_mul(g.scale[0], rf_set(1.0f / HIGH_NIBBLE));
    return g;
}

#if PLANAR_GRIDS
/* Through memory: otherwise compilers take every four out of a register, which costs more than reading them. */
INLINE const int8_t *order_by_place(int n, const OperandPair *a, int8_t *by_place) {
    UNROLL for (int i = 0; i < n; i++) transpose_fours(a[i].codes, by_place + PAIR * i);
    escape(by_place);
    return by_place;
}
#endif

/* A token's 32, in the order of the codes; or what stands for them. */
INLINE const int8_t *activations(WeightTraits t, int group, Pair at, const OperandPair *a, int token) {
#if TILE_SUMS
    return (const int8_t *)at.sums->of[group][0][token];
#endif
    return (t.flags & PLANAR ? at.by_place + PAIR * token : a[token].codes) + GROUP * group;
}

/* Few tokens leave the products waiting for each other: two chains of them. Sums are exact. */
INLINE RI dot_group(int n, RI d, const RCODES *codes, const int8_t *x, int bits) {
    if (n >= TWO_CHAINS_BELOW) return dot(d, codes, x, 8, bits);
    return ri_add(dot(d, codes, x, 4, bits), dot(ri_set(0), codes + 4, x + 16, 4, bits));
}

/* One group of 32 columns: STEP_ROWS rows x n tokens. Of types whose groups have scales of their own. */
INLINE void multiply_group(TensorType type, int n, int group, int step, Pair at, const OperandPair *a, RF *acc) {
    const WeightTraits t = traits_of(type);
    const int zero = zero_of(t, group);
    const GroupScales s = load_scales(t, group, step, at);
    RCODES codes[8];
    if (!TILE_SUMS) load_codes(type, group, step, at, codes);
    TOKEN_LOOP for (int i = 0; i < n; i++) {
        const int8_t *x = activations(t, group, at, a, i);
        const RF token_scale = rf_set(a[i].scale[group]);
        if (t.flags & HALVES) {
            UNROLL for (int half = 0; half < 2; half++) {
                const RI d =
                    dot(ri_set(-zero * a[i].half[2 * group + half]), codes + 4 * half, x + HALF_STEP * half, 4, t.bits);
                acc[i] = rf_fma(rf_from_ri(d), rf_mul(s.scale[half], token_scale), acc[i]);
            }
            continue;
        }
        const RI d = dot_group(n, ri_set(-zero * a[i].total[group]), codes, x, t.bits);
        acc[i] = rf_fma(rf_from_ri(d), rf_mul(s.scale[0], token_scale), acc[i]);
        if (t.flags & MINIMUM) acc[i] = rf_fma(s.minimum, rf_set(a[i].sum[group]), acc[i]);
    }
}

/* ---- types with one scale for a span ---------------------------------------------------------------- */

/* Beside it groups, or their halves, have small integers for scales, or none. What comes before a token's scale is
 * exact, integers or floats: at most 32 columns of 32 * 127, times 128 (Q6_K), which is below 2^24. */
INLINE bool scaled_by_span(WeightTraits t) { return t.flags & (WHOLE | SUPER); }

/* Whether small scales are multiplied with as integers. */
INLINE bool joins_scales(WeightTraits t) { return joins_halves(t) || (SCALED_DOTS && t.flags & SUPER); }

/* Whether codes are multiplied with them, which pays where many tokens follow: products of Q2_K are at most 45. */
INLINE bool scales_codes(WeightTraits t, int n) {
    return SCALED_CODES && joins_halves(t) && t.flags & MINIMUM && n >= TILE / 2;
}

/* A group's, or its halves': pairs of integers, and the same times less than no zero point; or floats, and what BIAS
 * adds to a product with the first. */
typedef struct SmallScales {
    RI pairs, zeros;
    RF scale[2], less_bias;
} SmallScales;

INLINE RI load_small_scale(WeightTraits t, int group, int half, const uint8_t *small) {
    const bool halves = t.flags & HALVES;
    if (!(t.flags & ODD)) return ri_load_int8(small + BLOCK_ROWS * (halves ? 2 * group + half : group));
    const RI nibbles = ri_load_u8(small + (halves ? BLOCK_ROWS * group : 0));
    const int bits = sign_of_group(t) ? 7 : 15;
    return ri_add(ri_left(ri_bits(nibbles, halves ? 4 * half : 4 * group, bits), 1), ri_set(1));
}

/* Of joins_halves: the scales, or the minima. */
INLINE RI load_pairs(WeightTraits t, int group, int step, const uint8_t *small, bool minima) {
    const int row = STEP_ROWS * step;
    if (t.flags & MINIMUM) return ri_bits(ri_load(small + 4 * row), 8 * group + (minima ? 4 : 0), 0x000f000f);
    return ri_load_pairs(small + 2 * BLOCK_ROWS * group + 2 * row);
}

INLINE SmallScales load_small_scales(WeightTraits t, int group, int step, const uint8_t *small) {
    SmallScales s;
    const int zero = zero_of(t, group);
    if (t.flags & WHOLE) return s;
    if (joins_halves(t)) {
        s.pairs = load_pairs(t, group, step, small, false);
    } else {
        const RI first = load_small_scale(t, group, 0, small + STEP_ROWS * step),
                 second = t.flags & HALVES ? load_small_scale(t, group, 1, small + STEP_ROWS * step) : first;
        const RF factor = rf_set(leaves_factor(t) && group ? 1.0f / HIGH_NIBBLE : 1);
        s.scale[0] = rf_mul(rf_from_ri(first), factor);
        s.scale[1] = rf_mul(rf_from_ri(second), factor);
        if (BIASED_DOTS) s.less_bias = rf_mul(s.scale[0], rf_set(-BIAS));
#if SCALED_DOTS
        s.pairs = ri_pair(first, second);
#endif
    }
    if (joins_scales(t) && zero) s.zeros = ri_mul_pairs(s.pairs, -zero);
#if PLANAR_GRIDS
    if (sign_of_group(t)) { /* codes are those of negative eighths: others are two more */
        const RI negative = ri_bits(ri_load_u8(small), 4 * group + 2, 2);
        const RI both = ri_add(negative, ri_left(negative, 16));
        s.zeros = ri_mul_pairs(ri_add(both, ri_set(0x10001 * (zero - 2))), -1);
    }
#endif
    return s;
}

/* Codes as they are multiplied. */
INLINE void load_factors(TensorType type, int n, int group, int step, Pair at, const SmallScales *s, RCODES *codes) {
    load_codes(type, group, step, at, codes);
#if SCALED_CODES
    if (scales_codes(TRAITS_HERE(type), n))
        UNROLL for (int j = 0; j < 8; j++) codes[j] = codes_times(codes[j], ri_twice(s->pairs, j / 4));
#else
    (void)n, (void)s;
#endif
}

/* Sums of both halves of a group, or in the first place of all of it. */
typedef struct HalfSums {
    RI of[2];
} HalfSums;

INLINE bool begins_in_memory(int n, int zero) { return BIASED_DOTS && n >= TWO_CHAINS_BELOW && zero == BIASED_ZERO; }

INLINE HalfSums begin_sums(WeightTraits t, int n, int group, const OperandPair *a, const SmallScales *s) {
    (void)s;
    const int zero = zero_of(t, group), start = BIASED_DOTS && !(t.flags & WHOLE) ? BIAS_BITS : 0;
    const int16_t *half = a->half + 2 * group;
    const int32_t *biased = a->biased + 2 * group;
#if PLANAR_GRIDS
    if (sign_of_group(t)) return (HalfSums){{ri_add(ri_set(start), ri_pairs_dot(s->zeros, half))}};
#endif
    if (!(t.flags & HALVES)) return (HalfSums){{ri_set(start - zero * a->total[group])}};
    if (begins_in_memory(n, zero)) return (HalfSums){{ri_set(biased[0]), ri_set(biased[1])}};
    return (HalfSums){{ri_set(start - zero * half[0]), ri_set(-zero * half[1])}};
}

INLINE RF end_sums(WeightTraits t, int n, int group, HalfSums d, const SmallScales *s) {
    if (t.flags & WHOLE) return rf_from_ri(d.of[0]);
    const RF first = BIASED_DOTS ? rf_fma(rf_from_bits(d.of[0]), s->scale[0], s->less_bias)
                                 : rf_mul(rf_from_ri(d.of[0]), s->scale[0]);
    if (!(t.flags & HALVES)) return first;
    const bool biased = begins_in_memory(n, zero_of(t, group));
    return rf_fma(biased ? rf_add(rf_from_bits(d.of[1]), rf_set(-BIAS)) : rf_from_ri(d.of[1]), s->scale[1], first);
}

/* 32 columns of one token, times their small scales. */
INLINE RF scaled_dot(WeightTraits t, int n, int group, const RCODES *codes, const int8_t *x, const OperandPair *a,
                     const SmallScales *s) {
    const int zero = zero_of(t, group);
    const int16_t *half = a->half + 2 * group;
    if (joins_scales(t)) {
#if SCALED_DOTS
        RI d = t.flags & HALVES ? dot_halves(codes, x, s->pairs, t.bits)
                                : dot_times(ri_set(0), codes, x, 8, s->pairs, t.bits);
#else
        if (scales_codes(t, n)) return rf_from_ri(dot(ri_set(0), codes, x, 8, 8));
#if ADDED_HALVES
        if (zero) return rf_from_ri(add_halves(ri_pairs_dot(s->zeros, half), codes, x, s->pairs));
#endif
        RI d = dot_halves(codes, x, s->pairs, t.bits);
#endif
        if (zero) d = ri_add(d, ri_pairs_dot(s->zeros, half));
        return rf_from_ri(d);
    }
    HalfSums d = begin_sums(t, n, group, a, s);
    if (t.flags & HALVES) {
        d.of[0] = dot(d.of[0], codes, x, 4, t.bits);
        d.of[1] = dot(d.of[1], codes + 4, x + HALF_STEP, 4, t.bits);
    } else {
        d.of[0] = dot_group(n, d.of[0], codes, x, t.bits);
    }
    return end_sums(t, n, group, d, s);
}

/* Tokens of n whose products are under way two at a time: those of one wait for each other. */
INLINE int in_pairs(int n) { return TOKENS_TOGETHER == 2 && n >= TWO_CHAINS_BELOW ? n / 2 * 2 : 0; }

#if TOKENS_TOGETHER == 2
INLINE void sum_two(WeightTraits t, int n, int group, const RCODES *codes, const OperandPair *a, const int8_t *const *x,
                    const SmallScales *scales, RF *sums) {
    HalfSums d[2] = {begin_sums(t, n, group, a, scales), begin_sums(t, n, group, a + 1, scales)};
    UNROLL for (int j = 0; j < 8; j++) UNROLL for (int k = 0; k < 2; k++) {
        RI *sum = &d[k].of[t.flags & HALVES ? j / 4 : 0];
        *sum = dot(*sum, codes + j, x[k] + 4 * j, 1, t.bits);
    }
    UNROLL for (int k = 0; k < 2; k++) sums[k] =
        rf_fma(end_sums(t, n, group, d[k], scales), rf_set(a[k].scale[group]), sums[k]);
}
#endif

/* As multiply_group, but the span's scale is left out. */
INLINE void sum_group(TensorType type, int n, int group, int step, Pair at, const OperandPair *a, RF *sums) {
    const WeightTraits t = TRAITS_HERE(type);
    const SmallScales scales = load_small_scales(t, group, step, at.small);
    const int paired = joins_scales(t) || !(t.flags & SUPER) ? 0 : in_pairs(n);
    RCODES codes[8];
    if (!TILE_SUMS) load_factors(type, n, group, step, at, &scales, codes);
#if TOKENS_TOGETHER == 2
    UNROLL for (int i = 0; i < paired; i += 2) {
        const int8_t *const x[2] = {activations(t, group, at, a, i), activations(t, group, at, a, i + 1)};
        sum_two(t, n, group, codes, a + i, x, &scales, sums + i);
    }
#endif
    TOKEN_LOOP for (int i = paired; i < n; i++) {
        const int8_t *x = activations(t, group, at, a, i);
        sums[i] = rf_fma(scaled_dot(t, n, group, codes, x, &a[i], &scales), rf_set(a[i].scale[group]), sums[i]);
    }
}

/* Of each half of a group its own, or of each group. */
INLINE void sum_minima(WeightTraits t, int n, int step, const uint8_t *small, const OperandPair *a, RF *sums) {
    for (int p = 0; p < span_pairs(t); p++, small += small_scale_bytes(t), a += TILE)
        UNROLL for (int group = 0; group < 2; group++) {
            if (!joins_halves(t)) {
                const RF minima = rf_from_ri(ri_load_int8(small + BLOCK_ROWS * (2 + group) + STEP_ROWS * step));
                TOKEN_LOOP for (int i = 0; i < n; i++) sums[i] = rf_fma(minima, rf_set(a[i].sum[group]), sums[i]);
                continue;
            }
            const RI minima = load_pairs(t, group, step, small, true);
            TOKEN_LOOP for (int i = 0; i < n; i++) {
                const RI d = ri_pairs_dot(minima, a[i].half + 2 * group);
                sums[i] = rf_fma(rf_from_ri(d), rf_set(a[i].scale[group]), sums[i]);
            }
        }
}

/* Adds a span's sums, times its scale, and its minima; what was in `sums` is gone. */
INLINE void finish_span(WeightTraits t, int n, int step, Pair at, const OperandPair *a, RF *sums, RF *acc) {
    const uint16_t *scales = (const uint16_t *)at.scales + STEP_ROWS * step;
    RF scale = rf_load_f16(scales);
    if (t.unit) scale = rf_mul(scale, rf_set(value_of_bits((uint32_t)(127 + t.unit) << 23)));
    TOKEN_LOOP for (int i = 0; i < n; i++) acc[i] = rf_fma(scale, sums[i], acc[i]);
    if (!(t.flags & MINIMUM)) return;
    RF minimum = rf_load_f16(scales + BLOCK_ROWS);
    if (joins_halves(t)) minimum = rf_mul(minimum, rf_set(-1)); /* others' small minima are negative */
    TOKEN_LOOP for (int i = 0; i < n; i++) sums[i] = rf_set(0);
    sum_minima(t, n, step, at.small, a, sums);
    TOKEN_LOOP for (int i = 0; i < n; i++) acc[i] = rf_fma(minimum, sums[i], acc[i]);
}

/* The hardware's prefetcher stops at every page. A line's way into the first-level cache ends in few buffers: most of
 * it is made beforehand, into the second-level one. Together a third of a single token's time; four pages ahead in
 * place of two are a tenth on one thread of a Zen 4. */
INLINE void prefetch_ahead(const uint8_t *line) {
    __builtin_prefetch(line + 16384, 0, 2);
    __builtin_prefetch(line + 1024);
}

INLINE void prefetch_pair(WeightTraits t, Pair at) {
    const int in_span = span_pairs(t), lines = (span_bytes(t) / 64 + in_span - 1) / in_span;
    UNROLL for (int i = 0; i < lines; i++) prefetch_ahead(at.span + 64 * (at.index * lines + i));
}

#if TILE_SUMS
/* ---- sums made by tile registers ------------------------------------------------------------------------ */

/* Of as many pairs from w on as are left, at most TILE_PAIRS: several, because what tiles store cannot be loaded at
 * once. n tokens of a tile. */
INLINE void make_tile_sums(TensorType type, int n, const uint8_t *w, int left, const OperandPair *a, TileSums *out) {
    const WeightTraits t = TRAITS_HERE(type);
    const bool halves = t.flags & HALVES && !scales_codes(t, n);
    for (int p = 0; p < TILE_PAIRS && p < left; p++, a += TILE, out++) {
        const Pair at = pair_of_span(t, w + p / span_pairs(t) * span_bytes(t), p % span_pairs(t));
        const int8_t *x = a->codes;
        size_t x_stride = sizeof *a;
        _Alignas(64) int8_t by_place[TILE * PAIR];
        if (t.flags & PLANAR) x = order_by_place(n, a, by_place), x_stride = PAIR;
        prefetch_pair(t, at);
        UNROLL for (int group = 0; group < 2; group++) {
            RCODES codes[8];
            SmallScales scales;
            if (scales_codes(t, n)) scales = load_small_scales(t, group, 0, at.small);
            load_factors(type, n, group, 0, at, &scales, codes);
            tile_multiply(codes, x + GROUP * group, x_stride, halves, out->of[group]);
        }
    }
}
#endif

/* ---- all columns --------------------------------------------------------------------------------------- */

INLINE void store_sums(float *out, RF sums, bool add) { rf_store(out, add ? rf_add(rf_load(out), sums) : sums); }

/* 16 rows x n tokens, n <= TILE, all columns. */
INLINE void multiply_codes(TensorType type, int n, const uint8_t *w, int n_pairs, const OperandPair *a, float *out,
                           size_t out_stride, bool add) {
    const WeightTraits t = TRAITS_HERE(type);
    const int in_span = span_pairs(t);
    RF acc[STEPS][TILE], sums[STEPS][TILE];
#if TILE_SUMS
    TileSums tile_sums[TILE_PAIRS];
#endif
    UNROLL for (int step = 0; step < STEPS; step++) TOKEN_LOOP for (int i = 0; i < n; i++) acc[step][i] = rf_set(0);
    for (int first = 0; first < n_pairs; first += in_span, w += span_bytes(t)) {
#if TILE_SUMS
        if (first % TILE_PAIRS == 0) make_tile_sums(type, n, w, n_pairs - first, a, tile_sums);
#endif
        if (scaled_by_span(t))
            UNROLL for (int step = 0; step < STEPS; step++) TOKEN_LOOP for (int i = 0; i < n; i++) sums[step][i] =
                rf_set(0);
        /* rows have whole blocks, but not whole spans of several blocks */
        const int left = n_pairs - first, here = t.columns >= in_span * PAIR || left > in_span ? in_span : left;
        for (int p = 0; p < here; p++, a += TILE) {
            Pair at = pair_of_span(t, w, p);
#if TILE_SUMS
            at.sums = &tile_sums[(first + p) % TILE_PAIRS];
#elif PLANAR_GRIDS
            int8_t by_place[TILE * PAIR];
            if (t.flags & PLANAR) at.by_place = order_by_place(n, a, by_place);
#endif
            if (!TILE_SUMS) prefetch_pair(t, at);
            UNROLL for (int step = 0; step < STEPS; step++) UNROLL for (int group = 0; group < 2; group++) {
                /* or it keeps all nibbles for the other group, and something else on the stack */
                if ((STEPS > 1 || (n > 8 && t.kind == INTEGERS)) && group) escape(w);
                if (scaled_by_span(t))
                    sum_group(type, n, group, step, at, a, sums[step]);
                else
                    multiply_group(type, n, group, step, at, a, acc[step]);
            }
        }
        if (scaled_by_span(t))
            UNROLL for (int step = 0; step < STEPS; step++)
                finish_span(t, n, step, pair_of_span(t, w, 0), a - in_span * TILE, sums[step], acc[step]);
    }
    UNROLL for (int step = 0; step < STEPS; step++) TOKEN_LOOP for (int i = 0; i < n; i++)
        store_sums(out + i * out_stride + STEP_ROWS * step, acc[step][i], add);
}

INLINE void multiply_floats(TensorType type, int n, const uint8_t *w, int columns, const float *a, float *out,
                            size_t out_stride, bool add) {
    RF acc[STEPS][TILE];
    UNROLL for (int step = 0; step < STEPS; step++) UNROLL for (int t = 0; t < n; t++) acc[step][t] = rf_set(0);
    const int bytes = BLOCK_ROWS * (type == TYPE_F32 ? 4 : 2);
    for (int k = 0; k < columns; k++) {
        if (bytes == 64 || k % 2 == 0) prefetch_ahead(w + k * bytes);
        UNROLL for (int step = 0; step < STEPS; step++) {
            const uint8_t *at = w + k * bytes + step * STEP_ROWS * bytes / BLOCK_ROWS;
            const RF column = type == TYPE_F32   ? rf_load((const float *)at)
                              : type == TYPE_F16 ? rf_load_f16((const uint16_t *)at)
                                                 : rf_load_bf16((const uint16_t *)at);
            UNROLL for (int t = 0; t < n; t++) acc[step][t] = rf_fma(column, rf_set(a[k * TILE + t]), acc[step][t]);
        }
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
#if ONE_TILE /* a function of its own for one token would gain nothing, and take as long to compile */
#define ANY_TILES(MAKE, name, TYPE) \
    MAKE(name, any, left, TYPE)     \
    static const Multiply name[TILE] = {[0 ... TILE - 1] = name##_any};
#else
#define ANY_TILES(MAKE, name, TYPE) \
    MAKE(name, 1, 1, TYPE)          \
    MAKE(name, any, left, TYPE)     \
    static const Multiply name[TILE] = {name##_1, [1 ... TILE - 1] = name##_any};
#endif
#endif

#define MAKE_CODES(NAME, name, number) ANY_TILES(CODES, multiply_##name, NAME)
#define MAKE_FLOATS(NAME, name, number) REGISTER_TILES(FLOATS, multiply_##name, NAME)

/* Of the tables of these types, that of one. */
#define FIND_TABLE(NAME, name, number) \
    case TYPE_##NAME: return multiply_##name;

INLINE void multiply_blocks(const Multiply *table, const Weight *weight, int first, int last, const Operand *in,
                            int n_tokens, float *out, size_t out_stride, bool add) {
    for (int block = first; block < last; block++) {
        const uint8_t *w = weight->data + block * weight->block_bytes;
        for (int token = 0; token < n_tokens;) {
            const int room = TILE - token % TILE, left = n_tokens - token < room ? n_tokens - token : room;
            token += table[left - 1](weight, w, in, token, left,
                                     out + token * out_stride + (block - first) * BLOCK_ROWS, out_stride, add);
        }
    }
}

#endif
