/* Q4_K: {float16 d, d_minimum; u8 scales[12]; nibbles[128]}, weight = d * scale * nibble - d_minimum * minimum, with a
 * scale and a minimum of 6 bits for every 32 columns. */
#ifndef BEE_TYPES_Q4_K_H
#define BEE_TYPES_Q4_K_H

#include "types/block.h"

#define Q4_K_TRAITS 256, 144, 4, 0, SUPER | MINIMUM, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q4_k_codes(const uint8_t *block, int column) { return k_nibbles(block + 16, column); }

TYPE_FUNCTION BlockScale q4_k_scale(const uint8_t *block, int column) { return k_scale(block, column); }

static inline void q4_k_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x051f);
    write_u16(block + 2, 0x10cd);
}

#endif
