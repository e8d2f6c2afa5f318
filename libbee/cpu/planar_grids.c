/* Products of weights that are looked up, for processors that look bytes up in registers by some bits of an index: as
 * kernels.c has them, grids of another packed form. */
#include "planar_grids.h"
#include "products.h"

GRID_TYPES(MAKE_CODES)
TABLE_TYPES(MAKE_CODES)

INLINE const Multiply *multiply_table(TensorType type) {
    switch (type) {
        GRID_TYPES(FIND_TABLE)
        TABLE_TYPES(FIND_TABLE)
    default: return NULL;
    }
}

void bee_multiply_planar_grids(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                               size_t out_stride, bool add) {
    multiply_blocks(multiply_table(weight->type), weight, first, last, in, n_tokens, out, out_stride, add);
}
