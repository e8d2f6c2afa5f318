/* IQ3_XXS: {float16 d; u8 index[64]; u32 words[8]}. An index stands for four numbers of a grid. Of a group of 32
 * columns' word, 7 bits are the signs of eight columns, from the lowest on, and the top four the scale: weight = d / 4
 * * (2 * scale + 1) * number. */
#ifndef BEE_TYPES_IQ3_XXS_H
#define BEE_TYPES_IQ3_XXS_H

#include "types/grids.h"

#define IQ3_XXS_TRAITS 256, 98, 7, 62, SUPER | ODD | SIGNS, GRID_INDICES, 4, 8, -2

TYPE_FUNCTION GridEntry iq3_xxs_entry(const uint8_t *block, int column) {
    const uint32_t word = read_u32(block + 66 + column / 32 * 4);
    const unsigned signs = seven_signs(word >> column % 32 / 8 * 7);
    return grid_entry(block[2 + column / 4], signs >> column % 8 / 4 * 4);
}

TYPE_FUNCTION uint32_t iq3_xxs_codes(const uint8_t *block, int column) {
    const WeightTraits t = {IQ3_XXS_TRAITS};
    return grid_codes(iq3_xxs_grid, t, iq3_xxs_entry(block, column), column);
}

TYPE_FUNCTION BlockScale iq3_xxs_scale(const uint8_t *block, int column) {
    return odd_scale(read_u16(block), block[69 + column / 32 * 4] >> 4);
}

static inline void iq3_xxs_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x0738);
}

#endif
