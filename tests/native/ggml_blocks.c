#include "ggml_blocks.h"

#include <stdlib.h>
#include <string.h>

#include "types/code_books.h"

const BlockType block_types[N_BLOCK_TYPES] = {
    {TYPE_F32, "F32", 1, 4, 1},
    {TYPE_F16, "F16", 1, 2, 1},
    {TYPE_BF16, "BF16", 1, 2, 1},
    {TYPE_Q4_0, "Q4_0", 32, 18, 32},
    {TYPE_Q4_1, "Q4_1", 32, 20, 32},
    {TYPE_Q5_0, "Q5_0", 32, 22, 32},
    {TYPE_Q5_1, "Q5_1", 32, 24, 32},
    {TYPE_Q8_0, "Q8_0", 32, 34, 32},
    {TYPE_Q4_K, "Q4_K", 256, 144, 32},
    {TYPE_Q5_K, "Q5_K", 256, 176, 32},
    {TYPE_Q6_K, "Q6_K", 256, 210, 16},
    {TYPE_Q2_K, "Q2_K", 256, 84, 16},
    {TYPE_Q3_K, "Q3_K", 256, 110, 16},
    {TYPE_IQ4_NL, "IQ4_NL", 32, 18, 32},
    {TYPE_IQ4_XS, "IQ4_XS", 256, 136, 32},
    {TYPE_MXFP4, "MXFP4", 32, 17, 32},
    {TYPE_NVFP4, "NVFP4", 64, 36, 16},
    {TYPE_IQ3_S, "IQ3_S", 256, 110, 32},
    {TYPE_IQ3_XXS, "IQ3_XXS", 256, 98, 32},
    {TYPE_IQ2_S, "IQ2_S", 256, 82, 16},
    {TYPE_IQ2_XS, "IQ2_XS", 256, 74, 16},
    {TYPE_IQ2_XXS, "IQ2_XXS", 256, 66, 32},
    {TYPE_IQ1_S, "IQ1_S", 256, 50, 32},
    {TYPE_IQ1_M, "IQ1_M", 256, 56, 16},
    {TYPE_TQ1_0, "TQ1_0", 256, 54, 32},
    {TYPE_TQ2_0, "TQ2_0", 256, 66, 32},
    {TYPE_Q1_0, "Q1_0", 128, 18, 32},
    {TYPE_Q2_0, "Q2_0", 64, 18, 32},
};

/* ---- decoding --------------------------------------------------------------------------------------- */

static double half_at(const uint8_t *p) {
    const int bits = p[0] + 256 * p[1], exponent = bits / 1024 % 32, fraction = bits % 1024;
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == 31) return fraction ? (double)NAN : sign * (double)INFINITY;
    return sign * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
}

static double single_at(const uint8_t *p) {
    float value;
    memcpy(&value, p, 4);
    return value;
}

static double bfloat_at(const uint8_t *p) {
    const uint8_t single[4] = {0, 0, p[0], p[1]};
    return single_at(single);
}

/* Q4_0 {half d; nibbles[16]}, Q5_0 {half d; u8 fifth[4]; nibbles[16]}, Q4_1 and Q5_1 with a half m after d. Nibble
 * byte i: column i low, column i + 16 high; bit c of `fifth` is column c's. */
static ExactWeight small_block(const uint8_t *block, int c, bool has_minimum, bool has_fifth) {
    const uint8_t *fifth = block + (has_minimum ? 4 : 2), *nibbles = fifth + (has_fifth ? 4 : 0);
    int code = c < 16 ? nibbles[c] % 16 : nibbles[c - 16] / 16;
    if (has_fifth && (fifth[c / 8] >> c % 8 & 1)) code += 16;
    const int zero = has_minimum ? 0 : has_fifth ? 16 : 8;
    return (ExactWeight){half_at(block) * (code - zero), has_minimum ? half_at(block + 2) : 0};
}

/* Q4_K {half d, dmin; u8 scales[12]; nibbles[128]}, Q5_K with u8 fifth[32] before the nibbles. Eight groups of 32
 * columns: groups 2 i and 2 i + 1 are the low and high nibbles of bytes 32 i to 32 i + 31. Six-bit scales and minima:
 * of groups 0-3 in the low bits of bytes 0-3 and 4-7; of groups 4-7 the low four bits in the nibbles of bytes 8-11, and
 * the high two in the top bits of bytes 0-3 and 4-7. */
static ExactWeight k_block(const uint8_t *block, int column, bool has_fifth) {
    const uint8_t *packed = block + 4, *fifth = block + 16, *nibbles = block + (has_fifth ? 48 : 16);
    const int group = column / 32, i = column % 32;
    int scale, minimum;
    if (group < 4) {
        scale = packed[group] % 64;
        minimum = packed[group + 4] % 64;
    } else {
        scale = packed[group + 4] % 16 + 16 * (packed[group - 4] / 64);
        minimum = packed[group + 4] / 16 + 16 * (packed[group] / 64);
    }
    const uint8_t byte = nibbles[32 * (group / 2) + i];
    int code = group % 2 ? byte / 16 : byte % 16;
    if (has_fifth && (fifth[i] >> group & 1)) code += 16;
    return (ExactWeight){half_at(block) * scale * code, -(half_at(block + 2) * minimum)};
}

/* Q6_K {low[128]; high[64]; i8 scales[16]; half d}. Each half of 128 columns has 64 bytes of low nibbles, 32 bytes of
 * bit pairs and 8 scales: its columns 0-31 and 64-95 are the low and high nibbles of the first 32 bytes, 32-63 and
 * 96-127 those of the second; the quarter q takes bit pair q. */
static ExactWeight q6_block(const uint8_t *block, int column) {
    const int half = column / 128, quarter = column % 128 / 32, i = column % 32;
    const uint8_t low = block[64 * half + 32 * (quarter % 2) + i], high = block[128 + 32 * half + i];
    const int code = (quarter < 2 ? low % 16 : low / 16) + 16 * (high >> 2 * quarter & 3);
    const int scale = (int8_t)block[192 + column / 16];
    return (ExactWeight){half_at(block + 208) * scale * (code - 32), 0};
}

/* Of 128 columns' 32 bytes, the columns 0-31, 32-63, 64-95 and 96-127 are the bit pairs, lowest first. */
static int pair_at(const uint8_t *pairs, int column) {
    const int byte = pairs[32 * (column / 128) + column % 32];
    return byte / (1 << 2 * (column % 128 / 32)) % 4;
}

/* Q2_K {u8 scales[16]; pairs[64]; half d, dmin}: of 16 columns, the scale is the low nibble, the minimum the high one.
 */
static ExactWeight q2_block(const uint8_t *block, int column) {
    const int scale = block[column / 16] % 16, minimum = block[column / 16] / 16;
    return (ExactWeight){half_at(block + 80) * scale * pair_at(block + 16, column), -(half_at(block + 82) * minimum)};
}

/* Q3_K {third[32]; pairs[64]; u8 scales[12]; half d}. Scale j of 16 has its low four bits in nibble j (low nibbles of
 * eight bytes first), its high two in pair j of the last four bytes (the lowest pairs of all four first). */
static ExactWeight q3_block(const uint8_t *block, int column) {
    const uint8_t *scales = block + 96;
    const int j = column / 16, third = block[column % 32] / (1 << column / 32) % 2;
    const int low = scales[j % 8] / (j < 8 ? 1 : 16) % 16, high = scales[8 + j % 4] / (1 << 2 * (j / 4)) % 4;
    const int code = pair_at(block + 32, column) + 4 * third - 4;
    return (ExactWeight){half_at(block + 108) * (low + 16 * high - 32) * code, 0};
}

static const int iq4_numbers[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static int nibble_of_32(const uint8_t *nibbles, int c) { return c < 16 ? nibbles[c] % 16 : nibbles[c - 16] / 16; }

/* IQ4_XS {half d; u16 high; u8 low[4]; nibbles[128]}: scale j of 32 columns has its low bits in nibble j of `low`, the
 * high ones in pair j of `high`. */
static ExactWeight iq4_xs_block(const uint8_t *block, int column) {
    const int j = column / 32, low = block[4 + j / 2] / (j % 2 ? 16 : 1) % 16;
    const int high = block[2 + j / 4] >> 2 * (j % 4) & 3;
    const int number = iq4_numbers[nibble_of_32(block + 8 + 16 * j, column % 32)];
    return (ExactWeight){half_at(block) * (low + 16 * high - 32) * number, 0};
}

/* Sign, two bits of exponent counted from 1, one of mantissa. */
static double float_of_4_bits(int bits) {
    const int exponent = bits / 2 % 4, mantissa = bits % 2;
    const double size = exponent ? ldexp(1 + mantissa / 2.0, exponent - 1) : mantissa / 2.0;
    return bits & 8 ? -size : size;
}

/* Four bits of exponent counted from 7, three of mantissa; the sign does not count, and 0x7f is nothing. */
static double float_of_8_bits(int bits) {
    const int exponent = bits / 8 % 16, mantissa = bits % 8;
    if (bits == 0x7f) return 0;
    return exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
}

/* NVFP4 {u8 scales[4]; nibbles[4][8]} */
static ExactWeight nvfp4_block(const uint8_t *block, int column) {
    const uint8_t *nibbles = block + 4 + 8 * (column / 16);
    const int byte = nibbles[column % 8], nibble = column % 16 < 8 ? byte % 16 : byte / 16;
    return (ExactWeight){float_of_8_bits(block[column / 16]) * float_of_4_bits(nibble), 0};
}

/* The code books' entries: numbers of 2 or 3 bits each. */
#define ENTRY(digits) digits,
static const uint16_t iq2_xxs_book[] = {IQ2_XXS_BOOK(ENTRY)}, iq2_xs_book[] = {IQ2_XS_BOOK(ENTRY)},
                      iq2_s_book[] = {IQ2_S_BOOK(ENTRY)}, iq1_book[] = {IQ1_BOOK(ENTRY)},
                      iq3_xxs_book[] = {IQ3_XXS_BOOK(ENTRY)}, iq3_s_book[] = {IQ3_S_BOOK(ENTRY)};

static int iq2_number(const uint16_t *book, unsigned index, int i) {
    static const int numbers[] = {8, 25, 43};
    return numbers[book[index] >> 2 * i & 3];
}

/* Sign i of eight, of which seven are stored: an even number of them is set. */
static int sign_of_7(unsigned bits, int i) {
    if (i < 7) return bits >> i & 1 ? -1 : 1;
    unsigned odd = 0;
    for (int k = 0; k < 7; k++) odd ^= bits >> k & 1;
    return odd ? -1 : 1;
}

static unsigned u16_at(const uint8_t *p) { return p[0] + 256u * p[1]; }
static unsigned u32_at(const uint8_t *p) { return u16_at(p) + 65536u * u16_at(p + 2); }

/* IQ2_XXS {half d; {u8 index[4]; u32 word}[8]}, IQ2_XS {half d; u16 entries[32]; u8 scales[8]}, IQ2_S {half d; u8
 * index[32], signs[32], high[8], scales[8]}: eight columns an entry, weight = d (1/2 + scale) / 4 * number. */
static ExactWeight iq2_block(TensorType type, const uint8_t *block, int column) {
    const int k = column / 8, i = column % 8;
    int number, scale;
    if (type == TYPE_IQ2_XXS) {
        const uint8_t *group = block + 2 + 8 * (k / 4);
        const unsigned word = u32_at(group + 4);
        number = iq2_number(iq2_xxs_book, group[k % 4], i) * sign_of_7(word >> 7 * (k % 4), i);
        scale = (int)(word >> 28);
    } else if (type == TYPE_IQ2_XS) {
        const unsigned entry = u16_at(block + 2 + 2 * k);
        number = iq2_number(iq2_xs_book, entry % 512, i) * sign_of_7(entry / 512, i);
        scale = block[66 + k / 4] / (k % 4 < 2 ? 1 : 16) % 16;
    } else {
        const unsigned index = block[2 + k] + 256u * (block[66 + k / 4] >> 2 * (k % 4) & 3);
        number = iq2_number(iq2_s_book, index, i) * (block[34 + k] >> i & 1 ? -1 : 1);
        scale = block[74 + k / 4] / (k % 4 < 2 ? 1 : 16) % 16;
    }
    return (ExactWeight){half_at(block) * (0.5 + scale) / 4 * number, 0};
}

/* IQ3_XXS {half d; u8 index[64]; u32 words[8]}: weight = d (1/2 + scale) / 2 * number; IQ3_S {half d; u8 index[64],
 * high[8], signs[32], scales[4]}: weight = d (1 + 2 scale) * number; four columns an entry. */
static ExactWeight iq3_block(TensorType type, const uint8_t *block, int column) {
    static const int numbers[] = {4, 12, 20, 28, 36, 44, 52, 62};
    const int k = column / 4, shift = 3 * (column % 4);
    if (type == TYPE_IQ3_XXS) {
        const unsigned word = u32_at(block + 66 + 4 * (column / 32));
        const int number = numbers[iq3_xxs_book[block[2 + k]] >> shift & 7];
        const int sign = sign_of_7(word >> 7 * (column % 32 / 8), column % 8);
        return (ExactWeight){half_at(block) * (0.5 + (word >> 28)) / 2 * number * sign, 0};
    }
    const unsigned index = block[2 + k] + 256u * (block[66 + k / 8] >> k % 8 & 1);
    const int number = 2 * (iq3_s_book[index] >> shift & 7) + 1;
    const int sign = block[74 + column / 8] >> column % 8 & 1 ? -1 : 1;
    const int scale = block[106 + column / 64] / (column % 64 < 32 ? 1 : 16) % 16;
    return (ExactWeight){half_at(block) * (1 + 2 * scale) * number * sign, 0};
}

/* IQ1_S {half d; u8 index[32]; u16 high[8]}, IQ1_M {u8 index[32]; u8 high[16]; u16 words[4]}: eight columns an entry,
 * weight = d (2 scale + 1) (number + or - 1/8). */
static ExactWeight iq1_block(TensorType type, const uint8_t *block, int column) {
    const int k = column / 8;
    unsigned index, negative, scale, d = 0;
    if (type == TYPE_IQ1_S) {
        const unsigned high = u16_at(block + 34 + 2 * (k / 4));
        index = block[2 + k] + 256 * (high >> 3 * (k % 4) & 7);
        negative = high >> 15;
        scale = high >> 12 & 7;
        d = u16_at(block);
    } else {
        const unsigned high = block[32 + k / 2] / (k % 2 ? 16u : 1u) % 16;
        index = block[k] + 256 * (high % 8);
        negative = high / 8;
        scale = u16_at(block + 48 + 2 * (k / 8)) >> 3 * (k / 2 % 4) & 7;
        for (int i = 3; i >= 0; i--) d = 16 * d + u16_at(block + 48 + 2 * i) / 4096;
    }
    const uint8_t half[] = {(uint8_t)d, (uint8_t)(d >> 8)};
    const double number = (iq1_book[index] >> 2 * (column % 8) & 3) - 1.0;
    return (ExactWeight){half_at(half) * (2 * scale + 1) * (number + (negative ? -0.125 : 0.125)), 0};
}

/* TQ1_0 {u8 digits[48], last[4]; half d}: a byte's five digits to the base of 3 are those behind the point of byte /
 * 256. */
static ExactWeight tq1_block(const uint8_t *block, int column) {
    int byte, n;
    if (column < 160)
        byte = column % 32, n = column / 32;
    else if (column < 240)
        byte = 32 + (column - 160) % 16, n = (column - 160) / 16;
    else
        byte = 48 + (column - 240) % 4, n = (column - 240) / 4;
    int rest = block[byte], digit = 0;
    for (int i = 0; i <= n; i++) digit = rest * 3 / 256, rest = rest * 3 % 256;
    return (ExactWeight){half_at(block + 52) * (digit - 1), 0};
}

ExactWeight exact_weight(const BlockType *type, const uint8_t *row, int column) {
    const uint8_t *block = row + (size_t)(column / type->columns) * (size_t)type->bytes;
    const int c = column % type->columns;
    switch (type->type) {
    case TYPE_F32: return (ExactWeight){single_at(block), 0};
    case TYPE_F16: return (ExactWeight){half_at(block), 0};
    case TYPE_BF16: return (ExactWeight){bfloat_at(block), 0};
    case TYPE_Q4_0: return small_block(block, c, false, false);
    case TYPE_Q4_1: return small_block(block, c, true, false);
    case TYPE_Q5_0: return small_block(block, c, false, true);
    case TYPE_Q5_1: return small_block(block, c, true, true);
    case TYPE_Q8_0: return (ExactWeight){half_at(block) * (int8_t)block[2 + c], 0};
    case TYPE_Q4_K: return k_block(block, c, false);
    case TYPE_Q5_K: return k_block(block, c, true);
    case TYPE_Q6_K: return q6_block(block, c);
    case TYPE_Q2_K: return q2_block(block, c);
    case TYPE_Q3_K: return q3_block(block, c);
    case TYPE_IQ4_NL: return (ExactWeight){half_at(block) * iq4_numbers[nibble_of_32(block + 2, c)], 0};
    case TYPE_IQ4_XS: return iq4_xs_block(block, c);
    case TYPE_MXFP4: return (ExactWeight){ldexp(float_of_4_bits(nibble_of_32(block + 1, c)), block[0] - 127), 0};
    case TYPE_NVFP4: return nvfp4_block(block, c);
    case TYPE_IQ3_S:
    case TYPE_IQ3_XXS: return iq3_block(type->type, block, c);
    case TYPE_IQ2_S:
    case TYPE_IQ2_XS:
    case TYPE_IQ2_XXS: return iq2_block(type->type, block, c);
    case TYPE_IQ1_S:
    case TYPE_IQ1_M: return iq1_block(type->type, block, c);
    case TYPE_TQ1_0: return tq1_block(block, c);
    case TYPE_TQ2_0: return (ExactWeight){half_at(block + 64) * (pair_at(block, c) - 1), 0};
    case TYPE_Q1_0: return (ExactWeight){half_at(block) * (block[2 + c / 8] >> c % 8 & 1 ? 1 : -1), 0};
    case TYPE_Q2_0: return (ExactWeight){half_at(block) * ((block[2 + c / 4] >> 2 * (c % 4) & 3) - 1), 0};
    default: return (ExactWeight){(double)NAN, 0};
    }
}

/* ---- random blocks ---------------------------------------------------------------------------------- */

static void random_half(uint8_t *p, bool finite, Random *random) {
    static const uint16_t extremes[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x7c00, 0x7e01};
    uint16_t bits = (uint16_t)random_bits(random);
    if (random_below(random, 4) == 0) bits = extremes[random_below(random, finite ? 8 : 10)];
    if (finite && (bits & 0x7c00) == 0x7c00) bits ^= 0x4000;
    p[0] = (uint8_t)bits;
    p[1] = (uint8_t)(bits >> 8);
}

/* Of a float32, or, its upper half alone, of a bfloat16. */
static void random_single(uint8_t *p, int bytes, bool finite, Random *random) {
    uint32_t bits = (uint32_t)random_bits(random);
    if (finite) bits = (bits & 0x807fffff) | (uint32_t)(127 - 40 + random_below(random, 80)) << 23;
    for (int i = 0; i < bytes; i++) p[i] = (uint8_t)(bits >> 8 * (4 - bytes + i));
}

/* Where a block has its float16 numbers, at most two (-1: none), and its codes. */
static const struct {
    int halves[2], begin, end;
} places[] = {
    [TYPE_Q4_0] = {{0, -1}, 2, 18},    [TYPE_Q4_1] = {{0, 2}, 4, 20},     [TYPE_Q5_0] = {{0, -1}, 2, 22},
    [TYPE_Q5_1] = {{0, 2}, 4, 24},     [TYPE_Q8_0] = {{0, -1}, 2, 34},    [TYPE_Q4_K] = {{0, 2}, 16, 144},
    [TYPE_Q5_K] = {{0, 2}, 16, 176},   [TYPE_Q6_K] = {{208, -1}, 0, 192}, [TYPE_Q2_K] = {{80, 82}, 16, 80},
    [TYPE_Q3_K] = {{108, -1}, 0, 96},  [TYPE_IQ4_NL] = {{0, -1}, 2, 18},  [TYPE_IQ4_XS] = {{0, -1}, 8, 136},
    [TYPE_MXFP4] = {{-1, -1}, 1, 17},  [TYPE_NVFP4] = {{-1, -1}, 4, 36},  [TYPE_IQ3_S] = {{0, -1}, 2, 106},
    [TYPE_IQ3_XXS] = {{0, -1}, 2, 66}, [TYPE_IQ2_S] = {{0, -1}, 2, 74},   [TYPE_IQ2_XS] = {{0, -1}, 2, 66},
    [TYPE_IQ2_XXS] = {{0, -1}, 2, 66}, [TYPE_IQ1_S] = {{0, -1}, 2, 34},   [TYPE_IQ1_M] = {{-1, -1}, 0, 48},
    [TYPE_TQ1_0] = {{52, -1}, 0, 52},  [TYPE_TQ2_0] = {{64, -1}, 0, 64},  [TYPE_Q1_0] = {{0, -1}, 2, 18},
    [TYPE_Q2_0] = {{0, -1}, 2, 18},
};

void code_bytes_of(const BlockType *type, int *begin, int *end) {
    *begin = places[type->type].begin;
    *end = places[type->type].end;
}

/* The float16 of IQ1_M, a nibble in each of four words. */
static void spread_half(uint8_t *block, const uint8_t half[2]) {
    for (int i = 0; i < 4; i++)
        block[49 + 2 * i] = (uint8_t)(block[49 + 2 * i] % 16 + 16 * (half[i / 2] / (i % 2 ? 16 : 1) % 16));
}

static void random_block(const BlockType *type, uint8_t *block, bool finite, Random *random) {
    static const uint8_t small_floats[] = {0, 1, 7, 8, 0x7e, 0x7f, 0xff};
    uint8_t half[2];
    for (int i = 0; i < type->bytes; i++) block[i] = (uint8_t)random_bits(random);
    switch (type->type) {
    case TYPE_F32: random_single(block, 4, finite, random); return;
    case TYPE_BF16: random_single(block, 2, finite, random); return;
    case TYPE_F16: random_half(block, finite, random); return;
    case TYPE_MXFP4: /* of sums that overflow nothing can be said */
        if (finite) block[0] = (uint8_t)(random_below(random, 8) ? 88 + block[0] % 64 : block[0] % 3);
        return;
    case TYPE_NVFP4:
        for (int i = 0; i < 4; i++)
            if (!random_below(random, 4)) block[i] = small_floats[random_below(random, sizeof small_floats)];
        return;
    case TYPE_IQ1_M:
        random_half(half, finite, random);
        spread_half(block, half);
        return;
    default:
        for (int i = 0; i < 2; i++)
            if (places[type->type].halves[i] >= 0) random_half(block + places[type->type].halves[i], finite, random);
    }
}

static void make_small_block(const BlockType *type, uint8_t *block) {
    const uint8_t sign = block[type->bytes / 2] & 0x80, high = (uint8_t)(0x18 | sign);
    switch (type->type) {
    case TYPE_F32: block[3] = 0x3c | sign; return;
    case TYPE_BF16: block[1] = 0x3c | sign; return;
    case TYPE_F16: block[1] = high; return;
    case TYPE_MXFP4: block[0] = 119; return;
    case TYPE_NVFP4: memset(block, 1, 4); return;
    case TYPE_IQ1_M: spread_half(block, (const uint8_t[]){block[0], 0x18}); return;
    default:
        block[places[type->type].halves[0] + 1] = high;
        if (places[type->type].halves[1] >= 0) block[places[type->type].halves[1] + 1] = 0x18;
    }
}

void make_small(Tensor *tensor) {
    const BlockType *type = block_types;
    while (type->type != tensor->type) type++;
    for (uint64_t at = 0; at < tensor->size; at += (uint64_t)type->bytes)
        make_small_block(type, (uint8_t *)tensor->data + at);
}

Tensor random_tensor(const BlockType *type, int rows, int columns, bool finite, Random *random) {
    const size_t row_bytes = (size_t)(columns / type->columns) * (size_t)type->bytes;
    uint8_t *data = malloc(row_bytes * (size_t)rows);
    if (!data) abort();
    for (size_t at = 0; at < row_bytes * (size_t)rows; at += (size_t)type->bytes)
        random_block(type, data + at, finite, random);
    return (Tensor){.name = type->name,
                    .name_length = (int)strlen(type->name),
                    .type = type->type,
                    .n_dimensions = 2,
                    .columns = columns,
                    .rows = rows,
                    .shape = {columns, rows, 1, 1},
                    .data = data,
                    .size = row_bytes * (size_t)rows};
}
