/* Q8_0: {float16 scale; int8 codes[32]}, weight = scale * code. Here codes are counted from -128. */
#ifndef BEE_TYPES_Q8_0_H
#define BEE_TYPES_Q8_0_H

#include "types/block.h"

#define Q8_0_TRAITS 32, 34, 8, 128, 0, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t q8_0_codes(const uint8_t *block, int column) {
    return read_u32(block + 2 + column) ^ 0x80808080u;
}

TYPE_FUNCTION BlockScale q8_0_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block, NULL);
}

static inline void q8_0_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block, 0x0aeb);
}

#endif
