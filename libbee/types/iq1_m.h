/* IQ1_M: {u8 index[32]; nibbles high[16]; u16 words[4]}. As IQ1_S, but an index has a nibble of its own for three more
 * bits and, on top, the sign of the eighth. A word holds the scales of four times 16 columns, three bits each; the top
 * nibbles of the four words, the first one lowest, are the float16 d. */
#ifndef BEE_TYPES_IQ1_M_H
#define BEE_TYPES_IQ1_M_H

#include "types/grids.h"

#define IQ1_M_TRAITS 256, 56, 5, 9, SUPER | ODD | HALVES | EIGHTHS, GRID_INDICES, 8, 11, -3

TYPE_FUNCTION GridEntry iq1_m_entry(const uint8_t *block, int column) {
    const int i = column / 8;
    const unsigned high = (unsigned)block[32 + i / 2] >> i % 2 * 4 & 15;
    return grid_entry(block[i] | (high & 7) << 8, high >> 3);
}

TYPE_FUNCTION uint32_t iq1_m_codes(const uint8_t *block, int column) {
    const WeightTraits t = {IQ1_M_TRAITS};
    return grid_codes(iq1_grid, t, iq1_m_entry(block, column), column);
}

TYPE_FUNCTION BlockScale iq1_m_scale(const uint8_t *block, int column) {
    const uint8_t *const words = block + 48;
    const unsigned d = (unsigned)words[1] >> 4 | (words[3] >> 4) << 4 | (words[5] >> 4) << 8 | (words[7] >> 4) << 12;
    const int j = column / 16;
    return odd_scale(d, (int)(read_u16(words + j / 4 * 2) >> j % 4 * 3 & 7));
}

static inline void iq1_m_random(uint8_t *block, uint64_t random) {
    (void)random;
    const unsigned d = 0x1878;
    for (int i = 0; i < 4; i++) block[49 + 2 * i] = (uint8_t)((block[49 + 2 * i] & 15) | (d >> 4 * i & 15) << 4);
}

#endif
