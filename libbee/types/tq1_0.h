/* TQ1_0: {u8 digits[48], last[4]; float16 scale}, weight = scale * (digit - 1). A byte holds five digits to the base of
 * 3, one of `last` four: digit n of byte q is (q * 3^n mod 256) * 3 / 256. Columns are those of the first 32 bytes'
 * digits 0, then of their digits 1 ... 4, the same of the next 16, then of the last four bytes. */
#ifndef BEE_TYPES_TQ1_0_H
#define BEE_TYPES_TQ1_0_H

#include "types/block.h"

#define TQ1_0_TRAITS 256, 54, 2, 1, WHOLE, DIGITS, 0, 0, 0

TYPE_FUNCTION unsigned digit_of(unsigned byte, int n) {
    for (; n; n--) byte = byte * 3 & 255;
    return byte * 3 >> 8;
}

TYPE_FUNCTION uint32_t tq1_0_codes(const uint8_t *block, int column) {
    const int width = column < 160 ? 32 : column < 240 ? 16 : 4, first = column < 160 ? 0 : column < 240 ? 160 : 240;
    const uint8_t *const bytes = block + (column < 160 ? 0 : column < 240 ? 32 : 48) + (column - first) % width;
    uint32_t codes = 0;
    for (int i = 0; i < 4; i++) codes |= digit_of(bytes[i], (column - first) / width) << 8 * i;
    return codes;
}

TYPE_FUNCTION BlockScale tq1_0_scale(const uint8_t *block, int column) {
    (void)column;
    return plain_scale(block + 52, NULL);
}

static inline void tq1_0_random(uint8_t *block, uint64_t random) {
    (void)random;
    write_u16(block + 52, 0x24e7);
}

#endif
