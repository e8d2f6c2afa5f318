/* MXFP4: {u8 exponent; nibbles[16]}, weight = 2^(exponent - 128) * (twice the nibble as a float of 4 bits). */
#ifndef BEE_TYPES_MXFP4_H
#define BEE_TYPES_MXFP4_H

#include "types/nibble_tables.h"

#define MXFP4_TRAITS 32, 17, 5, 12, EXPONENT, NIBBLE_TABLE, 0, 0, 0

TYPE_FUNCTION uint32_t mxfp4_nibbles(const uint8_t *block, int column) { return split_nibbles(block + 1, column); }

TYPE_FUNCTION uint32_t mxfp4_codes(const uint8_t *block, int column) {
    return look_up_nibbles(fp4_table(), mxfp4_nibbles(block, column));
}

TYPE_FUNCTION BlockScale mxfp4_scale(const uint8_t *block, int column) {
    (void)column;
    const BlockScale s = {block[0], 0, 1, 1};
    return s;
}

static inline void mxfp4_random(uint8_t *block, uint64_t random) { block[0] = (uint8_t)(119 + (random >> 63)); }

#endif
