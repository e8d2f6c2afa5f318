/* IQ2_XXS: {float16 d; eight times {u8 index[4]; u32 word}}. An index stands for eight numbers of a grid; their signs
 * are 7 bits of the word, from the lowest on, and the scale of the 32 columns is in its top four: weight = d / 8 * (2 *
 * scale + 1) * number. */
#ifndef BEE_TYPES_IQ2_XXS_H
#define BEE_TYPES_IQ2_XXS_H

#include "types/grids.h"

#define IQ2_XXS_TRAITS 256, 66, 7, 43, SUPER | ODD | SIGNS, GRID_INDICES, 8, 8, -3

TYPE_FUNCTION GridEntry iq2_xxs_entry(const uint8_t *block, int column) {
    const uint8_t *const group = block + 2 + column / 32 * 8;
    const int i = column % 32 / 8;
    return grid_entry(group[i], seven_signs(read_u32(group + 4) >> 7 * i));
}

TYPE_FUNCTION uint32_t iq2_xxs_codes(const uint8_t *block, int column) {
    const WeightTraits t = {IQ2_XXS_TRAITS};
    return grid_codes(iq2_xxs_grid, t, iq2_xxs_entry(block, column), column);
}

TYPE_FUNCTION BlockScale iq2_xxs_scale(const uint8_t *block, int column) {
    return odd_scale(read_u16(block), (int)(block[9 + column / 32 * 8] >> 4));
}

static inline void iq2_xxs_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x0cc6);
}

#endif
