/* The weight types by their number: what their files say, behind one function for each question. */
#ifndef BEE_TYPES_TYPES_H
#define BEE_TYPES_TYPES_H

#include "types/bf16.h"
#include "types/f16.h"
#include "types/f32.h"
#include "types/iq1_m.h"
#include "types/iq1_s.h"
#include "types/iq2_s.h"
#include "types/iq2_xs.h"
#include "types/iq2_xxs.h"
#include "types/iq3_s.h"
#include "types/iq3_xxs.h"
#include "types/iq4_nl.h"
#include "types/iq4_xs.h"
#include "types/list.h"
#include "types/mxfp4.h"
#include "types/nvfp4.h"
#include "types/q1_0.h"
#include "types/q2_0.h"
#include "types/q2_k.h"
#include "types/q3_k.h"
#include "types/q4_0.h"
#include "types/q4_1.h"
#include "types/q4_k.h"
#include "types/q5_0.h"
#include "types/q5_1.h"
#include "types/q5_k.h"
#include "types/q6_k.h"
#include "types/q8_0.h"
#include "types/tq1_0.h"
#include "types/tq2_0.h"

/* Of a number without a type: all zero. */
TRAITS_FUNCTION WeightTraits traits_of(TensorType type) {
    const WeightTraits none = {0, 0, 0, 0, 0, INTEGERS, 0, 0, 0};
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

/* Of types that look nibbles up: four nibbles, and the table. */
TYPE_FUNCTION uint32_t block_nibbles(TensorType type, const uint8_t *block, int column) {
#define CASE(NAME, name, number) \
    case TYPE_##NAME: return name##_nibbles(block, column);
    switch (type) {
        TABLE_TYPES(CASE)
    default: return 0;
    }
#undef CASE
}

TYPE_FUNCTION NibbleTable table_of(TensorType type) {
    return type == TYPE_IQ4_NL || type == TYPE_IQ4_XS ? iq4_table() : fp4_table();
}

/* Of types with indices: an entry of a block. */
TYPE_FUNCTION GridEntry block_entry(TensorType type, const uint8_t *block, int column) {
#define CASE(NAME, name, number) \
    case TYPE_##NAME: return name##_entry(block, column);
    switch (type) {
        GRID_TYPES(CASE)
    default: return grid_entry(0, 0);
    }
#undef CASE
}

TYPE_FUNCTION const uint32_t *grid_of(TensorType type) {
    switch (type) {
    case TYPE_IQ3_S: return iq3_s_grid;
    case TYPE_IQ3_XXS: return iq3_xxs_grid;
    case TYPE_IQ2_S: return iq2_s_grid;
    case TYPE_IQ2_XS: return iq2_xs_grid;
    case TYPE_IQ2_XXS: return iq2_xxs_grid;
    default: return iq1_grid;
    }
}

/* A weight of a float type. */
TYPE_FUNCTION float float_weight(TensorType type, const uint8_t *at) {
    if (type == TYPE_F16) return half_value(read_u16(at));
    if (type == TYPE_BF16) return value_of_bits((uint32_t)read_u16(at) << 16);
    return value_of_bits(read_u32(at));
}

/* 16 weights that share a scale. */
TYPE_FUNCTION void weights_of_codes(WeightTraits t, BlockScale s, const uint32_t *codes, float *out) {
    const float scale = scale_of(t, s.scale) * (float)s.small;
    const float minimum = half_value(s.minimum) * (float)s.small_minimum;
    for (int i = 0; i < 16; i++) out[i] = scale * (float)((int)(codes[i / 4] >> 8 * (i % 4) & 0xff) - t.zero) + minimum;
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
