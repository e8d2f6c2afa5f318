/* Block formats are those of ggml (ggml-common.h describes each block's fields). */
#include "pack.h"

#include <string.h>

#include "float16.h"

Form form_of_type(TensorType type) {
    switch (type) {
    case TYPE_Q4_0: return FORM_4;
    case TYPE_Q4_1: return FORM_4M;
    case TYPE_Q4_K: return FORM_4K;
    case TYPE_Q8_0: return FORM_8;
    case TYPE_Q5_0: return FORM_5;
    case TYPE_Q5_1: return FORM_5M;
    case TYPE_Q5_K: return FORM_5K;
    case TYPE_Q6_K: return FORM_6K;
    case TYPE_F16: return FORM_F16;
    case TYPE_BF16: return FORM_BF16;
    default: return FORM_F32;
    }
}

/* 32 columns of one row: value = scale * (code - zero) + minimum, with a scale for each 16 columns. */
typedef struct Group {
    uint8_t code[GROUP];
    int zero;
    uint16_t scale_f16, minimum_f16;      /* the file's bits */
    int8_t small_scale[2], small_minimum; /* what the K types multiply them with, otherwise 1 */
} Group;

static uint16_t read_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static uint32_t read_u32(const uint8_t *p) { return read_u16(p) | (uint32_t)read_u16(p + 2) << 16; }

/* Low nibbles are the first 16 columns, high nibbles the last 16; `fifth` holds one more bit of each. */
static void split_nibbles(Group *g, const uint8_t *nibbles, uint32_t fifth) {
    for (int i = 0; i < 16; i++) {
        g->code[i] = (uint8_t)((nibbles[i] & 15) | (fifth >> i & 1) << 4);
        g->code[i + 16] = (uint8_t)(nibbles[i] >> 4 | (fifth >> (i + 16) & 1) << 4);
    }
}

static void set_scale(Group *g, const uint8_t *scale, const uint8_t *minimum, int zero) {
    g->scale_f16 = read_u16(scale);
    g->minimum_f16 = minimum ? read_u16(minimum) : 0;
    g->small_scale[0] = g->small_scale[1] = g->small_minimum = 1;
    g->zero = zero;
}

/* Q4_K and Q5_K: 8 scales and 8 minima of 6 bits in 12 bytes; the last four of each are split over two bytes. The
 * minimum is subtracted. */
static void set_k_scale(Group *g, const uint8_t *block, int j) {
    const uint8_t *q = block + 4;
    const int scale = j < 4 ? q[j] & 63 : (q[j + 4] & 15) | (q[j - 4] >> 6) << 4;
    const int minimum = j < 4 ? q[j + 4] & 63 : q[j + 4] >> 4 | (q[j] >> 6) << 4;
    set_scale(g, block, block + 2, 0);
    g->small_scale[0] = g->small_scale[1] = (int8_t)scale;
    g->small_minimum = (int8_t)-minimum;
}

/* Group j (of 8) of a block of 256 columns. `high_bits` is NULL for Q4_K. */
static void unpack_k(Group *g, const uint8_t *block, const uint8_t *nibbles, const uint8_t *high_bits, int j) {
    nibbles += 32 * (j / 2);
    for (int i = 0; i < GROUP; i++) {
        const int low = j % 2 ? nibbles[i] >> 4 : nibbles[i] & 15;
        g->code[i] = (uint8_t)(low | (high_bits ? (high_bits[i] >> j & 1) << 4 : 0));
    }
    set_k_scale(g, block, j);
}

/* Q6_K: per 128 columns, 64 bytes of low nibbles and 32 of bit pairs; group j takes nibble j / 2, pair j. */
static void unpack_6k(Group *g, const uint8_t *block, int j) {
    const uint8_t *low = block + 64 * (j / 4) + 32 * (j % 2), *high = block + 128 + 32 * (j / 4);
    const int8_t *scales = (const int8_t *)block + 192 + 8 * (j / 4) + 2 * (j % 4);
    for (int i = 0; i < GROUP; i++)
        g->code[i] = (uint8_t)((j % 4 < 2 ? low[i] & 15 : low[i] >> 4) | (high[i] >> 2 * (j % 4) & 3) << 4);
    set_scale(g, block + 208, NULL, 32);
    memcpy(g->small_scale, scales, 2);
}

static void unpack_group(TensorType type, const uint8_t *row, int group, Group *g) {
    const uint8_t *block;
    switch (type) {
    case TYPE_Q4_0:
        block = row + 18 * group;
        split_nibbles(g, block + 2, 0);
        set_scale(g, block, NULL, 8);
        break;
    case TYPE_Q4_1:
        block = row + 20 * group;
        split_nibbles(g, block + 4, 0);
        set_scale(g, block, block + 2, 0);
        break;
    case TYPE_Q5_0:
        block = row + 22 * group;
        split_nibbles(g, block + 6, read_u32(block + 2));
        set_scale(g, block, NULL, 16);
        break;
    case TYPE_Q5_1:
        block = row + 24 * group;
        split_nibbles(g, block + 8, read_u32(block + 4));
        set_scale(g, block, block + 2, 0);
        break;
    case TYPE_Q8_0:
        block = row + 34 * group;
        for (int i = 0; i < GROUP; i++) g->code[i] = block[2 + i] ^ 0x80; /* int8 + 128 */
        set_scale(g, block, NULL, 128);
        break;
    case TYPE_Q4_K:
        block = row + 144 * (group / 8);
        unpack_k(g, block, block + 16, NULL, group % 8);
        break;
    case TYPE_Q5_K:
        block = row + 176 * (group / 8);
        unpack_k(g, block, block + 48, block + 16, group % 8);
        break;
    case TYPE_Q6_K: unpack_6k(g, row + 210 * (group / 8), group % 8); break;
    default: break; /* float types have no groups */
    }
}

static const uint8_t *tensor_row(const Tensor *tensor, int64_t row) {
    return tensor->data + row * (tensor->size / (uint64_t)tensor->rows);
}

static float read_float(TensorType type, const uint8_t *row, int64_t i) {
    if (type == TYPE_F16) return float_from_f16(read_u16(row + 2 * i));
    if (type == TYPE_BF16) return float_from_bf16(read_u16(row + 2 * i));
    return float_from_bits(read_u32(row + 4 * i));
}

void dequantize_row(const Tensor *tensor, int64_t row, float *out) {
    const uint8_t *data = tensor_row(tensor, row);
    if (!form_layouts[form_of_type(tensor->type)].code_bits) {
        for (int64_t i = 0; i < tensor->columns; i++) out[i] = read_float(tensor->type, data, i);
        return;
    }
    for (int group = 0; group < tensor->columns / GROUP; group++) {
        Group g;
        unpack_group(tensor->type, data, group, &g);
        const float minimum = float_from_f16(g.minimum_f16) * g.small_minimum;
        for (int i = 0; i < GROUP; i++)
            *out++ = float_from_f16(g.scale_f16) * g.small_scale[i / 16] * (float)(g.code[i] - g.zero) + minimum;
    }
}

void weight_layout(Weight *weight, const Tensor *tensor, int n_rows) {
    const FormLayout f = form_layouts[form_of_type(tensor->type)];
    *weight = (Weight){.form = form_of_type(tensor->type), .rows = n_rows, .columns = (int)tensor->columns};
    weight->n_blocks = (n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    weight->n_pairs = f.code_bits ? (weight->columns + PAIR - 1) / PAIR : 0;
    weight->block_bytes =
        f.code_bits ? weight->n_pairs * (size_t)pair_bytes(f) : (size_t)weight->columns * BLOCK_ROWS * f.element_bytes;
}

size_t packed_size(TensorType type, int rows, int columns) {
    const Tensor shape = {.type = type, .columns = columns};
    Weight weight;
    weight_layout(&weight, &shape, rows);
    return weight.block_bytes * (size_t)weight.n_blocks;
}

static void place_codes(FormLayout f, uint8_t *pair, int odd, int row, const Group *g) {
    const int more = f.code_bits - 4; /* bits above the nibble */
    uint8_t *plane = pair + 512 + 64 * more * odd;
    for (int i = 0; i < GROUP; i++) {
        const int j = i / 4, lane = 4 * row + i % 4;
        if (f.code_bits == 8) {
            pair[512 * odd + 64 * j + lane] = g->code[i];
            continue;
        }
        pair[64 * j + lane] |= (uint8_t)((g->code[i] & 15) << (odd ? 4 : 0));
        if (more) plane[64 * (j * more / 8) + lane] |= (uint8_t)((g->code[i] >> 4) << (j * more % 8));
    }
}

static void place_scales(FormLayout f, uint8_t *pair, int odd, int row, const Group *g) {
    uint8_t *p = pair + code_bytes(f);
    if (!f.has_super_scale) {
        memcpy(p + 32 * odd + 2 * row, &g->scale_f16, 2);
        if (f.has_minimum) memcpy(p + 64 + 32 * odd + 2 * row, &g->minimum_f16, 2);
        return;
    }
    const int per_group = BLOCK_ROWS * (f.has_halves ? 2 : 1);
    for (int h = 0; h < (f.has_halves ? 2 : 1); h++)
        p[per_group * odd + BLOCK_ROWS * h + row] = (uint8_t)g->small_scale[h];
    if (f.has_minimum) p[2 * per_group + BLOCK_ROWS * odd + row] = (uint8_t)g->small_minimum;
    p += small_scale_bytes(f);
    memcpy(p + 2 * row, &g->scale_f16, 2);
    if (f.has_minimum) memcpy(p + 32 + 2 * row, &g->minimum_f16, 2);
}

static void fill_block(const Weight *weight, FormLayout f, const Tensor *tensor, const uint8_t *const *rows, int n_rows,
                       uint8_t *block) {
    memset(block, 0, weight->block_bytes);
    for (int r = 0; r < n_rows; r++) {
        if (!f.code_bits) {
            for (int k = 0; k < weight->columns; k++)
                memcpy(block + ((size_t)k * BLOCK_ROWS + r) * f.element_bytes, rows[r] + (size_t)k * f.element_bytes,
                       f.element_bytes);
            continue;
        }
        for (int group = 0; group < weight->columns / GROUP; group++) {
            Group g;
            unpack_group(tensor->type, rows[r], group, &g);
            uint8_t *pair = block + (size_t)(group / 2) * pair_bytes(f);
            place_codes(f, pair, group % 2, r, &g);
            place_scales(f, pair, group % 2, r, &g);
        }
    }
}

void weight_fill(Weight *weight, const Tensor *tensor, const int32_t *row_ids, int first_block, int last_block) {
    const FormLayout f = form_layouts[weight->form];
    for (int block = first_block; block < last_block; block++) {
        const uint8_t *rows[BLOCK_ROWS];
        int n_rows = 0;
        for (int r = block * BLOCK_ROWS; r < weight->rows && n_rows < BLOCK_ROWS; r++)
            rows[n_rows++] = tensor_row(tensor, row_ids ? row_ids[r] : r);
        fill_block(weight, f, tensor, rows, n_rows, weight->data + (size_t)block * weight->block_bytes);
    }
}
