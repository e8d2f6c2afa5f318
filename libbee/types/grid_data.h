/* The code books as grids.h describes them. */
#ifndef BEE_TYPES_GRID_DATA_H
#define BEE_TYPES_GRID_DATA_H

#include <stdint.h>

#include "types/code_books.h"

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
#define IQ2_NUMBER(digit) (8u + 17u * (digit) + ((digit) == 2))
#define IQ1_NUMBER(digit) (8u * (digit))
#define IQ3_XXS_NUMBER(digit) (4u + 8u * (digit) + 2 * ((digit) == 7))
#define IQ3_S_NUMBER(digit) (1u + 2u * (digit))
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
/* Digits of the first half of each entry, then of the second: two nibbles, or four of two bits. Those of IQ3_S, whose
 * numbers are 1 + 2 digit, are doubled. */
#define FIRST_TWO_OF_3(e) (uint8_t)(((e) & 7) | ((e) >> 3 & 7) << 4),
#define LAST_TWO_OF_3(e) (uint8_t)(((e) >> 6 & 7) | ((e) >> 9 & 7) << 4),
#define FIRST_TWO_DOUBLED(e) (uint8_t)(((e) & 7) << 1 | ((e) >> 3 & 7) << 5),
#define LAST_TWO_DOUBLED(e) (uint8_t)(((e) >> 6 & 7) << 1 | ((e) >> 9 & 7) << 5),
#define FIRST_FOUR_OF_2(e) (uint8_t)((e) & 255),
#define LAST_FOUR_OF_2(e) (uint8_t)((e) >> 8),

const uint8_t iq2_xxs_digits[512] = {IQ2_XXS_BOOK(FIRST_FOUR_OF_2) IQ2_XXS_BOOK(LAST_FOUR_OF_2)};
const uint8_t iq2_xs_digits[1024] = {IQ2_XS_BOOK(FIRST_FOUR_OF_2) IQ2_XS_BOOK(LAST_FOUR_OF_2)};
const uint8_t iq2_s_digits[2048] = {IQ2_S_BOOK(FIRST_FOUR_OF_2) IQ2_S_BOOK(LAST_FOUR_OF_2)};
const uint8_t iq1_digits[4096] = {IQ1_BOOK(FIRST_FOUR_OF_2) IQ1_BOOK(LAST_FOUR_OF_2)};
const uint8_t iq3_xxs_digits[512] = {IQ3_XXS_BOOK(FIRST_TWO_OF_3) IQ3_XXS_BOOK(LAST_TWO_OF_3)};
const uint8_t iq3_s_digits[1024] = {IQ3_S_BOOK(FIRST_TWO_DOUBLED) IQ3_S_BOOK(LAST_TWO_DOUBLED)};
#endif

#endif
