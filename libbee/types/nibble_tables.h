/* Types whose nibbles stand for the numbers of a table. Here the tables hold codes: the numbers with the zero point
 * added, four to a word. Beside what block.h asks for, such a type's file has
 *
 *   xyz_nibbles   the nibbles of four successive columns, as xyz_codes has their codes */
#ifndef BEE_TYPES_NIBBLE_TABLES_H
#define BEE_TYPES_NIBBLE_TABLES_H

#include "types/block.h"

typedef struct NibbleTable {
    uint32_t words[4];
} NibbleTable;

/* -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113: chosen by ggml's authors (kvalues_iq4nl of
 * ggml-common.h). */
TYPE_FUNCTION NibbleTable iq4_table(void) {
    const NibbleTable table = {{0x3f2d1801u, 0x766a5d4fu, 0xa6998d81u, 0xf1d9c5b5u}};
    return table;
}

/* Twice the floats of 4 bits, one of them the sign, two the exponent: 0, 1, 2, 3, 4, 6, 8, 12, then the same below
 * zero. */
TYPE_FUNCTION NibbleTable fp4_table(void) {
    const NibbleTable table = {{0x0f0e0d0cu, 0x18141210u, 0x090a0b0cu, 0x00040608u}};
    return table;
}

TYPE_FUNCTION uint32_t look_up_nibbles(NibbleTable table, uint32_t nibbles) {
#if defined(__CUDACC__)
    const uint32_t twos = nibbles | nibbles >> 4, low_bits = ((twos & 0xff) | (twos >> 8 & 0xff00)) & 0x7777;
    const uint32_t upper = (nibbles >> 3 & 0x01010101u) * 255;
    return (__byte_perm(table.words[0], table.words[1], low_bits) & ~upper) |
           (__byte_perm(table.words[2], table.words[3], low_bits) & upper);
#else
    uint32_t codes = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t nibble = nibbles >> 8 * i & 15;
        codes |= (table.words[nibble / 4] >> nibble % 4 * 8 & 255) << 8 * i;
    }
    return codes;
#endif
}

#endif
