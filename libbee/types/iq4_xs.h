/* IQ4_XS: {float16 d; u16 high; u8 low[4]; nibbles[128]}, weight = d * (scale - 32) * (the nibble's number in the table
 * of IQ4_NL), with a scale of 6 bits for every 32 columns: its low four bits in the nibbles of `low`, the others in the
 * pairs of `high`. */
#ifndef BEE_TYPES_IQ4_XS_H
#define BEE_TYPES_IQ4_XS_H

#include "types/nibble_tables.h"

#define IQ4_XS_TRAITS 256, 136, 8, 128, SUPER, NIBBLE_TABLE, 0, 0, 0

TYPE_FUNCTION uint32_t iq4_xs_nibbles(const uint8_t *block, int column) {
    return split_nibbles(block + 8 + column / 32 * 16, column % 32);
}

TYPE_FUNCTION uint32_t iq4_xs_codes(const uint8_t *block, int column) {
    return look_up_nibbles(iq4_table(), iq4_xs_nibbles(block, column));
}

TYPE_FUNCTION BlockScale iq4_xs_scale(const uint8_t *block, int column) {
    const int j = column / 32, low = block[4 + j / 2] >> j % 2 * 4 & 15;
    BlockScale s = plain_scale(block, NULL);
    s.small = (low | (int)(read_u16(block + 2) >> 2 * j & 3) << 4) - 32;
    return s;
}

static inline void iq4_xs_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x00d3);
}

#endif
