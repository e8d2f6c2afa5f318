#include "tensor_types.h"

#include <stddef.h>

#include "types/types.h"

/* By ggml's number (enum ggml_type). Behind the types that run those that do not, with the sizes of ggml's block
 * structures; the ones without sizes are formats that ggml has withdrawn: a file may still name them, so they keep
 * their names. */
static const TensorTypeLayout layouts[] = {
#define COLUMNS_AND_BYTES(columns, bytes, ...) columns, bytes
#define RUNS(NAME, name, number) [number] = {#NAME, LAYOUT(NAME##_TRAITS), true},
#define LAYOUT(...) COLUMNS_AND_BYTES(__VA_ARGS__)
    WEIGHT_TYPES(RUNS)[4] = {"Q4_2", 0, 0, false},
    [5] = {"Q4_3", 0, 0, false},
    [9] = {"Q8_1", 32, 36, false},
    [10] = {"Q2_K", 256, 84, false},
    [11] = {"Q3_K", 256, 110, false},
    [15] = {"Q8_K", 256, 292, false},
    [16] = {"IQ2_XXS", 256, 66, false},
    [17] = {"IQ2_XS", 256, 74, false},
    [18] = {"IQ3_XXS", 256, 98, false},
    [19] = {"IQ1_S", 256, 50, false},
    [20] = {"IQ4_NL", 32, 18, false},
    [21] = {"IQ3_S", 256, 110, false},
    [22] = {"IQ2_S", 256, 82, false},
    [23] = {"IQ4_XS", 256, 136, false},
    [24] = {"I8", 1, 1, false},
    [25] = {"I16", 1, 2, false},
    [26] = {"I32", 1, 4, false},
    [27] = {"I64", 1, 8, false},
    [28] = {"F64", 1, 8, false},
    [29] = {"IQ1_M", 256, 56, false},
    [31] = {"Q4_0_4_4", 0, 0, false},
    [32] = {"Q4_0_4_8", 0, 0, false},
    [33] = {"Q4_0_8_8", 0, 0, false},
    [34] = {"TQ1_0", 256, 54, false},
    [35] = {"TQ2_0", 256, 66, false},
    [36] = {"IQ4_NL_4_4", 0, 0, false},
    [37] = {"IQ4_NL_4_8", 0, 0, false},
    [38] = {"IQ4_NL_8_8", 0, 0, false},
    [39] = {"MXFP4", 32, 17, false},
    [40] = {"NVFP4", 64, 36, false},
    [41] = {"Q1_0", 128, 18, false},
    [42] = {"Q2_0", 64, 18, false},
};

/* Each name behind a comma but the first. */
#define LISTED(NAME, name, number) ", " #NAME
static const char listed[] = WEIGHT_TYPES(LISTED);
const char *const tensor_types_that_run = listed + 2;

const TensorTypeLayout *tensor_type_layout(uint32_t type) {
    if (type >= sizeof layouts / sizeof layouts[0]) return NULL;
    return &layouts[type];
}
