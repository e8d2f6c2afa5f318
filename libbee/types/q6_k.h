/* Q6_K: {low[128]; high[64]; int8 scales[16]; float16 d}, weight = d * scale * (code - 32), with a scale for every 16
 * columns. Per 128 columns, 64 bytes of low nibbles and 32 of bit pairs; of these four groups j takes nibble j / 2 and
 * pair j. */
#ifndef BEE_TYPES_Q6_K_H
#define BEE_TYPES_Q6_K_H

#include "types/block.h"

#define Q6_K_TRAITS 256, 210, 6, 32, SUPER | HALVES, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q6_k_codes(const uint8_t *block, int column) {
    const int half = column / 128, j = column % 128 / 32, i = column % 32;
    const uint32_t low = read_u32(block + 64 * half + 32 * (j % 2) + i) >> j / 2 * 4 & 0x0f0f0f0fu;
    return low | (read_u32(block + 128 + 32 * half + i) >> 2 * j & 0x03030303u) << 4;
}

TYPE_FUNCTION BlockScale q6_k_scale(const uint8_t *block, int column) {
    BlockScale s = plain_scale(block + 208, NULL);
    s.small = (int8_t)block[192 + column / 16];
    return s;
}

static inline void q6_k_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block + 208, 0x00bf);
}

#endif
