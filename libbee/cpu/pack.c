#include "pack.h"

#include <string.h>

#include "file/tensor.h"

void weight_layout(Weight *weight, const Tensor *tensor, int n_rows, bool planar_grids) {
    const WeightTraits t = packed_traits(tensor->type, planar_grids);
    *weight =
        (Weight){.type = tensor->type, .rows = n_rows, .columns = (int)tensor->columns, .planar_grids = planar_grids};
    weight->n_blocks = (n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int in_span = span_pairs(t), n_spans = (weight->columns + in_span * PAIR - 1) / (in_span * PAIR);
    weight->n_pairs = t.bits ? (weight->columns + PAIR - 1) / PAIR : 0;
    weight->block_bytes =
        t.bits ? (size_t)n_spans * (size_t)span_bytes(t) : (size_t)weight->columns * BLOCK_ROWS * (size_t)t.bytes;
}

size_t packed_size(TensorType type, int rows, int columns, bool planar_grids) {
    const Tensor shape = {.type = type, .columns = columns};
    Weight weight;
    weight_layout(&weight, &shape, rows, planar_grids);
    return weight.block_bytes * (size_t)weight.n_blocks;
}

/* 32 columns of one row on their way: block and column where they are, and where they go. */
typedef struct Group {
    TensorType type;
    WeightTraits traits;
    const uint8_t *block;
    int column;                      /* of the block */
    uint8_t *codes, *small, *scales; /* of the pair; of the span */
    int odd, row;
} Group;

/* Four numbers that move by `left` bits within their bytes, beside those that are there already. */
static void place(uint8_t *at, uint32_t numbers, int left) {
    uint32_t word;
    memcpy(&word, at, sizeof word);
    word |= numbers << left;
    memcpy(at, &word, sizeof word);
}

static void place_nibbles(const Group *g, int j, uint32_t nibbles) {
    place(g->codes + 64 * j + 4 * g->row, nibbles, g->odd ? 4 : 0);
}

/* Three bits: two codes to a byte, and the parts of two more above them. */
static void place_threes(const Group *g, int j, uint32_t codes) {
    uint8_t *vectors = g->codes + 192 * g->odd + 4 * g->row;
    if (j < 6) {
        place(vectors + 64 * (j / 2), codes, 3 * (j % 2));
    } else {
        place(vectors + 128 * (j - 6), codes & 0x03030303, 6);
        place(vectors + 64, codes >> 2 & 0x01010101, j);
    }
}

static void place_integers(const Group *g) {
    const int bits = g->traits.bits;
    for (int j = 0; j < GROUP / 4; j++) {
        uint32_t codes = block_codes(g->type, g->block, g->column + 4 * j);
        uint8_t *at = g->codes;
        if (bits == 8) {
            place(at + 512 * g->odd + 64 * j + 4 * g->row, codes, 0);
            continue;
        }
        if (bits == 3) {
            place_threes(g, j, codes);
            continue;
        }
        if (bits == 1) codes >>= 1;
        if (bits & 4) place_nibbles(g, j, codes & 0x0f0f0f0f), codes = codes >> 4 & 0x0f0f0f0f, at += 512;
        if (bits & 2) {
            place(at + 128 * g->odd + 64 * (j / 4) + 4 * g->row, codes & 0x03030303, 2 * (j % 4));
            codes = codes >> 2 & 0x03030303, at += 256;
        }
        if (bits & 1) place(at + 64 * g->odd + 4 * g->row, codes & 0x01010101, j);
    }
}

static void place_entries(const Group *g) {
    const WeightTraits t = g->traits;
    const int per_group = GROUP / t.entry, more = high_bits(t);
    uint8_t *upper = g->codes + 2 * per_group * BLOCK_ROWS + per_group * more / 4 * g->row;
    uint8_t *signs = g->codes + 2 * per_group * BLOCK_ROWS * (8 + more) / 8 + 64 * g->odd + 4 * g->row;
    for (int i = 0; i < per_group; i++) {
        const GridEntry e = block_entry(g->type, g->block, g->column + i * t.entry);
        const int number = g->odd * per_group + i, at = number * more;
        const unsigned high = e.index >> 8 | (t.flags & EIGHTHS ? (e.signs & 1) << (more - 1) : 0);
        g->codes[number * BLOCK_ROWS + g->row] = (uint8_t)e.index;
        if (more) upper[at / 8] |= (uint8_t)(high << at % 8);
        for (int j = 0; t.flags & SIGNS && j < t.entry / 4; j++)
            place(signs, spread_bits(e.signs >> 4 * j), i * t.entry / 4 + j);
    }
}

/* The signs of four columns as they lie in their byte: planar_sign_bit of them all. */
static unsigned planar_signs(WeightTraits t, int column, unsigned signs) {
    if (t.entry == 4) signs = (signs & 1) | (signs & 4) >> 1 | (signs & 2) << 3 | (signs & 8) << 2;
    return signs << planar_sign_bit(t, column);
}

static void place_planar_entries(const Group *g) {
    const WeightTraits t = g->traits;
    const int registers = planar_registers(t), more = planar_more(t);
    uint8_t *planes = g->codes + registers * 64, *behind = planes + registers * more * 8;
    uint8_t *signs = behind + 64 * g->odd + 4 * g->row;
    for (int i = 0; i < GROUP / t.entry; i++) {
        const GridEntry e = block_entry(g->type, g->block, g->column + i * t.entry);
        const PlanarPlace at = planar_place(t, g->odd, g->row, i);
        const unsigned entry = planar_number(g->type, e.index);
        g->codes[at.byte] = (uint8_t)entry;
        if (more) planes[at.plane] |= (uint8_t)((entry >> 8) << at.shift);
        if (signs_of_entries(t)) behind[at.byte / 8] |= (uint8_t)((e.signs & 1) << at.byte % 8);
        if (sign_of_group(t)) g->small[g->row] |= (uint8_t)((e.signs & 1) << (4 * g->odd + 3));
        for (int j = 0; t.flags & SIGNS && j < t.entry / 4; j++) {
            const int column = i * t.entry + 4 * j;
            signs[column % 16 / 4] |= (uint8_t)planar_signs(t, column, e.signs >> 4 * j & 15);
        }
    }
}

/* The digits of a byte are of columns that lie 4 apart, so that a span's are placed at once: with its first group. */
static void place_digits(const Group *g, int pair) {
    if (pair || g->odd) return;
    for (int vector = 0; vector < 13; vector++) {
        uint32_t values[4] = {0};
        for (int n = 0; n < 5; n++) {
            const int k = 5 * vector + n;
            const uint32_t codes = k < 64 ? block_codes(g->type, g->block, 4 * k) : 0;
            for (int i = 0; i < 4; i++) values[i] = 3 * values[i] + (codes >> 8 * i & 255);
        }
        for (int i = 0; i < 4; i++) g->codes[64 * vector + 4 * g->row + i] = (uint8_t)((256 * values[i] + 242) / 243);
    }
}

static void put_half(uint8_t *halves, int index, uint16_t bits) { memcpy(halves + 2 * index, &bits, sizeof bits); }

/* One of a group's scales, `n` of it, of type SUPER. */
static void place_small_scale(const Group *g, int half, int n, const BlockScale *s) {
    const int flags = g->traits.flags, at = BLOCK_ROWS * (n * g->odd + half) + g->row;
    if (flags & ODD) {
        const int nibble = n == 2 ? half : g->odd;
        g->small[(n == 2 ? BLOCK_ROWS * g->odd : 0) + g->row] |= (uint8_t)(s->small / 2 << 4 * nibble);
    } else if (joins_halves(g->traits) && flags & MINIMUM) {
        g->small[4 * g->row + 2 * half + g->odd] = (uint8_t)(s->small | -s->small_minimum << 4);
    } else if (joins_halves(g->traits)) {
        g->small[2 * BLOCK_ROWS * g->odd + 2 * g->row + half] = (uint8_t)s->small;
    } else {
        g->small[at] = (uint8_t)s->small;
        if (flags & MINIMUM) g->small[2 * BLOCK_ROWS + BLOCK_ROWS * g->odd + g->row] = (uint8_t)s->small_minimum;
    }
}

static void place_scales(const Group *g) {
    const int flags = g->traits.flags, n = flags & HALVES ? 2 : 1;
    for (int half = 0; half < n; half++) {
        const BlockScale s = block_scale(g->type, g->block, g->column + 16 * half);
        if (flags & SUPER) place_small_scale(g, half, n, &s);
        if (flags & (SUPER | WHOLE)) {
            put_half(g->scales, g->row, s.scale);
            if (flags & MINIMUM) put_half(g->scales, BLOCK_ROWS + g->row, s.minimum);
        } else if (flags & (EXPONENT | SMALL_FLOAT)) {
            g->small[BLOCK_ROWS * (n * g->odd + half) + g->row] = (uint8_t)s.scale;
        } else {
            put_half(g->small, BLOCK_ROWS * g->odd + g->row, s.scale);
            if (flags & MINIMUM) put_half(g->small, BLOCK_ROWS * (2 + g->odd) + g->row, s.minimum);
        }
    }
}

static void fill_floats(const Weight *weight, size_t bytes, const uint8_t *row, int r, uint8_t *block) {
    for (size_t k = 0; k < (size_t)weight->columns; k++)
        memcpy(block + (k * BLOCK_ROWS + (size_t)r) * bytes, row + k * bytes, bytes);
}

static void place_group(const Group *g, int pair) {
    const CodeKind kind = g->traits.kind;
    if (kind == INTEGERS) place_integers(g);
    if (kind == GRID_INDICES && g->traits.flags & PLANAR) place_planar_entries(g);
    if (kind == GRID_INDICES && !(g->traits.flags & PLANAR)) place_entries(g);
    if (kind == DIGITS) place_digits(g, pair);
    for (int j = 0; kind == NIBBLE_TABLE && j < GROUP / 4; j++)
        place_nibbles(g, j, block_nibbles(g->type, g->block, g->column + 4 * j));
    place_scales(g);
}

/* Columns outside, rows inside: what is written to stays in the first cache, however wide the matrix. */
static void fill_codes_of(TensorType type, const Weight *weight, const uint8_t *const *rows, int n, uint8_t *block) {
    const WeightTraits t = packed_traits(type, weight->planar_grids);
    for (int column = 0; column < weight->columns; column += GROUP) {
        const PairPlace at = place_of_pair(t, column);
        for (int r = 0; r < n; r++) {
            const Group g = {.type = type,
                             .traits = t,
                             .block = rows[r] + (size_t)(column / t.columns) * (size_t)t.bytes,
                             .column = column % t.columns,
                             .codes = block + at.codes,
                             .small = block + at.small,
                             .scales = block + at.scales,
                             .odd = column / GROUP % 2,
                             .row = r};
            place_group(&g, at.index);
        }
    }
}

/* Loading a file is mostly this: all of the above is compiled into it for each type by itself. */
#if defined(__GNUC__)
__attribute__((flatten))
#endif
static void fill_codes(const Weight *weight, const uint8_t *const *rows, int n, uint8_t *block) {
#define CASE(NAME, name, number) \
    case TYPE_##NAME: fill_codes_of(TYPE_##NAME, weight, rows, n, block); return;
    switch (weight->type) {
        QUANTISED_TYPES(CASE)
    default: return;
    }
#undef CASE
}

void weight_fill_block(Weight *weight, int block, const uint8_t *const *rows) {
    const WeightTraits t = traits_of(weight->type);
    uint8_t *out = weight->data + (size_t)block * weight->block_bytes;
    const int left = weight->rows - block * BLOCK_ROWS, n = left < BLOCK_ROWS ? left : BLOCK_ROWS;
    memset(out, 0, weight->block_bytes);
    if (t.bits) fill_codes(weight, rows, n, out);
    for (int r = 0; !t.bits && r < n; r++) fill_floats(weight, (size_t)t.bytes, rows[r], r, out);
}

void weight_fill(Weight *weight, const Tensor *tensor, const int32_t *row_ids, int first_block, int last_block) {
    for (int b = first_block; b < last_block; b++) {
        const uint8_t *rows[BLOCK_ROWS];
        for (int r = 0, row = b * BLOCK_ROWS; r < BLOCK_ROWS && row < weight->rows; r++, row++)
            rows[r] = tensor_row(tensor, row_ids ? row_ids[row] : row);
        weight_fill_block(weight, b, rows);
    }
}
