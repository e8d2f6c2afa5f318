/* Tests of the packing: every weight of every type is found again, exactly, at the place that kernels.h describes. */
#include "check.h"
#include "cpu/pack.h"
#include "file/tensor.h"
#include "ggml_blocks.h"

#include <stdlib.h>

static double half_value(const uint8_t *p) { /* a float16 is the F16 type's block */
    return exact_weight(&block_types[1], p, 0).scaled;
}

static double single_value(const uint8_t *p) { return exact_weight(&block_types[0], p, 0).scaled; }

/* What kernels.h says of each type. */
static const struct {
    int bits, zero, bytes; /* of a pair */
    bool has_minimum, has_super_scale, has_halves;
} descriptions[] = {
    [TYPE_Q4_0] = {4, 8, 512 + 64, false, false, false},     [TYPE_Q4_1] = {4, 0, 512 + 128, true, false, false},
    [TYPE_Q4_K] = {4, 0, 512 + 64 + 64, true, true, false},  [TYPE_Q5_0] = {5, 16, 640 + 64, false, false, false},
    [TYPE_Q5_1] = {5, 0, 640 + 128, true, false, false},     [TYPE_Q5_K] = {5, 0, 640 + 64 + 64, true, true, false},
    [TYPE_Q6_K] = {6, 32, 768 + 64 + 64, false, true, true}, /* 32 of the last 64 are padding */
    [TYPE_Q8_0] = {8, 128, 1024 + 64, false, false, false},
};

/* The parts of a packed weight, read by the description alone. */
typedef struct Packed {
    int code;
    double scale, minimum, value;
} Packed;

static Packed packed_weight(const Weight *w, int row, int column) {
    const uint8_t *block = w->data + (size_t)(row / 16) * w->block_bytes;
    const int r = row % 16;
    if (w->type == TYPE_F16) return (Packed){.value = half_value(block + 2 * (16 * column + r))};
    if (w->type == TYPE_F32) return (Packed){.value = single_value(block + 4 * (16 * column + r))};
    if (w->type == TYPE_BF16)
        return (Packed){.value = exact_weight(&block_types[2], block + 2 * (16 * column + r), 0).scaled};
    const int bits = descriptions[w->type].bits, group = column % 64 / 32, j = column % 32 / 4,
              lane = 4 * r + column % 4;
    const bool has_minimum = descriptions[w->type].has_minimum, halves = descriptions[w->type].has_halves;
    const uint8_t *pair = block + (size_t)(column / 64) * (size_t)descriptions[w->type].bytes;
    Packed p = {.code = pair[64 * j + lane] >> (group ? 4 : 0) & 15};
    const uint8_t *plane = pair + 512 + 64 * (bits - 4) * group;
    if (bits == 5) p.code += 16 * (plane[lane] >> j & 1);
    if (bits == 6) p.code += 16 * (plane[64 * (j / 4) + lane] >> 2 * (j % 4) & 3);
    if (bits == 8) p.code = pair[512 * group + 64 * j + lane];
    const uint8_t *scales = pair + 128 * bits;
    if (!descriptions[w->type].has_super_scale) {
        p.scale = half_value(scales + 32 * group + 2 * r);
        if (has_minimum) p.minimum = half_value(scales + 64 + 32 * group + 2 * r);
    } else {
        const uint8_t *small = scales + (halves ? 32 * group + column % 32 / 16 * 16 : 16 * group) + r;
        const uint8_t *super = scales + (halves || has_minimum ? 64 : 32) + 2 * r;
        p.scale = half_value(super) * (int8_t)*small;
        if (has_minimum) p.minimum = half_value(super + 32) * (int8_t)scales[32 + 16 * group + r];
    }
    p.value = p.scale * (p.code - descriptions[w->type].zero) + p.minimum;
    return p;
}

static bool same(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

static bool is_zero(Packed p) { return p.code == 0 && p.scale == 0 && p.minimum == 0 && (p.value == 0); }

/* The sum of a small block's scaled code and minimum is exact in double precision: multiples of 2^-24 below 2^28. */
static void test_tensor(const BlockType *type, int rows, int columns, const int32_t *row_ids, int n_rows,
                        Random *random) {
    const Tensor tensor = random_tensor(type, rows, columns, false, random);
    Weight w;
    weight_layout(&w, &tensor, n_rows);
    const size_t bytes = (size_t)w.n_blocks * w.block_bytes;
    CHECK_EQ(w.n_blocks, (n_rows + 15) / 16);
    CHECK_EQ(packed_size(type->type, n_rows, columns), bytes);
    CHECK_EQ(w.block_bytes % 32, 0);
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
            const Packed p = packed_weight(&w, r, c);
            const bool inside = r < n_rows && c < columns;
            /* A padding column shares its pair with real ones only group-wise, so all of its parts are zero. */
            if (!inside && !(!w.n_pairs ? p.value == 0 : is_zero((Packed){p.code, p.scale, p.minimum, 0}))) padding++;
            if (!inside) continue;
            const ExactWeight e = exact_weight(type, tensor.data + (size_t)source * (tensor.size / (size_t)rows), c);
            wrong_weights += !same(p.value, e.scaled + e.minimum);
            wrong_floats += !same(floats[c], (float)(e.scaled + e.minimum));
        }
    }
    if (!CHECK_EQ(wrong_weights, 0) || !CHECK_EQ(wrong_floats, 0) || !CHECK_EQ(padding, 0))
        printf("    %s, %d rows of %d, %d columns\n", type->name, n_rows, rows, columns);
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
        weight_layout(&w, &tensor, 5);
        w.data = aligned_alloc(64, (w.block_bytes + 63) / 64 * 64);
        weight_fill(&w, &tensor, NULL, 0, 1);
        for (size_t r = 0; r < 5; r++)
            for (size_t c = 0; c < 37; c++)
                CHECK(!memcmp(w.data + (16 * c + r) * size, tensor.data + (37 * r + c) * size, size));
        free(w.data);
        free((void *)tensor.data);
    }
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
    return check_report();
}
