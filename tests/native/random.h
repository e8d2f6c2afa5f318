/* Reproducible random numbers for the tests: SplitMix64. */
#ifndef BEE_TESTS_RANDOM_H
#define BEE_TESTS_RANDOM_H

#include <math.h>
#include <stdint.h>

typedef struct Random {
    uint64_t state;
} Random;

static inline uint64_t random_bits(Random *r) {
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static inline int random_below(Random *r, int n) { return (int)(random_bits(r) % (uint64_t)n); }

/* In [0, 1). */
static inline double random_unit(Random *r) { return (double)(random_bits(r) >> 11) * 0x1p-53; }

static inline double random_normal(Random *r) {
    const double radius = sqrt(-2 * log(1 - random_unit(r)));
    return radius * cos(6.283185307179586 * random_unit(r));
}

#endif
