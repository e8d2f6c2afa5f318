#include "ggml_blocks.h"

#include <stdlib.h>
#include <string.h>

const BlockType block_types[N_BLOCK_TYPES] = {
    {TYPE_F32, "F32", 1, 4},       {TYPE_F16, "F16", 1, 2},       {TYPE_BF16, "BF16", 1, 2},
    {TYPE_Q4_0, "Q4_0", 32, 18},   {TYPE_Q4_1, "Q4_1", 32, 20},   {TYPE_Q5_0, "Q5_0", 32, 22},
    {TYPE_Q5_1, "Q5_1", 32, 24},   {TYPE_Q8_0, "Q8_0", 32, 34},   {TYPE_Q4_K, "Q4_K", 256, 144},
    {TYPE_Q5_K, "Q5_K", 256, 176}, {TYPE_Q6_K, "Q6_K", 256, 210},
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

static void random_block(const BlockType *type, uint8_t *block, bool finite, Random *random) {
    for (int i = 0; i < type->bytes; i++) block[i] = (uint8_t)random_bits(random);
    switch (type->type) {
    case TYPE_F32: random_single(block, 4, finite, random); break;
    case TYPE_BF16: random_single(block, 2, finite, random); break;
    case TYPE_Q6_K: random_half(block + 208, finite, random); break;
    case TYPE_Q4_1:
    case TYPE_Q5_1:
    case TYPE_Q4_K:
    case TYPE_Q5_K: random_half(block + 2, finite, random); /* fall through */
    default: random_half(block, finite, random); break;
    }
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
