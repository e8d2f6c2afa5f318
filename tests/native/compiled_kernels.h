/* Kernels by the name of their instruction set. */
#ifndef BEE_TESTS_COMPILED_KERNELS_H
#define BEE_TESTS_COMPILED_KERNELS_H

#include <string.h>

#include "cpu/instruction_sets.h"
#include "devices.h"

/* NULL where this machine has none of that name. */
static inline const Kernels *kernels_named(const char *name) {
    return choose_kernels(strcmp(name, "cuda") ? name : "portable", NULL); /* for what follows logits alone */
}

static inline const Ops *cpu_ops(void) { return bee_cpu_device.ops(NULL); }

#endif
