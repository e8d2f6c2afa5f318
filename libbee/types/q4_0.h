/* Q4_0: {float16 scale; nibbles[16]}, weight = scale * (nibble - 8). */
#ifndef BEE_TYPES_Q4_0_H
#define BEE_TYPES_Q4_0_H

#include "types/block.h"

#define Q4_0_TRAITS 32, 18, 4, 8, 0, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q4_0_codes(const uint8_t *block, int column) { return split_nibbles(block + 2, column); }

TYPE_FUNCTION BlockScale q4_0_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block, NULL);
}

static inline void q4_0_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x1af5);
}

#endif
