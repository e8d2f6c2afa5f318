/* Parts of a tensor's data, and what its numbers are. */
#ifndef BEE_TENSOR_H
#define BEE_TENSOR_H

#include "file/gguf.h"

/* Bytes of `row`, and where they are. Rows of a tensor of three dimensions are counted through all of its matrices. */
uint64_t tensor_row_bytes(const Tensor *tensor);
const uint8_t *tensor_row(const Tensor *tensor, int64_t row);

/* Rows [first, first + n) of a matrix. */
Tensor tensor_rows(const Tensor *tensor, int64_t first, int64_t n);

/* One of the matrices of a tensor of three dimensions, as of an expert; a tensor of two is its matrix 0. */
Tensor tensor_matrix(const Tensor *tensor, int64_t index);

/* One row as floats. */
void dequantize_row(const Tensor *tensor, int64_t row, float *out);

#endif
