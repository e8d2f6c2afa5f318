/* What the programs share that print what kernels take. */
#ifndef BEE_TESTS_BENCH_H
#define BEE_TESTS_BENCH_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "compiled_kernels.h"

static inline double nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

/* Of the instruction set that the first argument names, or the best one; a wrong name ends the program. */
static inline const Kernels *kernels_to_measure(int n_arguments, char **arguments) {
    const Kernels *kernels = kernels_named(n_arguments > 1 ? arguments[1] : bee_instruction_sets()[0]);
    if (kernels) return kernels;
    fprintf(stderr, "this machine has no instruction set %s; it has:", arguments[1]);
    for (int i = 0; bee_instruction_sets()[i]; i++) fprintf(stderr, " %s", bee_instruction_sets()[i]);
    fprintf(stderr, "\n");
    exit(2);
}

#endif
