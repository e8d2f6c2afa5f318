/* Q5_K: {float16 d, d_minimum; u8 scales[12]; u8 fifth[32]; nibbles[128]}: Q4_K with one more bit of each code, that of
 * group j in bit j of `fifth`. */
#ifndef BEE_TYPES_Q5_K_H
#define BEE_TYPES_Q5_K_H

#include "types/block.h"

#define Q5_K_TRAITS 256, 176, 5, 0, SUPER | MINIMUM, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q5_k_codes(const uint8_t *block, int column) {
    const uint32_t fifth = read_u32(block + 16 + column % 32) >> column / 32 & 0x01010101u;
    return k_nibbles(block + 48, column) | fifth << 4;
}

TYPE_FUNCTION BlockScale q5_k_scale(const uint8_t *block, int column) { return k_scale(block, column); }

static inline void q5_k_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x028f);
    write_u16(block + 2, 0x10f6);
}

#endif
