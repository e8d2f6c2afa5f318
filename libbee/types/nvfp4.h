/* NVFP4: {u8 scales[4]; nibbles[32]}, weight = scale * (the nibble as a float of 4 bits), with a scale for every 16
 * columns: 4 bits of exponent and 3 of mantissa, of which 0x7f counts as zero and the top bit as nothing. Each 8 bytes
 * have 16 columns: low nibbles the first 8, high nibbles the others. A tensor's .scale is applied to its products. */
#ifndef BEE_TYPES_NVFP4_H
#define BEE_TYPES_NVFP4_H

#include "types/nibble_tables.h"

#define NVFP4_TRAITS 64, 36, 5, 12, SMALL_FLOAT | HALVES, NIBBLE_TABLE, 0, 0, 0

TYPE_FUNCTION uint32_t nvfp4_nibbles(const uint8_t *block, int column) {
    return read_u32(block + 4 + column / 16 * 8 + column % 8) >> column % 16 / 8 * 4 & 0x0f0f0f0fu;
}

TYPE_FUNCTION uint32_t nvfp4_codes(const uint8_t *block, int column) {
    return look_up_nibbles(fp4_table(), nvfp4_nibbles(block, column));
}

TYPE_FUNCTION BlockScale nvfp4_scale(const uint8_t *block, int column) {
    const uint8_t scale = block[column / 16];
    const BlockScale s = {(uint16_t)(scale == 127 ? 0 : scale & 127), 0, 1, 1};
    return s;
}

static inline void nvfp4_random(uint8_t *block, uint64_t random) {
    (void)random;
    memset(block, 0x02, 4);
}

#endif
