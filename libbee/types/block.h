/* What the files of the weight types are made of. They are plain C, compiled for the host and for CUDA devices.
 *
 * A row is a sequence of blocks; a block holds `columns` weights in `bytes` bytes. A file xyz.h describes one type:
 *
 *   XYZ_TRAITS    its WeightTraits, in that order
 *   xyz_codes     the codes of four successive columns of a block, one in each byte of the word; `column` is a
 *                 multiple of 4. Codes are not negative; what their zero point is, the traits say
 *   xyz_scale     the numbers that turn the codes around a column into weights
 *   xyz_random    makes a block of random bytes one whose weights have a mean of 0 and a deviation of 1/64
 *
 *   weight = scale * small * (code - zero) + minimum * small_minimum */
#ifndef BEE_TYPES_BLOCK_H
#define BEE_TYPES_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define TYPE_FUNCTION static __device__ __forceinline__
#define TRAITS_FUNCTION static __host__ __device__ __forceinline__ constexpr
#else
#include "types/float16.h"
#define TYPE_FUNCTION static inline
#if defined(__cplusplus)
#define TRAITS_FUNCTION static inline constexpr
#else
#define TRAITS_FUNCTION static inline
#endif
#endif

/* How a type's codes come about. */
typedef enum CodeKind {
    INTEGERS,     /* they are stored */
    NIBBLE_TABLE, /* nibbles are looked up (nibble_tables.h) */
    GRID_INDICES, /* several are looked up at a time (grids.h) */
    DIGITS,       /* five to a byte, to the base of 3 (tq1_0.h) */
} CodeKind;

/* Of a type's scales, which are float16 numbers for every 32 columns unless these say otherwise; and of its codes. */
enum {
    MINIMUM = 1,      /* weights have a minimum, too */
    SUPER = 2,        /* the scale is a small integer times a number of the whole block */
    HALVES = 4,       /* there is a scale for every 16 columns */
    WHOLE = 8,        /* there is one for the whole block */
    ODD = 16,         /* of SUPER: the small integer is an odd number from 1 to 31 */
    EXPONENT = 32,    /* the scale is a power of two: power_scale */
    SMALL_FLOAT = 64, /* it is a float of 8 bits: small_float_scale */
    SIGNS = 128,      /* of a grid: its numbers have signs */
    EIGHTHS = 256,    /* of a grid: an eighth is added to its numbers, or subtracted; codes are eighths */
};

typedef struct WeightTraits {
    int columns, bytes; /* of a block */
    int bits;           /* of a code; 0: a float type */
    int zero;           /* the zero point of the codes */
    int flags;
    CodeKind kind;
    int entry, index_bits; /* of a grid: columns of an entry; bits of an index */
    int unit;              /* scales are times 2^unit */
} WeightTraits;

typedef struct BlockScale {
    uint16_t scale, minimum; /* as they are stored: scale_of says what they stand for */
    int small, small_minimum;
} BlockScale;

#if defined(__CUDACC__)
TYPE_FUNCTION float half_value(unsigned bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }
TYPE_FUNCTION float value_of_bits(uint32_t bits) { return __uint_as_float(bits); }
#else
TYPE_FUNCTION float half_value(unsigned bits) { return float_from_f16((uint16_t)bits); }
TYPE_FUNCTION float value_of_bits(uint32_t bits) { return float_from_bits(bits); }
#endif

/* 2^(exponent - 128): below 2 a subnormal number. */
TYPE_FUNCTION float power_scale(int exponent) {
    return value_of_bits(exponent < 2 ? (uint32_t)(exponent + 1) << 21 : (uint32_t)(exponent - 1) << 23);
}

/* Half of a float with an exponent of 4 bits and a mantissa of 3, without a sign. The bits are put where those of a
 * float are, whose exponent is counted from elsewhere. */
TYPE_FUNCTION float small_float_scale(int bits) { return value_of_bits((uint32_t)bits << 20) * 0x1p119f; }

TYPE_FUNCTION float scale_of(WeightTraits t, unsigned bits) {
    if (t.flags & EXPONENT) return power_scale((int)bits);
    if (t.flags & SMALL_FLOAT) return small_float_scale((int)bits);
    return half_value(bits) * value_of_bits((uint32_t)(127 + t.unit) << 23);
}

TYPE_FUNCTION unsigned read_u16(const uint8_t *p) { return (unsigned)p[0] | (unsigned)p[1] << 8; }

/* Blocks lie at any address. */
TYPE_FUNCTION uint32_t read_u32(const uint8_t *p) {
#if defined(__CUDACC__)
    return read_u16(p) | read_u16(p + 2) << 16;
#else
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
#endif
}

static inline void write_u16(uint8_t *p, unsigned value) {
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

/* Bytes less `zero`, as signed bytes. */
TYPE_FUNCTION uint32_t bytes_less(uint32_t bytes, int zero) {
    const uint32_t high = 0x80808080u, z = (uint32_t)zero * 0x01010101u;
    return ((bytes | high) - (z & ~high)) ^ ((bytes ^ ~z) & high);
}

/* Four bits to the lowest bits of four bytes. */
TYPE_FUNCTION uint32_t spread_bits(unsigned bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

/* Of 32 columns: low nibbles are the first 16, high nibbles the last 16. */
TYPE_FUNCTION uint32_t split_nibbles(const uint8_t *nibbles, int column) {
    return read_u32(nibbles + column % 16) >> (column < 16 ? 0 : 4) & 0x0f0f0f0fu;
}

/* Of 256 columns: bit pairs of 32 bytes are columns 0-31, 32-63, 64-95 and 96-127, and so on. */
TYPE_FUNCTION uint32_t bit_pairs(const uint8_t *pairs, int column) {
    return read_u32(pairs + column / 128 * 32 + column % 32) >> column % 128 / 32 * 2 & 0x03030303u;
}

/* One more bit of each of 32 codes, in column order. */
TYPE_FUNCTION uint32_t fifth_bits(const uint8_t *fifth, int column) {
    return spread_bits((unsigned)fifth[column / 8] >> column % 8) << 4;
}

TYPE_FUNCTION BlockScale plain_scale(const uint8_t *scale, const uint8_t *minimum) {
    BlockScale s;
    s.scale = (uint16_t)read_u16(scale);
    s.minimum = (uint16_t)(minimum ? read_u16(minimum) : 0);
    s.small = s.small_minimum = 1;
    return s;
}

/* ---- Q4_K and Q5_K ---- */

/* Groups 2 i and 2 i + 1 are the low and the high nibbles of bytes 32 i to 32 i + 31. */
TYPE_FUNCTION uint32_t k_nibbles(const uint8_t *nibbles, int column) {
    return read_u32(nibbles + column / 64 * 32 + column % 32) >> column % 64 / 32 * 4 & 0x0f0f0f0fu;
}

/* 8 scales and 8 minima of 6 bits in 12 bytes; the last four of each are split over two bytes. The minimum is
 * subtracted. */
TYPE_FUNCTION BlockScale k_scale(const uint8_t *block, int column) {
    const uint8_t *const q = block + 4;
    const int j = column / 32;
    const int minimum = j < 4 ? q[j + 4] & 63 : q[j + 4] >> 4 | (q[j] >> 6) << 4;
    BlockScale s = plain_scale(block, block + 2);
    s.small = j < 4 ? q[j] & 63 : (q[j + 4] & 15) | (q[j - 4] >> 6) << 4;
    s.small_minimum = -minimum;
    return s;
}

#endif
