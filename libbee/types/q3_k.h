/* Q3_K: {third bits[32]; pairs[64]; u8 scales[12]; float16 d}, weight = d * (scale - 32) * (code - 4), with a scale of
 * 6 bits for every 16 columns: the low four bits in the nibbles of bytes 0 to 7, the others in the pairs of bytes 8 to
 * 11. The third bit of column i is bit i / 32 of byte i % 32. */
#ifndef BEE_TYPES_Q3_K_H
#define BEE_TYPES_Q3_K_H

#include "types/block.h"

#define Q3_K_TRAITS 256, 110, 3, 4, SUPER | HALVES, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q3_k_codes(const uint8_t *block, int column) {
    return bit_pairs(block + 32, column) | (read_u32(block + column % 32) >> column / 32 & 0x01010101u) << 2;
}

TYPE_FUNCTION BlockScale q3_k_scale(const uint8_t *block, int column) {
    const uint8_t *const q = block + 96;
    const int j = column / 16;
    const int low = j < 8 ? q[j] & 15 : q[j - 8] >> 4, high = q[8 + j % 4] >> j / 4 * 2 & 3;
    BlockScale s = plain_scale(block + 108, NULL);
    s.small = (low | high << 4) - 32;
    return s;
}

static inline void q3_k_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block + 108, 0x0ddd);
}

#endif
