/* Products of weights that are looked up: of those whose grids are planar (packed.h), and of those of nibble tables. */
#ifndef BEE_PLANAR_GRIDS_H
#define BEE_PLANAR_GRIDS_H

#include "packed.h"

/* Kernels.multiply of AVX-512 with VBMI, for GRID_INDICES and NIBBLE_TABLE. */
void bee_multiply_planar_grids(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                               size_t out_stride, bool add);

#endif
