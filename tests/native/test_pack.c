/* Tests of the packing: every weight of every type is found again, exactly, at the place that kernels.h describes. */
#include "check.h"
#include "ggml_blocks.h"
#include "pack.h"

#include <stdlib.h>

static double half_value(const uint8_t *p) { /* a float16 is the F16 type's block */
    return exact_weight(&block_types[1], p, 0).scaled;
}

static double single_value(const uint8_t *p) { return exact_weight(&block_types[0], p, 0).scaled; }

/* What kernels.h says of each form, in the order of the enumeration. */
static const struct {
    bool nibbles, wide_scale, has_minimum, halves;
    int zero;
} descriptions[] = {
    [FORM_4] = {true, false, false, false, 8},   [FORM_4M] = {true, false, true, false, 0},
    [FORM_4K] = {true, true, true, false, 0},    [FORM_8] = {false, false, false, false, 128},
    [FORM_5] = {false, false, false, false, 16}, [FORM_5M] = {false, false, true, false, 0},
    [FORM_5K] = {false, true, true, false, 0},   [FORM_6K] = {false, true, false, true, 32},
};

/* The parts of a packed weight, read by the description alone. */
typedef struct Packed {
    int code;
    double scale, minimum, value;
} Packed;

static Packed packed_weight(const Weight *w, int row, int column) {
    const uint8_t *block = w->data + (size_t)(row / 16) * w->block_bytes;
    const int r = row % 16;
    if (w->form == FORM_F16) return (Packed){.value = half_value(block + 2 * (16 * column + r))};
    if (w->form == FORM_F32) return (Packed){.value = single_value(block + 4 * (16 * column + r))};
    if (w->form == FORM_BF16)
        return (Packed){.value = exact_weight(&block_types[2], block + 2 * (16 * column + r), 0).scaled};
    const bool nibbles = descriptions[w->form].nibbles, wide = descriptions[w->form].wide_scale;
    const bool has_minimum = descriptions[w->form].has_minimum, halves = descriptions[w->form].halves;
    const int code_bytes = nibbles ? 512 : 1024, scale_bytes = wide ? 4 : 2;
    const int group_bytes = 16 * scale_bytes * (halves ? 2 : 1); /* scales of one group */
    const uint8_t *pair = block + (size_t)(column / 64) * (size_t)(code_bytes + group_bytes * (has_minimum ? 4 : 2));
    const int group = column % 64 / 32, j = column % 32 / 4, i = column % 4;
    const uint8_t byte = pair[(nibbles ? 0 : 512 * group) + 64 * j + 4 * r + i];
    const uint8_t *scale = pair + code_bytes + group * group_bytes + scale_bytes * r;
    if (halves) scale += column % 32 / 16 * 16 * scale_bytes;
    const uint8_t *minimum = pair + code_bytes + (2 + group) * group_bytes + scale_bytes * r;
    Packed p = {.code = !nibbles ? byte
                        : group  ? byte / 16
                                 : byte % 16,
                .scale = wide ? single_value(scale) : half_value(scale)};
    if (has_minimum) p.minimum = wide ? single_value(minimum) : half_value(minimum);
    p.value = p.scale * (p.code - descriptions[w->form].zero) + p.minimum;
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
            if (!inside && !(w.form >= FORM_F16 ? p.value == 0 : is_zero((Packed){p.code, p.scale, p.minimum, 0})))
                padding++;
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
