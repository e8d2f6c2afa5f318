/* Types that hold, for four or eight columns at a time, an index into a grid of small numbers: a code book. Beside what
 * block.h asks for, such a type's file has
 *
 *   xyz_entry   what a block says of the columns from `column` on, a multiple of the entry's columns */
#ifndef BEE_TYPES_GRIDS_H
#define BEE_TYPES_GRIDS_H

#include "types/block.h"

/* Four numbers to a word, the first in the lowest byte; an entry of eight columns is two words. The numbers of iq1_grid
 * are codes less one eighth: 0, 8 and 16 for -1, 0 and 1. */
#if defined(__cplusplus) /* devices cannot share what another file holds */
#include "types/grid_data.h"
#else
extern const uint32_t iq2_xxs_grid[512], iq2_xs_grid[1024], iq2_s_grid[2048], iq1_grid[4096], iq3_xxs_grid[256],
    iq3_s_grid[512];
extern const uint8_t iq2_xxs_digits[512], iq2_xs_digits[1024], iq2_s_digits[2048], iq1_digits[4096],
    iq3_xxs_digits[512], iq3_s_digits[1024];
#endif

typedef struct GridEntry {
    unsigned index, signs; /* bit i of signs: the number of column i is negative; of EIGHTHS: the eighth is */
} GridEntry;

TYPE_FUNCTION GridEntry grid_entry(unsigned index, unsigned signs) {
    GridEntry entry;
    entry.index = index;
    entry.signs = signs;
    return entry;
}

/* Of eight signs seven are stored: the number of negative ones is even. */
TYPE_FUNCTION unsigned seven_signs(unsigned bits) {
    const unsigned signs = bits & 127, fours = signs ^ signs >> 4, twos = fours ^ fours >> 2;
    return signs | ((twos ^ twos >> 1) & 1) << 7;
}

TYPE_FUNCTION BlockScale odd_scale(unsigned d, int scale) {
    const BlockScale s = {(uint16_t)d, 0, 2 * scale + 1, 1};
    return s;
}

/* The codes of four of an entry's columns. */
TYPE_FUNCTION uint32_t grid_codes(const uint32_t *grid, WeightTraits t, GridEntry entry, int column) {
    const uint32_t numbers = grid[(int)entry.index * (t.entry / 4) + column % t.entry / 4];
    if (t.flags & EIGHTHS) return numbers + (entry.signs & 1 ? 0u : 0x02020202u);
    const uint32_t negative = spread_bits(entry.signs >> column % t.entry) * 255;
    return (uint32_t)t.zero * 0x01010101u + (numbers & ~negative) - (numbers & negative);
}

#endif
