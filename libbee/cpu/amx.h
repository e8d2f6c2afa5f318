/* Products by tile registers: what AMX adds to the kernels of AVX-512 with VBMI. */
#ifndef BEE_AMX_H
#define BEE_AMX_H

#include "packed.h"

/* Kernels.multiply, of something else. */
typedef void MultiplyRest(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                          size_t out_stride, bool add);

/* Kernels.multiply; what does not fill a tile of tokens, and floats, are left to another, block by block: its weights
 * are at hand then. */
void bee_multiply_tiles(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                        size_t out_stride, bool add, MultiplyRest *multiply_rest);

#endif
