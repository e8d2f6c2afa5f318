/* F32: float32. */
#ifndef BEE_TYPES_F32_H
#define BEE_TYPES_F32_H

#include "types/block.h"

#define F32_TRAITS 1, 4, 0, 0, 0, INTEGERS, 0, 0, 0

/* Evenly spread over [-1/32, 1/32): close enough. */
static inline void f32_random(uint8_t *block, uint64_t random) {
    const float number = (float)((int64_t)(random >> 40) - (1 << 23)) * 0x1p-28f;
    memcpy(block, &number, sizeof number);
}

#endif
