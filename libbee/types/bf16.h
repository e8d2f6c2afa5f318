/* BF16: the upper half of a float32. */
#ifndef BEE_TYPES_BF16_H
#define BEE_TYPES_BF16_H

#include "types/block.h"

#define BF16_TRAITS 1, 2, 0, 0, 0, INTEGERS, 0, 0, 0

/* Sizes from 1/64 to 1/32, of either sign. */
static inline void bf16_random(uint8_t *block, uint64_t random) {
    write_u16(block, (unsigned)(random >> 63 << 15 | 0x3c80 | (random & 0x7f)));
}

#endif
