/* Tests of the packing: every weight of every type is found again, exactly, at the place that packed.h describes. */
#include "check.h"
#include "cpu/pack.h"
#include "file/checksum.h"
#include "file/tensor.h"
#include "ggml_blocks.h"

#include <stdlib.h>

static double float16_value(const uint8_t *p) { /* a float16 is the F16 type's block */
    return exact_weight(&block_types[1], p, 0).scaled;
}

static double single_value(const uint8_t *p) { return exact_weight(&block_types[0], p, 0).scaled; }

/* What packed.h says of each type: planes of the code, or what takes their place; bytes of a span and its pairs. */
typedef enum Codes { PLANES, TABLE, ENTRIES, BASE_3 } Codes;
typedef enum Scales { HALF, SMALL, PAIRS, NIBBLES, ODD_NIBBLES, ONE, BYTE } Scales;
static const struct {
    Codes codes;
    int bits, zero, bytes, pairs;
    Scales scales;
    int per_group; /* scales */
    bool has_minimum;
} descriptions[] = {
    [TYPE_Q4_0] = {PLANES, 4, 8, 512 + 64, 1, HALF, 1, false},
    [TYPE_Q4_1] = {PLANES, 4, 0, 512 + 128, 1, HALF, 1, true},
    [TYPE_Q4_K] = {PLANES, 4, 0, 4 * (512 + 64) + 64, 4, SMALL, 1, true},
    [TYPE_Q5_0] = {PLANES, 5, 16, 640 + 64, 1, HALF, 1, false},
    [TYPE_Q5_1] = {PLANES, 5, 0, 640 + 128, 1, HALF, 1, true},
    [TYPE_Q5_K] = {PLANES, 5, 0, 4 * (640 + 64) + 64, 4, SMALL, 1, true},
    [TYPE_Q6_K] = {PLANES, 6, 32, 4 * (768 + 64) + 64, 4, SMALL, 2, false}, /* 32 of the last 64 are padding */
    [TYPE_Q8_0] = {PLANES, 8, 128, 1024 + 64, 1, HALF, 1, false},
    [TYPE_Q2_K] = {PLANES, 2, 0, 4 * (256 + 64) + 64, 4, NIBBLES, 2, true},
    [TYPE_Q3_K] = {PLANES, 3, 4, 4 * (384 + 64) + 64, 4, PAIRS, 2, false},
    [TYPE_Q2_0] = {PLANES, 2, 1, 256 + 64, 1, ONE, 1, false},
    [TYPE_Q1_0] = {PLANES, 1, 1, 2 * 128 + 64, 2, ONE, 1, false},
    [TYPE_TQ2_0] = {PLANES, 2, 1, 4 * 256 + 64, 4, ONE, 1, false},
    [TYPE_TQ1_0] = {BASE_3, 2, 1, 13 * 64 + 64, 4, ONE, 1, false},
    [TYPE_IQ4_NL] = {TABLE, 4, 0, 512 + 64, 1, HALF, 1, false},
    [TYPE_IQ4_XS] = {TABLE, 4, 0, 4 * (512 + 32) + 64, 4, SMALL, 1, false},
    [TYPE_MXFP4] = {TABLE, 4, 0, 2 * (512 + 32), 2, BYTE, 1, false},
    [TYPE_NVFP4] = {TABLE, 4, 0, 512 + 64, 1, BYTE, 2, false},
    [TYPE_IQ3_S] = {ENTRIES, 9, 0, 4 * (256 + 32 + 128 + 16) + 64, 4, ODD_NIBBLES, 1, false},
    [TYPE_IQ3_XXS] = {ENTRIES, 8, 0, 4 * (256 + 128 + 16) + 64, 4, ODD_NIBBLES, 1, false},
    [TYPE_IQ2_S] = {ENTRIES, 10, 0, 4 * (128 + 32 + 128 + 32) + 64, 4, ODD_NIBBLES, 2, false},
    [TYPE_IQ2_XS] = {ENTRIES, 9, 0, 4 * (128 + 16 + 128 + 32) + 64, 4, ODD_NIBBLES, 2, false},
    [TYPE_IQ2_XXS] = {ENTRIES, 8, 0, 4 * (128 + 128 + 16) + 64, 4, ODD_NIBBLES, 1, false},
    [TYPE_IQ1_S] = {ENTRIES, 12, 0, 4 * (128 + 64 + 16) + 64, 4, ODD_NIBBLES, 1, false},
    [TYPE_IQ1_M] = {ENTRIES, 12, 0, 4 * (128 + 64 + 32) + 64, 4, ODD_NIBBLES, 2, false},
};

/* The parts of a packed weight, read by the description alone. */
typedef struct Packed {
    int code;
    double scale, minimum, value;
} Packed;

/* Where a weight is: its pair's codes and small scales, the span and its scales; its column of the span. */
typedef struct Place {
    const uint8_t *span, *codes, *small, *scales;
    int row, column, group, j, lane;
} Place;

/* Planes of 4, 2 and 1 bits; or three together. */
static int planes_code(const Place *at, int bits) {
    const uint8_t *p = at->codes;
    int code = 0, place = 0;
    if (bits == 8) return p[512 * at->group + 64 * at->j + at->lane];
    if (bits == 3) { /* two to a byte, and the parts of two more */
        p += 192 * at->group + at->lane;
        if (at->j < 6) return p[64 * (at->j / 2)] >> 3 * (at->j % 2) & 7;
        return p[at->j == 6 ? 0 : 128] >> 6 | (p[64] >> at->j & 1) << 2;
    }
    if (bits & 4) code = p[64 * at->j + at->lane] >> (at->group ? 4 : 0) & 15, place = 4, p += 512;
    if (bits & 2)
        code += (p[128 * at->group + 64 * (at->j / 4) + at->lane] >> 2 * (at->j % 4) & 3) << place, place += 2,
            p += 256;
    if (bits & 1) code += (p[64 * at->group + at->lane] >> at->j & 1) << (bits == 1 ? 1 : place);
    return code;
}

/* The number of a grid that an entry stands for, from blocks that say nothing else: the reference's own look-up. */
static double entry_number(const BlockType *type, unsigned index, bool negative, int column) {
    uint8_t block[256] = {0};
    const int k = column % 256 / 8;
    switch (type->type) { /* d is 1, or what makes the smallest scale 1 */
    case TYPE_IQ3_S:
        block[1] = 0x3c, block[2 + column / 4] = (uint8_t)index,
        block[66 + column / 32] = (index > 255) << column / 4 % 8;
        block[74 + k] = (uint8_t)(negative << column % 8);
        break;
    case TYPE_IQ3_XXS: block[1] = 0x44, block[2 + column / 4] = (uint8_t)index; break; /* 4 / 4 */
    case TYPE_IQ2_S:
        block[1] = 0x48, block[2 + k] = (uint8_t)index, block[66 + k / 4] = (uint8_t)((index >> 8) << k % 4 * 2);
        block[34 + k] = (uint8_t)(negative << column % 8);
        break;
    case TYPE_IQ2_XS: block[1] = 0x48, block[2 + 2 * k] = (uint8_t)index, block[3 + 2 * k] = index > 255; break;
    case TYPE_IQ2_XXS: block[1] = 0x48, block[2 + 8 * (k / 4) + k % 4] = (uint8_t)index; break;
    default: /* IQ1_S: eighths */
        block[1] = 0x48, block[2 + k] = (uint8_t)index;
        const unsigned high = (index >> 8 & 7) << 3 * (k % 4) | (unsigned)negative << 15;
        block[34 + k / 4 * 2] = (uint8_t)high, block[35 + k / 4 * 2] = (uint8_t)(high >> 8);
        return exact_weight(&(BlockType){TYPE_IQ1_S, "", 256, 50, 32}, block, column).scaled;
    }
    const double number = exact_weight(type, block, column).scaled;
    return negative && number > 0 ? -number : number;
}

static double entry_value(const BlockType *type, const Place *at, int bits, bool eight, bool signs) {
    const int per_group = eight ? 4 : 8, more = bits - 8, in_group = at->column % 32;
    const int number = per_group * at->group + in_group / (32 / per_group);
    const uint8_t *upper = at->codes + 32 * per_group, *sign = upper + 4 * per_group * more;
    unsigned index = at->codes[16 * number + at->row];
    for (int i = 0; i < more; i++) {
        const int bit = 2 * per_group * more * at->row + number * more + i;
        index |= (unsigned)(upper[bit / 8] >> bit % 8 & 1) << (8 + i);
    }
    if (!signs) return entry_number(type, index & 2047, index >> 11, at->column % 256);
    return entry_number(type, index, sign[64 * at->group + at->lane] >> at->j & 1, at->column % 256);
}

/* The table's number, from a block of the reference with a scale of 1. */
static double table_value(const BlockType *type, int nibble) {
    if (type->type == TYPE_IQ4_NL || type->type == TYPE_IQ4_XS)
        return exact_weight(&(BlockType){TYPE_IQ4_NL, "", 32, 18, 32}, (const uint8_t[]){0, 0x3c, (uint8_t)nibble}, 0)
            .scaled;
    return exact_weight(&(BlockType){TYPE_MXFP4, "", 32, 17, 32}, (const uint8_t[]){128, (uint8_t)nibble}, 0).scaled;
}

static double byte_scale(const BlockType *type, uint8_t byte) {
    if (type->type == TYPE_MXFP4) return ldexp(1, byte - 128);
    uint8_t block[36] = {byte == 0x7f ? 0xff : byte, [4] = 2}; /* no scale is packed as nothing; the float 1 */
    return exact_weight(type, block, 0).scaled / 2;
}

static Packed packed_weight(const BlockType *type, const Weight *w, int row, int column) {
    const uint8_t *block = w->data + (size_t)(row / 16) * w->block_bytes;
    const int r = row % 16;
    if (w->type == TYPE_F16) return (Packed){.value = float16_value(block + 2 * (16 * column + r))};
    if (w->type == TYPE_F32) return (Packed){.value = single_value(block + 4 * (16 * column + r))};
    if (w->type == TYPE_BF16)
        return (Packed){.value = exact_weight(&block_types[2], block + 2 * (16 * column + r), 0).scaled};
    const int bits = descriptions[w->type].bits, pairs = descriptions[w->type].pairs,
              n = descriptions[w->type].per_group;
    const Codes codes = descriptions[w->type].codes;
    const Scales kind = descriptions[w->type].scales;
    const bool has_minimum = descriptions[w->type].has_minimum,
               signs = type->type != TYPE_IQ1_S && type->type != TYPE_IQ1_M;
    const bool eight = codes == ENTRIES && type->type != TYPE_IQ3_S && type->type != TYPE_IQ3_XXS;
    const int in_pair = codes == TABLE    ? 512
                        : codes == BASE_3 ? 208
                        : codes == PLANES ? 128 * bits
                                          : 16 * (eight ? 8 : 16) * bits / 8 + (signs ? 128 : 0);
    const int in_small = kind == HALF          ? 64 * (has_minimum ? 2 : 1)
                         : kind == SMALL       ? 32 * n + (has_minimum ? 32 : 0)
                         : kind == ODD_NIBBLES ? 16 * n
                         : kind == ONE         ? 0
                                               : 32 * n;
    const int pair = column / 64 % pairs, group = column % 64 / 32, half = n == 2 ? column % 32 / 16 : 0;
    const uint8_t *span = block + (size_t)(column / 64 / pairs) * (size_t)descriptions[w->type].bytes;
    const Place at = {.span = span,
                      .codes = span + in_pair * pair,
                      .small = span + in_pair * pairs + in_small * pair,
                      .scales = span + (in_pair + in_small) * pairs,
                      .row = r,
                      .column = column % (64 * pairs),
                      .group = group,
                      .j = column % 32 / 4,
                      .lane = 4 * r + column % 4};
    Packed p = {0};
    double number;
    if (codes == PLANES) {
        number = (p.code = planes_code(&at, bits)) - descriptions[w->type].zero;
    } else if (codes == TABLE) {
        number = table_value(type, p.code = planes_code(&at, 4));
    } else if (codes == BASE_3) {
        int rest = span[64 * (at.column / 20) + at.lane];
        for (int i = 0; i < at.column / 4 % 5; i++) rest = rest * 3 % 256;
        number = rest * 3 / 256 - 1;
    } else {
        number = entry_value(type, &at, bits, eight, signs);
    }
    const uint8_t small = at.small[kind == PAIRS                   ? 32 * group + 2 * r + half
                                   : kind == NIBBLES               ? 4 * r + 2 * half + group
                                   : n == 2 && kind == ODD_NIBBLES ? 16 * group + r
                                   : kind == ODD_NIBBLES           ? r
                                                                   : 16 * (n * group + half) + r];
    if (kind == HALF) {
        p.scale = float16_value(at.small + 32 * group + 2 * r);
        if (has_minimum) p.minimum = float16_value(at.small + 64 + 32 * group + 2 * r);
    } else if (kind == BYTE) {
        p.scale = byte_scale(type, small);
    } else {
        p.scale = float16_value(at.scales + 2 * r);
        if (kind == SMALL || kind == PAIRS) p.scale *= (int8_t)small;
        if (kind == NIBBLES) p.scale *= small % 16;
        if (kind == ODD_NIBBLES) p.scale *= 2 * (small >> 4 * (n == 2 ? half : group) & 15) + 1;
        if (codes == ENTRIES && type->type != TYPE_IQ3_S) p.scale /= type->type == TYPE_IQ3_XXS ? 4 : 8;
        if (has_minimum)
            p.minimum = float16_value(at.scales + 32 + 2 * r) *
                        (kind == NIBBLES ? -(small / 16) : (int8_t)at.small[32 + 16 * group + r]);
    }
    p.value = p.scale * number + p.minimum;
    return p;
}

static bool same(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

/* Rows of the packed matrix are those of the file: the same bits, but for those of a NaN. */
static long wrong_rows(const Tensor *tensor, const Weight *w, const int32_t *row_ids) {
    const size_t columns = (size_t)tensor->columns;
    float *from_file = malloc(columns * sizeof *from_file), *unpacked = malloc((columns + 1) * sizeof *unpacked);
    long wrong = 0;
    unpacked[columns] = 123; /* is not touched */
    for (int r = 0; r < w->rows; r++) {
        dequantize_row(tensor, row_ids ? row_ids[r] : r, from_file);
        weight_row(w, r, unpacked);
        for (size_t c = 0; c < columns; c++)
            wrong += memcmp(&from_file[c], &unpacked[c], sizeof(float)) && !(isnan(from_file[c]) && isnan(unpacked[c]));
        wrong += unpacked[columns] != 123;
    }
    free(from_file);
    free(unpacked);
    return wrong;
}

/* ... in the other form of grids, too. */
static void test_rows(const Tensor *tensor, const Weight *filled, const int32_t *row_ids) {
    CHECK_EQ(wrong_rows(tensor, filled, row_ids), 0);
    if (traits_of(tensor->type).kind != GRID_INDICES) return;
    Weight w;
    weight_layout(&w, tensor, filled->rows, true);
    w.data = aligned_alloc(64, (size_t)w.n_blocks * w.block_bytes);
    weight_fill(&w, tensor, row_ids, 0, w.n_blocks);
    CHECK_EQ(wrong_rows(tensor, &w, row_ids), 0);
    free(w.data);
}

/* The sum of a small block's scaled code and minimum is exact in double precision: multiples of 2^-24 below 2^28. */
static void test_tensor(const BlockType *type, int rows, int columns, const int32_t *row_ids, int n_rows,
                        Random *random) {
    const Tensor tensor = random_tensor(type, rows, columns, false, random);
    Weight w;
    weight_layout(&w, &tensor, n_rows, false);
    const size_t bytes = (size_t)w.n_blocks * w.block_bytes;
    CHECK_EQ(w.n_blocks, (n_rows + 15) / 16);
    CHECK_EQ(packed_size(type->type, n_rows, columns, false), bytes);
    CHECK_EQ(w.block_bytes % 32, 0);
    /* Somebody who chose few bits did so for memory. */
    for (int planar = 0; planar < 2 && type->columns > 1 && columns % 256 == 0 && n_rows % 16 == 0; planar++)
        CHECK((double)packed_size(type->type, n_rows, columns, planar) <=
              1.15 * n_rows * (columns / type->columns) * type->bytes);
    w.data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(w.data, 0xA5, bytes);
    weight_fill(&w, &tensor, row_ids, 0, w.n_blocks / 2);
    long untouched = 0;
    for (size_t i = (size_t)(w.n_blocks / 2) * w.block_bytes; i < bytes; i++) untouched += w.data[i] == 0xA5;
    CHECK_EQ(untouched, bytes - (size_t)(w.n_blocks / 2) * w.block_bytes); /* a share is filled, and no more */
    weight_fill(&w, &tensor, row_ids, w.n_blocks / 2, w.n_blocks);

    float *floats = malloc((size_t)columns * sizeof *floats);
    long wrong_weights = 0, wrong_floats = 0, padding = 0;
    for (int r = 0; r < w.n_blocks * 16; r++) {
        const int source = r < n_rows ? (row_ids ? row_ids[r] : r) : 0;
        if (r < n_rows) dequantize_row(&tensor, source, floats);
        for (int c = 0; c < (w.n_pairs ? w.n_pairs * 64 : columns); c++) {
            const Packed p = packed_weight(type, &w, r, c);
            const bool inside = r < n_rows && c < columns;
            /* Padding changes no sum: its weights are zeros. */
            if (!inside && p.value != 0) padding++;
            if (!inside) continue;
            const ExactWeight e = exact_weight(type, tensor.data + (size_t)source * (tensor.size / (size_t)rows), c);
            wrong_weights += !same(p.value, e.scaled + e.minimum);
            wrong_floats += !same(floats[c], (float)(e.scaled + e.minimum));
        }
    }
    if (!CHECK_EQ(wrong_weights, 0) || !CHECK_EQ(wrong_floats, 0) || !CHECK_EQ(padding, 0))
        printf("    %s, %d rows of %d, %d columns\n", type->name, n_rows, rows, columns);
    test_rows(&tensor, &w, row_ids);
    free(floats);
    free(w.data);
    free((void *)tensor.data);
}

/* Float bits, NaN payloads included, pass unchanged. */
static void test_float_bits(Random *random) {
    for (int t = 0; t < 3; t++) {
        const Tensor tensor = random_tensor(&block_types[t], 5, 37, false, random);
        const size_t size = (size_t)block_types[t].bytes;
        Weight w;
        weight_layout(&w, &tensor, 5, false);
        w.data = aligned_alloc(64, (w.block_bytes + 63) / 64 * 64);
        weight_fill(&w, &tensor, NULL, 0, 1);
        for (size_t r = 0; r < 5; r++)
            for (size_t c = 0; c < 37; c++)
                CHECK(!memcmp(w.data + (16 * c + r) * size, tensor.data + (37 * r + c) * size, size));
        free(w.data);
        free((void *)tensor.data);
    }
}

/* The bytes of every type, in both forms: files of packed weights hold them, from one version of the library to the
 * next. */
static uint64_t packed_bytes_sum(void) {
    Random random = {7};
    uint64_t sum = 0;
    for (int t = 0; t < N_BLOCK_TYPES; t++) {
        const BlockType *type = &block_types[t];
        const Tensor tensor = random_tensor(type, 37, 3 * type->columns, true, &random);
        for (int planar = 0; planar < 2; planar++) {
            Weight w;
            weight_layout(&w, &tensor, 37, planar);
            const size_t bytes = (size_t)w.n_blocks * w.block_bytes;
            w.data = aligned_alloc(64, (bytes + 63) / 64 * 64);
            weight_fill(&w, &tensor, NULL, 0, w.n_blocks);
            sum = checksum(w.data, bytes, sum);
            free(w.data);
        }
        free((void *)tensor.data);
    }
    return sum;
}

/* Where this fails, what is packed has become other bytes: raise PACKED_VERSION, and note both numbers here. */
static void test_version(void) {
    CHECK_EQ(PACKED_VERSION, 3);
    CHECK_EQ(packed_bytes_sum(), 0x8caec9e2fe0d3826);
}

int main(void) {
    Random random = {1};
    const int32_t picked[] = {4, 0, 4, 2, 1, 0, 3, 3, 3, 4, 1, 2, 0, 0, 1, 2, 3, 4, 2};
    for (int t = 0; t < N_BLOCK_TYPES; t++) {
        const BlockType *type = &block_types[t];
        for (int blocks = 1; blocks <= 5; blocks++) { /* odd and even multiples: the last pair may be half empty */
            const int columns = type->columns * blocks * (type->columns == 1 ? 7 : 1);
            test_tensor(type, 1, columns, NULL, 1, &random);
            test_tensor(type, 16, columns, NULL, 16, &random);
            test_tensor(type, 37, columns, NULL, 37, &random);
            test_tensor(type, 5, columns, picked, sizeof picked / sizeof *picked, &random);
        }
    }
    test_float_bits(&random);
    test_version();
    return check_report();
}
