/* IQ3_S: {float16 d; u8 index[64], high[8], signs[32], scales[4]}. An index, with one more bit from `high`, stands for
 * four numbers of a grid; nibbles are scales of 32 columns: weight = d * (2 * scale + 1) * number. */
#ifndef BEE_TYPES_IQ3_S_H
#define BEE_TYPES_IQ3_S_H

#include "types/grids.h"

#define IQ3_S_TRAITS 256, 110, 5, 15, SUPER | ODD | SIGNS, GRID_INDICES, 4, 9, 0

TYPE_FUNCTION GridEntry iq3_s_entry(const uint8_t *block, int column) {
    const int i = column / 4;
    const unsigned high = (unsigned)block[66 + i / 8] >> i % 8 & 1;
    return grid_entry(block[2 + i] | high << 8, (unsigned)block[74 + i / 2] >> i % 2 * 4);
}

TYPE_FUNCTION uint32_t iq3_s_codes(const uint8_t *block, int column) {
    const WeightTraits t = {IQ3_S_TRAITS};
    return grid_codes(iq3_s_grid, t, iq3_s_entry(block, column), column);
}

TYPE_FUNCTION BlockScale iq3_s_scale(const uint8_t *block, int column) {
    return odd_scale(read_u16(block), block[106 + column / 64] >> column % 64 / 32 * 4 & 15);
}

static inline void iq3_s_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x0753);
}

#endif
