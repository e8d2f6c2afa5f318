/* IQ1_S: {float16 d; u8 index[32]; u16 high[8]}. An index, with three more bits from `high`, stands for eight numbers
 * of a grid, -1, 0 or 1, and an eighth is added to these, or subtracted where the top bit of the 32 columns' `high` is
 * set; the three bits below it are their scale: weight = d * (2 * scale + 1) * (number +- 1/8). Codes are eighths. */
#ifndef BEE_TYPES_IQ1_S_H
#define BEE_TYPES_IQ1_S_H

#include "types/grids.h"

#define IQ1_S_TRAITS 256, 50, 5, 9, SUPER | ODD | EIGHTHS, GRID_INDICES, 8, 11, -3

TYPE_FUNCTION GridEntry iq1_s_entry(const uint8_t *block, int column) {
    const int i = column / 8;
    const unsigned high = read_u16(block + 34 + i / 4 * 2);
    return grid_entry(block[2 + i] | (high >> i % 4 * 3 & 7) << 8, high >> 15);
}

TYPE_FUNCTION uint32_t iq1_s_codes(const uint8_t *block, int column) {
    const WeightTraits t = {IQ1_S_TRAITS};
    return grid_codes(iq1_grid, t, iq1_s_entry(block, column), column);
}

TYPE_FUNCTION BlockScale iq1_s_scale(const uint8_t *block, int column) {
    return odd_scale(read_u16(block), block[35 + column / 32 * 2] >> 4 & 7);
}

static inline void iq1_s_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x186c);
}

#endif
