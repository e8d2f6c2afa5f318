/* From the file's tensor types to the packed forms of packed.h. No type loses precision on the way. */
#ifndef BEE_PACK_H
#define BEE_PACK_H

#include "file/gguf.h"
#include "packed.h"

/* Of the packed layouts (packed.h). Files of packed weights (file/packed.h) are of one version: where what is packed
 * becomes other bytes, this becomes another number. test_pack.c holds the two together. */
enum { PACKED_VERSION = 3 };

/* Bytes that the packed matrix takes. */
size_t packed_size(TensorType type, int rows, int columns, bool planar_grids);

/* Lays out a matrix of `n_rows` rows of `tensor`: row i is the tensor's row row_ids[i], or i where row_ids is NULL.
 * `data` stays NULL: the caller provides weight->n_blocks * weight->block_bytes bytes, 64-byte aligned, then fills. */
void weight_layout(Weight *weight, const Tensor *tensor, int n_rows, bool planar_grids);
/* One block, of BLOCK_ROWS rows or what is left of the matrix. */
void weight_fill_block(Weight *weight, int block, const uint8_t *const *rows);
void weight_fill(Weight *weight, const Tensor *tensor, const int32_t *row_ids, int first_block, int last_block);

/* One row as floats: dequantize_row of the row that was packed, bit for bit. */
void weight_row(const Weight *weight, int row, float *out);

#endif
