/* Bounds of results in floats.
 *
 * u = 2^-24 is the largest relative error of one rounding to float. A sum of k terms that is accumulated in
 * order, every partial sum rounded, is off by at most k u (the sum of the terms' magnitudes); a rounding of each term
 * adds u of the same sum. Instruction sets without a fused multiply-add round each product as well; the bounds allow
 * for that everywhere. SECOND_ORDER covers the products of such errors. */
#ifndef BEE_TESTS_ROUNDING_H
#define BEE_TESTS_ROUNDING_H

#include <stdlib.h>
#include <string.h>

#define U 0x1p-24
#define SECOND_ORDER 1.001
/* What kernels.c promises of its exponential, relative. */
#define EXP_ERROR 2e-7

/* Zeros, at a multiple of what vectors want. */
static inline void *allocate(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!memory) abort();
    memset(memory, 0, (bytes + 64) / 64 * 64);
    return memory;
}

static inline int up_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

#endif
