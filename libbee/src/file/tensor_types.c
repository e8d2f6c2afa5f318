#include "tensor_types.h"

#include <stddef.h>

#include "types/types.h"

/* By ggml's number (enum ggml_type). Behind the types that run those that do not, with the sizes of ggml's block
 * structures; the ones without sizes are formats that ggml has withdrawn: a file may still name them, so they keep
 * their names. */
// clang-format off
static const TensorTypeLayout layouts[] = {
#define COLUMNS_AND_BYTES(columns, bytes, ...) columns, bytes
#define RUNS(NAME, name, number) [number] = {#NAME, LAYOUT(NAME##_TRAITS), true},
#define LAYOUT(...) COLUMNS_AND_BYTES(__VA_ARGS__)
    WEIGHT_TYPES(RUNS)
    [4] = {"Q4_2", 0, 0, false},
    [5] = {"Q4_3", 0, 0, false},
    [9] = {"Q8_1", 32, 36, false},
    [15] = {"Q8_K", 256, 292, false},
    [24] = {"I8", 1, 1, false},
    [25] = {"I16", 1, 2, false},
    [26] = {"I32", 1, 4, false},
    [27] = {"I64", 1, 8, false},
    [28] = {"F64", 1, 8, false},
    [31] = {"Q4_0_4_4", 0, 0, false},
    [32] = {"Q4_0_4_8", 0, 0, false},
    [33] = {"Q4_0_8_8", 0, 0, false},
    [36] = {"IQ4_NL_4_4", 0, 0, false},
    [37] = {"IQ4_NL_4_8", 0, 0, false},
    [38] = {"IQ4_NL_8_8", 0, 0, false},
};
// clang-format on

/* Each name behind a comma but the first. */
#define LISTED(NAME, name, number) ", " #NAME
static const char listed[] = WEIGHT_TYPES(LISTED);
const char *const tensor_types_that_run = listed + 2;

const TensorTypeLayout *tensor_type_layout(uint32_t type) {
    if (type >= sizeof layouts / sizeof layouts[0]) return NULL;
    return &layouts[type];
}
