/* The code books as grids.h describes them. */
#ifndef BEE_TYPES_GRID_DATA_H
#define BEE_TYPES_GRID_DATA_H

#include <stdint.h>

#include "types/code_books.h"
#include "types/planar_books.h"

#if defined(__CUDACC__)
#define GRID static __device__ const uint32_t
#elif defined(__cplusplus)
#define GRID static const uint32_t
#else
#define GRID const uint32_t
#endif

/* From an entry's digits, of two bits or of three, to its numbers. */
#define FOUR_OF_2(NUMBER, e) \
    ((uint32_t)NUMBER((e) & 3) | NUMBER((e) >> 2 & 3) << 8 | NUMBER((e) >> 4 & 3) << 16 | NUMBER((e) >> 6 & 3) << 24)
#define FOUR_OF_3(NUMBER, e) \
    ((uint32_t)NUMBER((e) & 7) | NUMBER((e) >> 3 & 7) << 8 | NUMBER((e) >> 6 & 7) << 16 | NUMBER((e) >> 9 & 7) << 24)
#define IQ2_ENTRY(e) FOUR_OF_2(IQ2_NUMBER, e), FOUR_OF_2(IQ2_NUMBER, (e) >> 8),
#define IQ1_ENTRY(e) FOUR_OF_2(IQ1_NUMBER, e), FOUR_OF_2(IQ1_NUMBER, (e) >> 8),
#define IQ3_XXS_ENTRY(e) FOUR_OF_3(IQ3_XXS_NUMBER, e),
#define IQ3_S_ENTRY(e) FOUR_OF_3(IQ3_S_NUMBER, e),

GRID iq2_xxs_grid[512] = {IQ2_XXS_BOOK(IQ2_ENTRY)};
GRID iq2_xs_grid[1024] = {IQ2_XS_BOOK(IQ2_ENTRY)};
GRID iq2_s_grid[2048] = {IQ2_S_BOOK(IQ2_ENTRY)};
GRID iq1_grid[4096] = {IQ1_BOOK(IQ1_ENTRY)};
GRID iq3_xxs_grid[256] = {IQ3_XXS_BOOK(IQ3_XXS_ENTRY)};
GRID iq3_s_grid[512] = {IQ3_S_BOOK(IQ3_S_ENTRY)};

#if !defined(__cplusplus)
#define FIRST_TWO_OF_3(e) (uint8_t)(((e) & 7) | ((e) >> 3 & 7) << 4),
#define LAST_TWO_OF_3(e) (uint8_t)(((e) >> 6 & 7) | ((e) >> 9 & 7) << 4),
#define FIRST_FOUR_OF_2(e) (uint8_t)((e) & 255),
#define LAST_FOUR_OF_2(e) (uint8_t)((e) >> 8),

const uint8_t iq2_xxs_halves[512] = {IQ2_XXS_BOOK(FIRST_FOUR_OF_2) IQ2_XXS_BOOK(LAST_FOUR_OF_2)};
const uint8_t iq3_xxs_halves[512] = {IQ3_XXS_BOOK(FIRST_TWO_OF_3) IQ3_XXS_BOOK(LAST_TWO_OF_3)};
const uint8_t iq3_s_halves[384] = {IQ3_S_FIRST IQ3_S_SECOND}, iq2_xs_halves[384] = {IQ2_XS_FIRST IQ2_XS_SECOND},
              iq2_s_halves[384] = {IQ2_S_FIRST IQ2_S_SECOND}, iq1_halves[512] = {IQ1_FIRST IQ1_SECOND};
const uint16_t iq3_s_planar[512] = {IQ3_S_NUMBERS}, iq2_xs_planar[512] = {IQ2_XS_NUMBERS},
               iq2_s_planar[1024] = {IQ2_S_NUMBERS}, iq1_planar[2048] = {IQ1_NUMBERS};
#endif

#endif
