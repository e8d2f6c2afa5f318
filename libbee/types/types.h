/* The weight types by their number: what their files say, behind one function for each question. */
#ifndef BEE_TYPES_TYPES_H
#define BEE_TYPES_TYPES_H

#include "types/bf16.h"
#include "types/f16.h"
#include "types/f32.h"
#include "types/list.h"
#include "types/q4_0.h"
#include "types/q4_1.h"
#include "types/q4_k.h"
#include "types/q5_0.h"
#include "types/q5_1.h"
#include "types/q5_k.h"
#include "types/q6_k.h"
#include "types/q8_0.h"

/* Of a number without a type: all zero. */
TRAITS_FUNCTION WeightTraits traits_of(TensorType type) {
    const WeightTraits none = {0, 0, 0, 0, 0};
#define CASE(NAME, name, number)                     \
    case TYPE_##NAME: {                              \
        const WeightTraits traits = {NAME##_TRAITS}; \
        return traits;                               \
    }
    switch (type) {
        WEIGHT_TYPES(CASE)
    default: return none;
    }
#undef CASE
}

/* The codes of a row's columns from `column` on, a multiple of 32, of a quantised type. */
TYPE_FUNCTION void group_codes(TensorType type, const uint8_t *row, int column, uint32_t codes[8]) {
#define CASE(NAME, name, number)                                                                \
    case TYPE_##NAME: {                                                                         \
        const WeightTraits t = {NAME##_TRAITS};                                                 \
        const uint8_t *const block = row + (size_t)(column / t.columns) * (size_t)t.bytes;      \
        for (int j = 0; j < 8; j++) codes[j] = name##_codes(block, column % t.columns + 4 * j); \
        return;                                                                                 \
    }
    switch (type) {
        QUANTISED_TYPES(CASE)
    default: return;
    }
#undef CASE
}

/* Four codes of a block, and the scale at one of its columns. */
TYPE_FUNCTION uint32_t block_codes(TensorType type, const uint8_t *block, int column) {
#define CASE(NAME, name, number) \
    case TYPE_##NAME: return name##_codes(block, column);
    switch (type) {
        QUANTISED_TYPES(CASE)
    default: return 0;
    }
#undef CASE
}

TYPE_FUNCTION BlockScale block_scale(TensorType type, const uint8_t *block, int column) {
    const BlockScale none = {0, 0, 0, 0};
#define CASE(NAME, name, number) \
    case TYPE_##NAME: return name##_scale(block, column);
    switch (type) {
        QUANTISED_TYPES(CASE)
    default: return none;
    }
#undef CASE
}

/* A block of random bytes becomes one of usual weights. */
static inline void make_random_block(TensorType type, uint8_t *block, uint64_t random) {
#define CASE(NAME, name, number) \
    case TYPE_##NAME: name##_random(block, random); return;
    switch (type) {
        WEIGHT_TYPES(CASE)
    default: return;
    }
#undef CASE
}

#endif
