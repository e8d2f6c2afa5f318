#include "pack.h"

#include <string.h>

#include "file/tensor.h"

/* 32 columns of one row: value = scale * (code - zero) + minimum, with a scale for each 16 columns. */
typedef struct Group {
    uint32_t code[GROUP / 4]; /* of four columns each */
    BlockScale half[2];
} Group;

static Group unpack_group(TensorType type, const uint8_t *row, int group) {
    const WeightTraits t = traits_of(type);
    const int column = GROUP * group, in_block = column % t.columns;
    const uint8_t *block = row + (size_t)(column / t.columns) * (size_t)t.bytes;
    Group g;
    group_codes(type, block, in_block, g.code);
    g.half[0] = block_scale(type, block, in_block);
    g.half[1] = t.scales & HALVES ? block_scale(type, block, in_block + GROUP / 2) : g.half[0];
    return g;
}

void weight_layout(Weight *weight, const Tensor *tensor, int n_rows) {
    const WeightTraits t = traits_of(tensor->type);
    *weight = (Weight){.type = tensor->type, .rows = n_rows, .columns = (int)tensor->columns};
    weight->n_blocks = (n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    weight->n_pairs = t.bits ? (weight->columns + PAIR - 1) / PAIR : 0;
    weight->block_bytes =
        t.bits ? weight->n_pairs * (size_t)pair_bytes(t) : (size_t)weight->columns * BLOCK_ROWS * (size_t)t.bytes;
}

size_t packed_size(TensorType type, int rows, int columns) {
    const Tensor shape = {.type = type, .columns = columns};
    Weight weight;
    weight_layout(&weight, &shape, rows);
    return weight.block_bytes * (size_t)weight.n_blocks;
}

/* Four codes that move by `left` bits within their bytes, behind those that are there already. */
static void place(uint8_t *at, uint32_t codes, int left) {
    uint32_t word;
    memcpy(&word, at, sizeof word);
    word |= codes << left;
    memcpy(at, &word, sizeof word);
}

static void place_codes(WeightTraits t, uint8_t *pair, int odd, int row, const Group *g) {
    const int more = t.bits - 4; /* bits above the nibble */
    const uint32_t mask = more == 1 ? 0x01010101 : 0x03030303;
    uint8_t *plane = pair + 512 + 64 * more * odd;
    for (int j = 0; j < GROUP / 4; j++) {
        const int at = 64 * j + 4 * row;
        if (t.bits == 8) {
            place(pair + 512 * odd + at, g->code[j], 0);
            continue;
        }
        place(pair + at, g->code[j] & 0x0f0f0f0f, odd ? 4 : 0);
        if (more) place(plane + 64 * (j * more / 8) + 4 * row, g->code[j] >> 4 & mask, j * more % 8);
    }
}

static void place_scales(WeightTraits t, uint8_t *pair, int odd, int row, const Group *g) {
    const BlockScale *s = &g->half[0];
    const bool has_minimum = t.scales & MINIMUM;
    uint8_t *p = pair + code_bytes(t);
    if (!(t.scales & SUPER)) {
        memcpy(p + 32 * odd + 2 * row, &s->scale, 2);
        if (has_minimum) memcpy(p + 64 + 32 * odd + 2 * row, &s->minimum, 2);
        return;
    }
    const int n_scales = t.scales & HALVES ? 2 : 1, per_group = BLOCK_ROWS * n_scales;
    for (int h = 0; h < n_scales; h++) p[per_group * odd + BLOCK_ROWS * h + row] = (uint8_t)g->half[h].small;
    if (has_minimum) p[2 * per_group + BLOCK_ROWS * odd + row] = (uint8_t)s->small_minimum;
    p += small_scale_bytes(t);
    memcpy(p + 2 * row, &s->scale, 2);
    if (has_minimum) memcpy(p + 32 + 2 * row, &s->minimum, 2);
}

static void fill_floats(const Weight *weight, size_t bytes, const uint8_t *row, int r, uint8_t *block) {
    for (size_t k = 0; k < (size_t)weight->columns; k++)
        memcpy(block + (k * BLOCK_ROWS + (size_t)r) * bytes, row + k * bytes, bytes);
}

static void fill_codes(const Weight *weight, WeightTraits t, const uint8_t *row, int r, uint8_t *block) {
    for (int group = 0; group < weight->columns / GROUP; group++) {
        const Group g = unpack_group(weight->type, row, group);
        uint8_t *pair = block + (size_t)(group / 2) * (size_t)pair_bytes(t);
        place_codes(t, pair, group % 2, r, &g);
        place_scales(t, pair, group % 2, r, &g);
    }
}

void weight_fill(Weight *weight, const Tensor *tensor, const int32_t *row_ids, int first_block, int last_block) {
    const WeightTraits t = traits_of(weight->type);
    for (int b = first_block; b < last_block; b++) {
        uint8_t *block = weight->data + (size_t)b * weight->block_bytes;
        memset(block, 0, weight->block_bytes);
        for (int r = 0; r < BLOCK_ROWS && b * BLOCK_ROWS + r < weight->rows; r++) {
            const uint8_t *row = tensor_row(tensor, row_ids ? row_ids[b * BLOCK_ROWS + r] : b * BLOCK_ROWS + r);
            if (t.bits)
                fill_codes(weight, t, row, r, block);
            else
                fill_floats(weight, (size_t)t.bytes, row, r, block);
        }
    }
}
