/* TQ2_0: {pairs[64]; float16 scale}, weight = scale * (pair - 1). */
#ifndef BEE_TYPES_TQ2_0_H
#define BEE_TYPES_TQ2_0_H

#include "types/block.h"

#define TQ2_0_TRAITS 256, 66, 2, 1, WHOLE, INTEGERS, 0, 0, 0

TYPE_FUNCTION uint32_t tq2_0_codes(const uint8_t *block, int column) { return bit_pairs(block, column); }

TYPE_FUNCTION BlockScale tq2_0_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block + 64, NULL);
}

/* Codes have a mean above zero: so every other block is negative. */
static inline void tq2_0_random(uint8_t *block, uint64_t random) {
    write_u16(block + 64, 0x228d | (unsigned)(random >> 63 << 15));
}

#endif
