/* The way back from the packed forms: one row as floats, the very bits that dequantize_row makes of the file's row. */
#include "pack.h"

/* 16 columns of one row, where pack.c put them: in the group `odd` of a pair, of which they are the first or the second
 * half. */
typedef struct Half {
    TensorType type;
    WeightTraits traits;
    const uint8_t *span, *codes, *small, *scales; /* codes and small scales of the pair */
    int pair, odd, half, row;
} Half;

static uint32_t nibbles_at(const Half *h, int j) {
    return read_u32(h->codes + 64 * j + 4 * h->row) >> (h->odd ? 4 : 0) & 0x0f0f0f0f;
}

static uint32_t threes_at(const Half *h, int j) {
    const uint8_t *vectors = h->codes + 192 * h->odd + 4 * h->row;
    if (j < 6) return read_u32(vectors + 64 * (j / 2)) >> 3 * (j % 2) & 0x07070707;
    return (read_u32(vectors + 128 * (j - 6)) >> 6 & 0x03030303) | (read_u32(vectors + 64) >> j & 0x01010101) << 2;
}

static uint32_t integers_at(const Half *h, int j) {
    const int bits = h->traits.bits;
    const uint8_t *at = h->codes + 4 * h->row;
    uint32_t codes = 0;
    int place = bits == 1 ? 1 : 0; /* a single bit says 0 or 2 */
    if (bits == 8) return read_u32(at + 512 * h->odd + 64 * j);
    if (bits == 3) return threes_at(h, j);
    if (bits & 4) codes = nibbles_at(h, j), place = 4, at += 512;
    if (bits & 2) {
        codes |= (read_u32(at + 128 * h->odd + 64 * (j / 4)) >> 2 * (j % 4) & 0x03030303) << place;
        place += 2, at += 256;
    }
    if (bits & 1) codes |= (read_u32(at + 64 * h->odd) >> j & 0x01010101) << place;
    return codes;
}

static uint32_t digits_at(const Half *h, int j) {
    const int k = (h->pair * PAIR + h->odd * GROUP) / 4 + j;
    const uint8_t *bytes = h->span + 64 * (k / 5) + 4 * h->row;
    uint32_t codes = 0;
    for (int i = 0; i < 4; i++) codes |= digit_of(bytes[i], k % 5) << 8 * i;
    return codes;
}

/* Four bits from the lowest of four bytes: spread_bits, backwards. */
static unsigned gathered_bits(uint32_t bytes) { return (bytes & 0x01010101) * 0x01020408u >> 24 & 15; }

static uint32_t entries_at(const Half *h, int j) {
    const WeightTraits t = h->traits;
    const int per_group = GROUP / t.entry, more = high_bits(t), number = h->odd * per_group + 4 * j / t.entry;
    const uint8_t *upper = h->codes + 2 * per_group * BLOCK_ROWS + per_group * more / 4 * h->row;
    const uint8_t *signs = h->codes + 2 * per_group * BLOCK_ROWS * (8 + more) / 8 + 64 * h->odd + 4 * h->row;
    const unsigned high = more ? (unsigned)upper[number * more / 8] >> number * more % 8 & ((1u << more) - 1) : 0;
    const unsigned index = h->codes[number * BLOCK_ROWS + h->row] | (high & ((1u << (t.index_bits - 8)) - 1)) << 8;
    const unsigned of_four = t.flags & SIGNS ? gathered_bits(read_u32(signs) >> j) : 0;
    const unsigned of_entry = t.flags & EIGHTHS ? high >> (t.index_bits - 8) : of_four << 4 * j % t.entry;
    return grid_codes(grid_of(h->type), t, grid_entry(index, of_entry), 4 * j);
}

static uint32_t number_of(TensorType type, unsigned digit) {
    switch (type) {
    case TYPE_IQ3_S: return IQ3_S_NUMBER(digit);
    case TYPE_IQ3_XXS: return IQ3_XXS_NUMBER(digit);
    case TYPE_IQ1_S:
    case TYPE_IQ1_M: return IQ1_NUMBER(digit);
    default: return IQ2_NUMBER(digit);
    }
}

/* Four of an entry's columns. */
static uint32_t planar_numbers(const Half *h, unsigned entry, int column) {
    const WeightTraits t = h->traits;
    const uint8_t *firsts = planar_halves(h->type), *seconds = firsts + (1 << planar_first_bits(t));
    const unsigned first = firsts[planar_first_place(t, entry)], second = seconds[entry & 255];
    const int width = t.entry == 4 ? 4 : 2;
    const unsigned digits = t.entry == 4 ? first | second << 8 : column % 8 ? second : first;
    uint32_t numbers = 0;
    for (int i = 0; i < 4; i++) numbers |= number_of(h->type, digits >> width * i & ((1u << width) - 1)) << 8 * i;
    return numbers;
}

static unsigned planar_signs(const Half *h, const uint8_t *of_row, int j) {
    unsigned signs = 0;
    for (int k = 0; k < 4; k++) signs |= ((unsigned)of_row[j % 4] >> planar_sign_bit(h->traits, 4 * j + k) & 1) << k;
    return signs;
}

static uint32_t planar_entries_at(const Half *h, int j) {
    const WeightTraits t = h->traits;
    const int registers = planar_registers(t), more = planar_more(t);
    const PlanarPlace at = planar_place(t, h->odd, h->row, 4 * j / t.entry);
    const uint8_t *planes = h->codes + registers * 64, *behind = planes + registers * more * 8;
    const unsigned bits = more ? (unsigned)planes[at.plane] >> at.shift & ((1u << more) - 1) : 0;
    const unsigned entry = h->codes[at.byte] | bits << 8;
    const unsigned signs = t.flags & SIGNS       ? planar_signs(h, behind + 64 * h->odd + 4 * h->row, j)
                           : signs_of_entries(t) ? (unsigned)behind[at.byte / 8] >> at.byte % 8
                                                 : (unsigned)h->small[h->row] >> (4 * h->odd + 3);
    return signed_codes(t, planar_numbers(h, entry, 4 * j), signs);
}

/* Four columns from 4 j of the group on. */
static uint32_t codes_at(const Half *h, int j) {
    switch (h->traits.kind) {
    case NIBBLE_TABLE: return look_up_nibbles(table_of(h->type), nibbles_at(h, j));
    case GRID_INDICES: return h->traits.flags & PLANAR ? planar_entries_at(h, j) : entries_at(h, j);
    case DIGITS: return digits_at(h, j);
    case INTEGERS: break;
    }
    return integers_at(h, j);
}

static void small_scale_at(const Half *h, BlockScale *s) {
    const int flags = h->traits.flags, n = flags & HALVES ? 2 : 1;
    if (flags & ODD) {
        const unsigned both = h->small[(n == 2 ? BLOCK_ROWS * h->odd : 0) + h->row];
        s->small = 2 * (int)(both >> 4 * (n == 2 ? h->half : h->odd) & (sign_of_group(h->traits) ? 7 : 15)) + 1;
    } else if (joins_halves(h->traits) && flags & MINIMUM) {
        const uint8_t both = h->small[4 * h->row + 2 * h->half + h->odd];
        s->small = both & 15, s->small_minimum = -(both >> 4);
    } else if (joins_halves(h->traits)) {
        s->small = (int8_t)h->small[2 * BLOCK_ROWS * h->odd + 2 * h->row + h->half];
    } else {
        s->small = (int8_t)h->small[BLOCK_ROWS * (n * h->odd + (n == 2 ? h->half : 0)) + h->row];
        if (flags & MINIMUM) s->small_minimum = (int8_t)h->small[2 * BLOCK_ROWS + BLOCK_ROWS * h->odd + h->row];
    }
}

static uint16_t half_at(const uint8_t *halves, int index) { return (uint16_t)read_u16(halves + 2 * index); }

static BlockScale scale_at(const Half *h) {
    const int flags = h->traits.flags;
    BlockScale s = {.small = 1, .small_minimum = 1};
    if (flags & SUPER) small_scale_at(h, &s);
    if (flags & (SUPER | WHOLE)) {
        s.scale = half_at(h->scales, h->row);
        if (flags & MINIMUM) s.minimum = half_at(h->scales, BLOCK_ROWS + h->row);
    } else if (flags & (EXPONENT | SMALL_FLOAT)) {
        s.scale = h->small[BLOCK_ROWS * (flags & HALVES ? 2 * h->odd + h->half : h->odd) + h->row];
    } else {
        s.scale = half_at(h->small, BLOCK_ROWS * h->odd + h->row);
        if (flags & MINIMUM) s.minimum = half_at(h->small, BLOCK_ROWS * (2 + h->odd) + h->row);
    }
    return s;
}

static void unpack_codes_of(TensorType type, const Weight *weight, const uint8_t *block, int r, float *out) {
    const WeightTraits t = packed_traits(type, weight->planar_grids);
    for (int column = 0; column < weight->columns; column += 16) {
        const PairPlace at = place_of_pair(t, column);
        const Half h = {.type = type,
                        .traits = t,
                        .span = block + at.span,
                        .codes = block + at.codes,
                        .small = block + at.small,
                        .scales = block + at.scales,
                        .pair = at.index,
                        .odd = column / GROUP % 2,
                        .half = column / 16 % 2,
                        .row = r};
        uint32_t codes[4];
        for (int i = 0; i < 4; i++) codes[i] = codes_at(&h, 4 * h.half + i);
        weights_of_codes(t, scale_at(&h), codes, out + column);
    }
}

/* Of each type by itself, as where it is packed. */
#if defined(__GNUC__)
__attribute__((flatten))
#endif
static void unpack_codes(const Weight *weight, const uint8_t *block, int r, float *out) {
#define CASE(NAME, name, number) \
    case TYPE_##NAME: unpack_codes_of(TYPE_##NAME, weight, block, r, out); return;
    switch (weight->type) {
        QUANTISED_TYPES(CASE)
    default: return;
    }
#undef CASE
}

void weight_row(const Weight *weight, int row, float *out) {
    const WeightTraits t = traits_of(weight->type);
    const uint8_t *block = weight->data + (size_t)(row / BLOCK_ROWS) * weight->block_bytes;
    const int r = row % BLOCK_ROWS;
    if (t.bits) unpack_codes(weight, block, r, out);
    for (int c = 0; !t.bits && c < weight->columns; c++)
        out[c] = float_weight(weight->type, block + ((size_t)c * BLOCK_ROWS + (size_t)r) * (size_t)t.bytes);
}
