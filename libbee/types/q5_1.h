/* Q5_1: {float16 scale, minimum; u8 fifth[4]; nibbles[16]}, weight = scale * code + minimum. */
#ifndef BEE_TYPES_Q5_1_H
#define BEE_TYPES_Q5_1_H

#include "types/block.h"

#define Q5_1_TRAITS 32, 24, 5, 0, MINIMUM, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q5_1_codes(const uint8_t *block, int column) {
    return split_nibbles(block + 8, column) | fifth_bits(block + 4, column);
}

TYPE_FUNCTION BlockScale q5_1_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block, block + 2);
}

static inline void q5_1_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x16f5);
    write_u16(block + 2, 0xa6bd);
}

#endif
