/* Q5_0: {float16 scale; u8 fifth[4]; nibbles[16]}, weight = scale * (code - 16). */
#ifndef BEE_TYPES_Q5_0_H
#define BEE_TYPES_Q5_0_H

#include "types/block.h"

#define Q5_0_TRAITS 32, 22, 5, 16, 0, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q5_0_codes(const uint8_t *block, int column) {
    return split_nibbles(block + 6, column) | fifth_bits(block + 2, column);
}

TYPE_FUNCTION BlockScale q5_0_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block, NULL);
}

static inline void q5_0_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x16f5);
}

#endif
