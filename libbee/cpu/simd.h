/* The lanes of the instruction set that a file is compiled for. */
#ifndef BEE_SIMD_H
#define BEE_SIMD_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Inlining must be certain: an accumulator array that survives as an array lives on the stack. Loops whose count is
 * a constant after inlining say so, or gcc gives up on the longest ones. Sanitizers would make so much of all that code
 * that compiling it takes minutes. */
#ifdef BEE_SANITIZED
#define INLINE static __attribute__((unused))
#define UNROLL
#else
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Whether sums over the columns of a group, or of each of its halves, were made before by tile registers (amx.c). What
 * is called a token's activations then are the sums of all rows, and HALF_STEP bytes behind them those of the other
 * half. */
#ifndef TILE_SUMS
#define TILE_SUMS 0
#endif
enum { HALF_STEP = TILE_SUMS ? 1024 : 16 };

#if defined(BEE_ISA_AVX512) || defined(BEE_ISA_AVX512_VBMI)
#include "simd_avx512.h"
#elif defined(BEE_ISA_AVX2) || defined(BEE_ISA_AVXVNNI)
#include "simd_avx2.h"
#elif defined(BEE_ISA_NEON) || defined(BEE_ISA_NEON_DOTPROD)
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif

/* Whether all numbers of tokens share one function of products. */
#ifndef ONE_TILE
#define ONE_TILE 0
#endif

/* Queries that attention reads keys and values for at once. */
#ifndef MAX_QUERIES
#define MAX_QUERIES 6
#endif

/* Whether the packed form of grids is the planar one (packed.h). */
#ifndef PLANAR_GRIDS
#define PLANAR_GRIDS 0
#endif

/* Whether dot products multiply each row's sum by a small integer at no cost: dot_times, ri_pair, ri_load_int8. */
#ifndef SCALED_DOTS
#define SCALED_DOTS 0
#endif

/* Whether dot products become floats by starting at the bits of BIAS: the float that ends up there is BIAS plus the
 * sum, and a fused multiply-add that takes BIAS times the small scale away yields the exact product. */
#ifndef BIASED_DOTS
#define BIASED_DOTS 0
#endif

/* Tokens whose products with a group take turns, four columns each. */
#ifndef TOKENS_TOGETHER
#define TOKENS_TOGETHER 1
#endif

/* Whether codes of a row can be multiplied by a small integer: ri_twice, codes_times. */
#ifndef SCALED_CODES
#define SCALED_CODES 0
#endif

/* Whether what dot_halves yields is added at no cost: add_halves. */
#ifndef ADDED_HALVES
#define ADDED_HALVES 0
#endif

/* Bits of 8-bit codes that `dot` wants flipped: 128 where it reads them as signed bytes, without their zero point. */
#ifndef WIDE_FLIP
#define WIDE_FLIP 0
#define codes_flip(codes, bits) (codes)
#endif

/* Keeps the compiler from dropping what nobody else reads, and from knowing what it reads. */
INLINE void escape(const void *memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

#endif
