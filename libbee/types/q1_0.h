/* Q1_0: {float16 scale; bits[16]}, weight = scale where the column's bit is set, -scale otherwise. Codes are 0 and 2.
 */
#ifndef BEE_TYPES_Q1_0_H
#define BEE_TYPES_Q1_0_H

#include "types/block.h"

#define Q1_0_TRAITS 128, 18, 1, 1, WHOLE, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q1_0_codes(const uint8_t *block, int column) {
    return spread_bits((unsigned)block[2 + column / 8] >> column % 8) << 1;
}

TYPE_FUNCTION BlockScale q1_0_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block, NULL);
}

static inline void q1_0_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x2400);
}

#endif
