/* IQ2_XS: {float16 d; u16 entries[32]; u8 scales[8]}. An entry's low 9 bits are an index that stands for eight numbers
 * of a grid, the others their signs; nibbles are scales of 16 columns: weight = d / 8 * (2 * scale + 1) * number. */
#ifndef BEE_TYPES_IQ2_XS_H
#define BEE_TYPES_IQ2_XS_H

#include "types/grids.h"

#define IQ2_XS_TRAITS 256, 74, 7, 43, SUPER | ODD | HALVES | SIGNS, GRID_INDICES, 8, 9, -3

TYPE_FUNCTION GridEntry iq2_xs_entry(const uint8_t *block, int column) {
    const unsigned both = read_u16(block + 2 + column / 8 * 2);
    return grid_entry(both & 511, seven_signs(both >> 9));
}

TYPE_FUNCTION uint32_t iq2_xs_codes(const uint8_t *block, int column) {
    const WeightTraits t = {IQ2_XS_TRAITS};
    return grid_codes(iq2_xs_grid, t, iq2_xs_entry(block, column), column);
}

TYPE_FUNCTION BlockScale iq2_xs_scale(const uint8_t *block, int column) {
    return odd_scale(read_u16(block), block[66 + column / 32] >> column % 32 / 16 * 4 & 15);
}

static inline void iq2_xs_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x0c89);
}

#endif
