/* F16: float16, IEEE 754 binary16. */
#ifndef BEE_TYPES_F16_H
#define BEE_TYPES_F16_H

#include "types/block.h"

#define F16_TRAITS 1, 2, 0, 0, 0, INTEGERS, 0, 0, 0

/* Sizes from 1/64 to 1/32, of either sign. */
static inline void f16_random(uint8_t *block, uint64_t random) {
    write_u16(block, (unsigned)(random >> 63 << 15 | 0x2400 | (random & 0x3ff)));
}

#endif
