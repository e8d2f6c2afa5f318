/* Calls that a kernel test cannot do without: what failed is told before it ends, for somebody who has a card for
 * minutes alone. */
#ifndef BEE_TESTS_CUDA_MUST_H
#define BEE_TESTS_CUDA_MUST_H

#include "cuda/device.h"

#include <cstdio>
#include <cstdlib>

static inline void must_succeed(cudaError_t error, const char *call, const char *file, int line) {
    if (error == cudaSuccess) return;
    printf("%s:%d: %s: %s (%s)\n", file, line, call, cudaGetErrorString(error), cudaGetErrorName(error));
    fflush(stdout);
    abort();
}

#define MUST(call) must_succeed((call), #call, __FILE__, __LINE__)

#endif
