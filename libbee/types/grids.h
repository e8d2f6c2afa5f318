/* Types that hold, for four or eight columns at a time, an index into a grid of small numbers: a code book. Beside what
 * block.h asks for, such a type's file has
 *
 *   xyz_entry   what a block says of the columns from `column` on, a multiple of the entry's columns */
#ifndef BEE_TYPES_GRIDS_H
#define BEE_TYPES_GRIDS_H

#include "types/block.h"

/* The numbers of digits. */
#define IQ2_NUMBER(digit) (8u + 17u * (digit) + ((digit) == 2))
#define IQ1_NUMBER(digit) (8u * (digit))
#define IQ3_XXS_NUMBER(digit) (4u + 8u * (digit) + 2 * ((digit) == 7))
#define IQ3_S_NUMBER(digit) (1u + 2u * (digit))

/* Four numbers to a word, the first in the lowest byte; an entry of eight columns is two words. The numbers of iq1_grid
 * are codes less one eighth: 0, 8 and 16 for -1, 0 and 1. */
#if defined(__cplusplus) /* devices cannot share what another file holds */
#include "types/grid_data.h"
#else
extern const uint32_t iq2_xxs_grid[512], iq2_xs_grid[1024], iq2_s_grid[2048], iq1_grid[4096], iq3_xxs_grid[256],
    iq3_s_grid[512];
/* Digits of the halves of entries, as the planar form looks them up (cpu/packed.h), those of all first halves and then
 * of the second ones: two nibbles, or four of two bits. And entries' numbers there, of books whose indices are not
 * such numbers. */
extern const uint8_t iq3_s_halves[384], iq3_xxs_halves[512], iq2_s_halves[384], iq2_xs_halves[384], iq2_xxs_halves[512],
    iq1_halves[512];
extern const uint16_t iq3_s_planar[512], iq2_s_planar[1024], iq2_xs_planar[512], iq1_planar[2048];
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

/* The codes of four numbers with these signs; or, of EIGHTHS, with that of their eighth. */
TYPE_FUNCTION uint32_t signed_codes(WeightTraits t, uint32_t numbers, unsigned signs) {
    if (t.flags & EIGHTHS) return numbers + (signs & 1 ? 0u : 0x02020202u);
    const uint32_t negative = spread_bits(signs) * 255;
    return (uint32_t)t.zero * 0x01010101u + (numbers & ~negative) - (numbers & negative);
}

/* The codes of four of an entry's columns. */
TYPE_FUNCTION uint32_t grid_codes(const uint32_t *grid, WeightTraits t, GridEntry entry, int column) {
    const uint32_t numbers = grid[(int)entry.index * (t.entry / 4) + column % t.entry / 4];
    return signed_codes(t, numbers, t.flags & EIGHTHS ? entry.signs : entry.signs >> column % t.entry);
}

#endif
