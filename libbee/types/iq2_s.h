/* IQ2_S: {float16 d; u8 index[32], signs[32], high[8], scales[8]}. An index, with two more bits from `high`, stands for
 * eight numbers of a grid; nibbles are scales of 16 columns: weight = d / 8 * (2 * scale + 1) * number. */
#ifndef BEE_TYPES_IQ2_S_H
#define BEE_TYPES_IQ2_S_H

#include "types/grids.h"

#define IQ2_S_TRAITS 256, 82, 7, 43, SUPER | ODD | HALVES | SIGNS, GRID_INDICES, 8, 10, -3

TYPE_FUNCTION GridEntry iq2_s_entry(const uint8_t *block, int column) {
    const int i = column / 8;
    const unsigned high = (unsigned)block[66 + i / 4] >> i % 4 * 2 & 3;
    return grid_entry(block[2 + i] | high << 8, block[34 + i]);
}

TYPE_FUNCTION uint32_t iq2_s_codes(const uint8_t *block, int column) {
    const WeightTraits t = {IQ2_S_TRAITS};
    return grid_codes(iq2_s_grid, t, iq2_s_entry(block, column), column);
}

TYPE_FUNCTION BlockScale iq2_s_scale(const uint8_t *block, int column) {
    return odd_scale(read_u16(block), block[74 + column / 32] >> column % 32 / 16 * 4 & 15);
}

static inline void iq2_s_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x0c81);
}

#endif
