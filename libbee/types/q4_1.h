/* Q4_1: {float16 scale, minimum; nibbles[16]}, weight = scale * nibble + minimum. */
#ifndef BEE_TYPES_Q4_1_H
#define BEE_TYPES_Q4_1_H

#include "types/block.h"

#define Q4_1_TRAITS 32, 20, 4, 0, MINIMUM, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q4_1_codes(const uint8_t *block, int column) { return split_nibbles(block + 4, column); }

TYPE_FUNCTION BlockScale q4_1_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block, block + 2);
}

static inline void q4_1_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x1af5);
    write_u16(block + 2, 0xa686);
}

#endif
