/* Products of weights whose grids are planar (packed.h). */
#ifndef BEE_PLANAR_GRIDS_H
#define BEE_PLANAR_GRIDS_H

#include "packed.h"

/* Kernels.multiply of AVX-512 with VBMI, for GRID_INDICES. */
void bee_multiply_planar_grids(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                               size_t out_stride, bool add);

#endif
