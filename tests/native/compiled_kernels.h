/* The kernels of every instruction set of this build. */
#ifndef BEE_TESTS_COMPILED_KERNELS_H
#define BEE_TESTS_COMPILED_KERNELS_H

#include <string.h>

#include "cpu/kernels.h"
#include "devices.h"

static const Kernels *const compiled_kernels[] = {
#ifdef BEE_HAVE_AVX512_VBMI
    &bee_kernels_avx512_vbmi,
#endif
#ifdef BEE_HAVE_AVX512
    &bee_kernels_avx512,
#endif
#ifdef BEE_HAVE_AVXVNNI
    &bee_kernels_avxvnni,
#endif
#ifdef BEE_HAVE_AVX2
    &bee_kernels_avx2,
#endif
#ifdef BEE_HAVE_NEON_DOTPROD
    &bee_kernels_neon_dotprod,
#endif
#ifdef BEE_HAVE_NEON
    &bee_kernels_neon,
#endif
    &bee_kernels_portable,
};

/* By the name of the instruction set, or NULL. */
static inline const Kernels *kernels_named(const char *name) {
    for (size_t i = 0; i < sizeof compiled_kernels / sizeof *compiled_kernels; i++)
        if (!strcmp(compiled_kernels[i]->name, name)) return compiled_kernels[i];
    return !strcmp(name, "cuda") ? &bee_kernels_portable : NULL; /* for what follows logits alone */
}

static inline const Ops *cpu_ops(void) { return bee_cpu_device.ops(NULL); }

#endif
