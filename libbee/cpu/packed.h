/* The packed forms of weights and activations.
 *
 * Weights. Rows are packed in blocks of 16, columns in pairs of 32-column groups, both padded with zeros. A span has
 * as many pairs as have a block's columns, 1, 2 or 4; two where one would end amid a line of 64 bytes (MXFP4).
 *
 *   block 0 (rows 0-15)                    block 1 ...
 *   | span 0 | span 1 | ... |
 *
 *   one span:
 *   | codes, pair 0 | pair 1 ... | small scales, pair 0 | pair 1 ... | scales of the span | to a multiple of 64 |
 *
 *   codes of a pair: planes of 4, 2 and 1 bits, those whose sum is the number of bits, lowest bits first, but for three
 *   bits; of row r, column 4 j + i of a group:
 *     4 bits: 8 x 64 bytes, byte 64 j + 4 r + i: group 0 in the low half, group 1 in the high one
 *     2 bits: 2 x 64 bytes per group, bits 2 (j % 4) of byte 4 r + i of vector j / 4
 *     1 bit:  64 bytes per group, bit j of byte 4 r + i. A single bit says 0 or 2 (Q1_0)
 *     3 bits: 3 x 64 bytes per group; j from 0 to 5: bits 3 (j % 2) of byte 4 r + i of vector j / 2. What is left are
 *     the other two: bits 6 and 7 of vectors 0 and 2, below bits 6 and 7 of vector 1
 *   8 bits: 8 x 64 bytes per group instead. NIBBLE_TABLE: the nibbles to look up.
 *   GRID_INDICES: | low 8 bits: 16 bytes for each entry, both groups | for each row its entries' higher bits, from the
 *     lowest on, of EIGHTHS with the sign behind them: 0, 1, 2 or 4 bytes | SIGNS: 64 bytes per group, as 1 bit |
 *     or, of the planar form, as registers of 64 entries, four of each row, of eight columns in the order 0, 2, 1, 3.
 *     An entry has a number of its own there (planar_books.h), a byte and 0, 2 or 4 more bits:
 *     | bytes: 64 for each register | more bits: of register n those from more * n on of 64 bytes, or, where 32 have
 *     room for all, from more * n + 4 on for the last 32 entries | SIGNS: 64 bytes per group | EIGHTHS and HALVES: a
 *     mask of 64 bits for each register |
 *     The sign of column 16 h + 4 i + k of a group is in byte 4 r + i: bit 4 h + k, or, of entries of four columns, bit
 *     2 h + k / 2 + 4 (k % 2). Codes come 16 columns at a time, k's column of each four in one word: activations are
 *     put in that order.
 *   DIGITS: the span's columns 4 k to 4 k + 3 are digit k % 5 of bytes 4 r + i of vector k / 5.
 *
 *   scales of a pair: weight = scale * (code - zero) + minimum, one scale and minimum per row and group
 *   | 16 scales, group 0 | group 1 | 16 minima, group 0 | group 1 |                       all float16
 *   or, with HALVES, | group 0: 16 of columns 0-15 | 16 of columns 16-31 | group 1 ... |, and of one byte (EXPONENT,
 *   SMALL_FLOAT: 0x7f is a number like others here)
 *   SUPER, whose scales are products of a small number and one for the row's block:
 *   | 16 or 2 x 16 (HALVES) int8, group 0 | group 1 | minima: 16 int8, group 0 | group 1 |
 *     joins_halves: | 16 x the int8 of both halves of group 0 | of group 1 |, or, with MINIMUM, 16 x four bytes: halves
 *     0 of groups 0 and 1, then halves 1; each the scale in the low nibble, the minimum in the high one
 *     ODD: nibbles, of which n says 2 n + 1: | 16 x groups 0 and 1 |, or, HALVES, | 16 x halves of group 0 | group 1 |
 *     Planar, EIGHTHS without HALVES: bit 3 of a group's nibble is the sign of its eighths.
 *   of the span, SUPER and WHOLE: | 16 float16 for the scales | 16 float16 for the minima |
 *
 *   float types: column by column, the 16 rows side by side.
 *
 * Activations (`Operand`): one record of 112 bytes for 64 columns of one token, so that threads which write different
 * tokens write different lines of the cache, and a kernel broadcasts from addresses that differ by constants:
 *
 *   tile 0 (tokens 0-15)                                       tile 1 ...
 *   | pair 0: token 0 | token 1 | ... | token 15 | pair 1: ... | */
#ifndef BEE_PACKED_H
#define BEE_PACKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "types/types.h"

enum { BLOCK_ROWS = 16, GROUP = 32, PAIR = 64, TILE = 16 };

/* Left to themselves, compilers stop inlining these in large files, and sizes are no constants then. */
#if defined(BEE_SANITIZED)
#define LAYOUT_FUNCTION static inline
#else
#define LAYOUT_FUNCTION static inline __attribute__((always_inline))
#endif

/* A flag beside those of a type: GRID_INDICES in the planar form. */
enum { PLANAR = 1 << 16 };

LAYOUT_FUNCTION WeightTraits packed_traits(TensorType type, bool planar_grids) {
    WeightTraits t = traits_of(type);
    if (planar_grids && t.kind == GRID_INDICES) t.flags |= PLANAR;
    return t;
}

/* Whether products of a group's halves, which fit into 16 bits, are joined as integers. */
LAYOUT_FUNCTION bool joins_halves(WeightTraits t) { return t.kind == INTEGERS && t.flags & HALVES && t.bits < 4; }

/* Of a grid: bits beside the low 8 of each entry. */
LAYOUT_FUNCTION int high_bits(WeightTraits t) { return t.index_bits - 8 + (t.flags & EIGHTHS ? 1 : 0); }

/* Of the planar form: registers of entries in a pair; bits of an entry's number beside the low 8; bits of what the
 * digits of its first half are looked up with. */
LAYOUT_FUNCTION int planar_registers(WeightTraits t) { return PAIR / t.entry / 4; }
LAYOUT_FUNCTION int planar_more(WeightTraits t) { return t.index_bits == 8 ? 0 : t.index_bits == 9 ? 2 : 4; }
LAYOUT_FUNCTION int planar_first_bits(WeightTraits t) { return t.index_bits == 9 || t.index_bits == 10 ? 7 : 8; }

/* Whether a group's eighths have one sign, which lies beside its scale; or every entry's have their own, in a mask. */
LAYOUT_FUNCTION bool sign_of_group(WeightTraits t) {
    return t.flags & PLANAR && t.flags & EIGHTHS && !(t.flags & HALVES);
}
LAYOUT_FUNCTION bool signs_of_entries(WeightTraits t) {
    return t.flags & PLANAR && t.flags & EIGHTHS && t.flags & HALVES;
}

LAYOUT_FUNCTION int planar_code_bytes(WeightTraits t) {
    return planar_registers(t) * (64 + 8 * planar_more(t) + (signs_of_entries(t) ? 8 : 0)) +
           (t.flags & SIGNS ? PAIR * BLOCK_ROWS / 8 : 0);
}

/* Where entry i of a row's group is: its byte among those of the pair's registers, and its bit where a mask has one
 * for each; of the planes behind the registers the byte that has its further bits, and from which bit on. */
typedef struct PlanarPlace {
    int byte, plane, shift;
} PlanarPlace;

static inline PlanarPlace planar_place(WeightTraits t, int odd, int row, int i) {
    const int registers = planar_registers(t), more = planar_more(t), number = odd * registers / 2 + i / 4;
    const int fourth = t.entry == 8 && (i % 4 == 1 || i % 4 == 2) ? 3 - i % 4 : i % 4, at = 4 * row + fourth;
    const bool half = registers * more < 8; /* 32 bytes have room for all further bits */
    return (PlanarPlace){64 * number + at, half ? at % 32 : at, more * number + (half ? at / 32 * 4 : 0)};
}

/* Where the sign of a group's column is in its byte. */
static inline int planar_sign_bit(WeightTraits t, int column) {
    const int h = column / 16, k = column % 4;
    return t.entry == 8 ? 4 * h + k : 2 * h + k / 2 + 4 * (k % 2);
}

/* Of a type's first halves, those of the second ones behind them; and from an entry's index to its number. */
static inline const uint8_t *planar_halves(TensorType type) {
    switch (type) {
    case TYPE_IQ3_S: return iq3_s_halves;
    case TYPE_IQ3_XXS: return iq3_xxs_halves;
    case TYPE_IQ2_S: return iq2_s_halves;
    case TYPE_IQ2_XS: return iq2_xs_halves;
    case TYPE_IQ2_XXS: return iq2_xxs_halves;
    default: return iq1_halves;
    }
}

static inline unsigned planar_number(TensorType type, unsigned index) {
    switch (type) {
    case TYPE_IQ3_S: return iq3_s_planar[index];
    case TYPE_IQ2_S: return iq2_s_planar[index];
    case TYPE_IQ2_XS: return iq2_xs_planar[index];
    case TYPE_IQ3_XXS:
    case TYPE_IQ2_XXS: return index;
    default: return iq1_planar[index];
    }
}

/* What an entry's first half is looked up with: its number's byte, whose lowest bits are replaced by those beyond. */
static inline unsigned planar_first_place(WeightTraits t, unsigned number) {
    const unsigned low = (1u << planar_more(t)) - 1;
    return ((number & ~low & 255) | number >> 8) & ((1u << planar_first_bits(t)) - 1);
}

/* Parts of a span, in bytes: of each pair its codes and small scales, of all its scales. */
LAYOUT_FUNCTION int code_bytes(WeightTraits t) {
    switch (t.kind) {
    case NIBBLE_TABLE: return PAIR * BLOCK_ROWS / 2;
    case DIGITS: return 13 * 64 / 4;
    case GRID_INDICES:
        if (t.flags & PLANAR) return planar_code_bytes(t);
        return PAIR / t.entry * BLOCK_ROWS * (8 + high_bits(t)) / 8 + (t.flags & SIGNS ? PAIR * BLOCK_ROWS / 8 : 0);
    default: return PAIR * BLOCK_ROWS * t.bits / 8;
    }
}

LAYOUT_FUNCTION int small_scale_bytes(WeightTraits t) {
    const int scales = 2 * BLOCK_ROWS * (t.flags & HALVES ? 2 : 1), minima = t.flags & MINIMUM ? scales : 0;
    if (t.flags & WHOLE) return 0;
    if (t.flags & ODD) return scales / 2;
    if (t.flags & (EXPONENT | SMALL_FLOAT)) return scales;
    if (t.flags & SUPER) return scales + (t.flags & HALVES ? 0 : minima);
    return 2 * (scales + minima);
}

/* Of a block that is no longer than a pair two, where one would end amid a line. */
LAYOUT_FUNCTION int span_pairs(WeightTraits t) {
    if (t.columns > PAIR) return t.columns / PAIR;
    return (code_bytes(t) + small_scale_bytes(t)) % 64 ? 2 : 1;
}

LAYOUT_FUNCTION int scale_bytes(WeightTraits t) {
    return t.flags & (SUPER | WHOLE) ? 2 * BLOCK_ROWS * (t.flags & MINIMUM ? 2 : 1) : 0;
}

LAYOUT_FUNCTION int span_bytes(WeightTraits t) {
    return (span_pairs(t) * (code_bytes(t) + small_scale_bytes(t)) + scale_bytes(t) + 63) / 64 * 64;
}

/* Where a pair's parts lie, in bytes from the block's first one on. */
typedef struct PairPlace {
    size_t span, codes, small, scales; /* the scales are the whole span's */
    int index;                         /* of the pair in its span */
} PairPlace;

static inline PairPlace place_of_pair(WeightTraits t, int column) {
    const int in_span = span_pairs(t), index = column / PAIR % in_span;
    const size_t span = (size_t)(column / PAIR / in_span) * (size_t)span_bytes(t);
    const size_t small = span + (size_t)(in_span * code_bytes(t));
    return (PairPlace){span, span + (size_t)(index * code_bytes(t)), small + (size_t)(index * small_scale_bytes(t)),
                       small + (size_t)(in_span * small_scale_bytes(t)), index};
}

typedef struct Weight {
    TensorType type;
    int rows, columns;
    int n_blocks; /* of 16 rows */
    int n_pairs;  /* of groups; unused by float types */
    size_t block_bytes;
    bool planar_grids; /* of GRID_INDICES: their form */
    uint8_t *data;     /* 64-byte aligned */
} Weight;

/* Where floats are whole numbers, with room for sums of 22 bits on either side. */
#define BIAS 0x1.8p23f
enum { BIAS_BITS = 0x4b400000, BIASED_ZERO = 32 };

/* 64 columns of one token for quantised types: x = scale[group] * code, |code| <= 127. */
typedef struct OperandPair {
    int8_t codes[PAIR];
    float scale[2];
    float sum[2];      /* scale * (sum of the group's codes): what a minimum multiplies */
    int32_t total[2];  /* sum of the group's codes: what a zero point multiplies */
    int32_t biased[4]; /* BIAS_BITS less 32 times that over each 16 columns: where sums of Q6_K begin (simd.h) */
    int16_t half[4];   /* the sums over each 16 columns */
} OperandPair;

/* Activations of up to `max_tokens` tokens as quantised types and float types want them. */
typedef struct Operand {
    int columns;
    int n_pairs;
    int max_tokens;
    OperandPair *pairs;  /* [tile][pair][16 tokens]; NULL unless a quantised type reads it */
    float *values;       /* [tile][column][16 tokens]; NULL unless a float type reads it */
    struct Operand *own; /* a copy per worker, of one tile, for what each worker computes for itself; may be NULL */
} Operand;

#endif
