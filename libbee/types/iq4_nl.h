/* IQ4_NL: {float16 scale; nibbles[16]}, weight = scale * (the nibble's number in a table of sixteen). */
#ifndef BEE_TYPES_IQ4_NL_H
#define BEE_TYPES_IQ4_NL_H

#include "types/nibble_tables.h"

#define IQ4_NL_TRAITS 32, 18, 8, 128, 0, NIBBLE_TABLE, 0, 0, 0

TYPE_FUNCTION uint32_t iq4_nl_nibbles(const uint8_t *block, int column) { return split_nibbles(block + 2, column); }

TYPE_FUNCTION uint32_t iq4_nl_codes(const uint8_t *block, int column) {
    return look_up_nibbles(iq4_table(), iq4_nl_nibbles(block, column));
}

TYPE_FUNCTION BlockScale iq4_nl_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block, NULL);
}

/* The table's mean is not zero: so every other block is negative. */
static inline void iq4_nl_random(uint8_t *block, uint64_t random) {
    write_u16(block, 0x0ba2 | (unsigned)(random >> 63 << 15));
}

#endif
