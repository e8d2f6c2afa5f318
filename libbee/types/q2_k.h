/* Q2_K: {u8 scales[16]; pairs[64]; float16 d, d_minimum}, weight = d * (low nibble of the scale) * code - d_minimum *
 * (its high nibble), with a scale for every 16 columns. */
#ifndef BEE_TYPES_Q2_K_H
#define BEE_TYPES_Q2_K_H

#include "types/block.h"

#define Q2_K_TRAITS 256, 84, 2, 0, SUPER | MINIMUM | HALVES, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q2_k_codes(const uint8_t *block, int column) { return bit_pairs(block + 16, column); }

TYPE_FUNCTION BlockScale q2_k_scale(const uint8_t *block, int column) {
    const uint8_t both = block[column / 16];
    BlockScale s = plain_scale(block + 80, block + 82);
    s.small = both & 15;
    s.small_minimum = -(both >> 4);
    return s;
}

static inline void q2_k_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block + 80, 0x149f);
    write_u16(block + 82, 0x16ef);
}

#endif
