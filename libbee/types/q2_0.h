/* Q2_0: {float16 scale; pairs[16]}, weight = scale * (pair - 1); the four pairs of a byte are successive columns. */
#ifndef BEE_TYPES_Q2_0_H
#define BEE_TYPES_Q2_0_H

#include "types/block.h"

#define Q2_0_TRAITS 64, 18, 2, 1, WHOLE, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q2_0_codes(const uint8_t *block, int column) {
    const uint32_t byte = block[2 + column / 4];
    return (byte & 3) | (byte & 12) << 6 | (byte & 48) << 12 | (byte & 192) << 18;
}

TYPE_FUNCTION BlockScale q2_0_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block, NULL);
}

/* Codes have a mean above zero: so every other block is negative. */
static inline void q2_0_random(uint8_t *block, uint64_t random) {
    write_u16(block, 0x227f | (unsigned)(random >> 63 << 15));
}

#endif
