#include "tensor.h"

#include "types/types.h"

uint64_t tensor_row_bytes(const Tensor *tensor) { return tensor->size / (uint64_t)tensor->rows; }

const uint8_t *tensor_row(const Tensor *tensor, int64_t row) {
    return tensor->data + (uint64_t)row * tensor_row_bytes(tensor);
}

Tensor tensor_rows(const Tensor *tensor, int64_t first, int64_t n) {
    Tensor part = *tensor;
    const uint64_t row_bytes = tensor_row_bytes(tensor), begin = (uint64_t)first * row_bytes;
    part.n_dimensions = 2;
    part.rows = part.shape[1] = n;
    part.shape[2] = part.shape[3] = 1;
    part.offset += begin;
    if (part.data) part.data += begin;
    part.size = row_bytes * (uint64_t)n;
    return part;
}

Tensor tensor_matrix(const Tensor *tensor, int64_t index) {
    return tensor_rows(tensor, index * tensor->shape[1], tensor->shape[1]);
}

void dequantize_row(const Tensor *tensor, int64_t row, float *out) {
    const WeightTraits t = traits_of(tensor->type);
    const uint8_t *data = tensor_row(tensor, row);
    for (int64_t i = 0; !t.bits && i < tensor->columns; i++) out[i] = float_weight(tensor->type, data + i * t.bytes);
    for (int64_t i = 0; t.bits && i < tensor->columns; i += 16) {
        const uint8_t *block = data + i / t.columns * t.bytes;
        const int column = (int)(i % t.columns);
        uint32_t codes[4];
        for (int j = 0; j < 4; j++) codes[j] = block_codes(tensor->type, block, column + 4 * j);
        weights_of_codes(t, block_scale(tensor->type, block, column), codes, out + i);
    }
}
