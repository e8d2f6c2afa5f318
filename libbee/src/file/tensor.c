#include "tensor.h"

#include "types/float16.h"
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

static float read_float(TensorType type, const uint8_t *row, int64_t i) {
    if (type == TYPE_F16) return float_from_f16((uint16_t)read_u16(row + 2 * i));
    if (type == TYPE_BF16) return float_from_bf16((uint16_t)read_u16(row + 2 * i));
    return float_from_bits(read_u32(row + 4 * i));
}

/* The 16 columns of a block from `column` on. */
static void dequantize_half(TensorType type, WeightTraits t, const uint8_t *block, int column, float *out) {
    const BlockScale s = block_scale(type, block, column);
    const float scale = scale_of(t, s.scale) * (float)s.small;
    const float minimum = half_value(s.minimum) * (float)s.small_minimum;
    for (int i = 0; i < 16; i += 4) {
        const uint32_t codes = block_codes(type, block, column + i);
        for (int j = 0; j < 4; j++) out[i + j] = scale * (float)((int)(codes >> 8 * j & 0xff) - t.zero) + minimum;
    }
}

void dequantize_row(const Tensor *tensor, int64_t row, float *out) {
    const WeightTraits t = traits_of(tensor->type);
    const uint8_t *data = tensor_row(tensor, row);
    for (int64_t i = 0; !t.bits && i < tensor->columns; i++) out[i] = read_float(tensor->type, data, i);
    for (int64_t i = 0; t.bits && i < tensor->columns; i += 16)
        dequantize_half(tensor->type, t, data + i / t.columns * t.bytes, (int)(i % t.columns), out + i);
}
