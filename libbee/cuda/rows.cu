/* What is done to single rows outside of products and attention: see kernels.h. Sums are taken in one fixed order: a
 * thread's own columns, then the lanes of its warp, then the warps. */
#include "kernels.h"

enum {
    ROW_THREADS = 256,
    ROW_WARPS = ROW_THREADS / WARP_SIZE,
    NORM_THREADS = 1024,
    NORM_WARPS = NORM_THREADS / WARP_SIZE,
    COLUMNS_IN_FLIGHT = 8, /* of a thread */
};
static_assert((int)NORM_WARPS == (int)WARP_SIZE, "a lane has a warp's sum");

/* ---- rows of the token table --------------------------------------------------------------------- */

static __device__ __forceinline__ unsigned read_u16(const uint8_t *p) { return (unsigned)p[0] | (unsigned)p[1] << 8; }

static __device__ __forceinline__ unsigned read_u32(const uint8_t *p) { return read_u16(p) | read_u16(p + 2) << 16; }

static __device__ __forceinline__ float read_half(const uint8_t *p) { return float_from_half((uint16_t)read_u16(p)); }

/* The CPU backend's dequantize_row, operation by operation: where a type has no minimum, zero is added all the same. */
static __device__ __forceinline__ float from_code(float scale, int small_scale, int code, float minimum) {
    return scale * (float)small_scale * (float)code + minimum;
}

/* Column i of 32: low nibbles are the first 16 columns, high nibbles the last 16. */
static __device__ __forceinline__ int nibble_of(const uint8_t *nibbles, int i) {
    return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
}

static __device__ __forceinline__ int fifth_of(const uint8_t *bits, int i) { return (bits[i / 8] >> i % 8 & 1) << 4; }

/* Q4_0, Q4_1, Q5_0, Q5_1: a block of 32 columns. */
static __device__ float small_block(const uint8_t *block, int i, bool has_minimum, bool has_fifth) {
    const uint8_t *fifth = block + (has_minimum ? 4 : 2), *nibbles = fifth + (has_fifth ? 4 : 0);
    const int code = nibble_of(nibbles, i) | (has_fifth ? fifth_of(fifth, i) : 0);
    const int zero = has_minimum ? 0 : has_fifth ? 16 : 8;
    return from_code(read_half(block), 1, code - zero, has_minimum ? read_half(block + 2) : 0.0f);
}

/* Q4_K and Q5_K: a block of 256 columns, 8 scales and 8 minima of 6 bits in 12 bytes; the last four of each are split
 * over two bytes. */
static __device__ float k_block(const uint8_t *block, int column, bool has_fifth) {
    const int j = column / 32, i = column % 32;
    const uint8_t *q = block + 4, *nibbles = block + (has_fifth ? 48 : 16) + 32 * (j / 2);
    const int scale = j < 4 ? q[j] & 63 : (q[j + 4] & 15) | (q[j - 4] >> 6) << 4;
    const int minimum = j < 4 ? q[j + 4] & 63 : q[j + 4] >> 4 | (q[j] >> 6) << 4;
    const int low = j % 2 ? nibbles[i] >> 4 : nibbles[i] & 15;
    const int code = low | (has_fifth ? (block[16 + i] >> j & 1) << 4 : 0);
    return from_code(read_half(block), scale, code, read_half(block + 2) * (float)-minimum);
}

/* Q6_K: per 128 columns, 64 bytes of low nibbles, 32 of bit pairs, 8 scales of 16 columns each. */
static __device__ float q6_block(const uint8_t *block, int column) {
    const int half = column / 128, quarter = column % 128 / 32, i = column % 32;
    const int low = block[64 * half + 32 * (quarter % 2) + i], high = block[128 + 32 * half + i];
    const int code = (quarter < 2 ? low & 15 : low >> 4) | (high >> 2 * quarter & 3) << 4;
    return from_code(read_half(block + 208), (int8_t)block[192 + column / 16], code - 32, 0.0f);
}

static __device__ float dequantized(TensorType type, const uint8_t *row, int c) {
    switch (type) {
    case TYPE_Q4_0: return small_block(row + (size_t)(c / 32) * 18, c % 32, false, false);
    case TYPE_Q4_1: return small_block(row + (size_t)(c / 32) * 20, c % 32, true, false);
    case TYPE_Q5_0: return small_block(row + (size_t)(c / 32) * 22, c % 32, false, true);
    case TYPE_Q5_1: return small_block(row + (size_t)(c / 32) * 24, c % 32, true, true);
    case TYPE_Q8_0: {
        const uint8_t *block = row + (size_t)(c / 32) * 34;
        return from_code(read_half(block), 1, (int8_t)block[2 + c % 32], 0.0f);
    }
    case TYPE_Q4_K: return k_block(row + (size_t)(c / 256) * 144, c % 256, false);
    case TYPE_Q5_K: return k_block(row + (size_t)(c / 256) * 176, c % 256, true);
    case TYPE_Q6_K: return q6_block(row + (size_t)(c / 256) * 210, c % 256);
    case TYPE_F16: return read_half(row + 2 * (size_t)c);
    case TYPE_BF16: return bf16_to_float((uint16_t)read_u16(row + 2 * (size_t)c));
    default: return __uint_as_float(read_u32(row + 4 * (size_t)c)); /* F32 */
    }
}

static __global__ void __launch_bounds__(ROW_THREADS)
    embed_rows(TensorType type, const uint8_t *raw, size_t row_bytes, int columns, const DeviceRow *rows, float *x,
               size_t stride) {
    begin_grid();
    const int i = (int)blockIdx.x;
    const uint8_t *from = raw + (size_t)rows[i].token * row_bytes;
    float *to = x + (size_t)i * stride;
    for (size_t c = threadIdx.x; c < stride; c += ROW_THREADS)
        to[c] = c < (size_t)columns ? dequantized(type, from, (int)c) : 0.0f;
}

void queue_embed(cudaStream_t stream, TensorType type, const uint8_t *raw, size_t row_bytes, int columns,
                 const DeviceRow *rows, int n, float *x, size_t stride) {
    launch(stream, dim3((unsigned)n), dim3(ROW_THREADS), 0, embed_rows, type, raw, row_bytes, columns, rows, x, stride);
}

/* ---- rows become operands ------------------------------------------------------------------------ */

/* The same in every thread of the block. */
static __device__ float block_sum(float x, float *of_warps) {
    const float mine = warp_sum(x);
    if (lane_of() == 0) of_warps[threadIdx.x / WARP_SIZE] = mine;
    __syncthreads();
    return warp_sum(of_warps[lane_of()]);
}

/* All loads of a thread are under way before the first is waited for. */
static __device__ float sum_of_squares(const float *x, int columns, float *of_warps) {
    float squares = 0;
    for (int first = (int)threadIdx.x; first < columns; first += COLUMNS_IN_FLIGHT * NORM_THREADS) {
        float loaded[COLUMNS_IN_FLIGHT];
        for (int i = 0; i < COLUMNS_IN_FLIGHT; i++) {
            const int c = first + i * NORM_THREADS;
            loaded[i] = c < columns ? x[c] : 0.0f;
        }
        for (int i = 0; i < COLUMNS_IN_FLIGHT; i++) squares = fused(loaded[i], loaded[i], squares);
    }
    return block_sum(squares, of_warps);
}

/* Grid: the row's groups; y: rows. What takes time is waiting: for memory, shuffles, divisions. So few rows get blocks
 * enough that every warp has one group; each of them sums up the whole row, which is in the cache. */
static __global__ void __launch_bounds__(NORM_THREADS)
    norm_rows(const float *x, size_t stride, const int32_t *index, const float *gain, float eps, int columns,
              DeviceOperand out) {
    __shared__ float of_warps[NORM_WARPS];
    begin_grid();
    const int i = (int)blockIdx.y, step = (int)gridDim.x * NORM_WARPS;
    int group = (int)(blockIdx.x * NORM_WARPS + threadIdx.x / WARP_SIZE), c = group * GROUP + lane_of();
    const float *from = x + (size_t)(index ? index[i] : i) * stride;
    float value = c < columns ? from[c] : 0.0f, weight = c < columns ? gain[c] : 0.0f; /* before they are needed */
    const float factor = 1.0f / sqrtf(sum_of_squares(from, columns, of_warps) / (float)columns + eps);
    for (; group < out.n_groups; group += step) {
        const float normed = value * factor * weight;
        c += step * GROUP;
        if (c < columns) value = from[c], weight = gain[c]; /* the next group's, while this one is stored */
        store_group(&out, i, group, c - step * GROUP < columns ? normed : 0.0f);
    }
}

void queue_rms_norm(cudaStream_t stream, const float *x, size_t stride, const int32_t *index, const float *gain,
                    float eps, int columns, int n, const DeviceOperand *out) {
    const int n_blocks = n <= 16 ? (out->n_groups + NORM_WARPS - 1) / NORM_WARPS : 1; /* of a row */
    launch(stream, dim3((unsigned)n_blocks, (unsigned)n), dim3(NORM_THREADS), 0, norm_rows, x, stride, index, gain, eps,
           columns, *out);
}

static __global__ void __launch_bounds__(ROW_THREADS)
    store_rows(const float *x, size_t stride, const int32_t *index, DeviceOperand out) {
    begin_grid();
    const int i = (int)blockIdx.y, group = (int)(blockIdx.x * ROW_WARPS + threadIdx.x / WARP_SIZE);
    if (group >= out.n_groups) return;
    const float *from = x + (size_t)(index ? index[i] : i) * stride;
    const int c = group * GROUP + lane_of();
    store_group(&out, i, group, c < out.columns ? from[c] : 0.0f);
}

void queue_to_operand(cudaStream_t stream, const float *x, size_t stride, const int32_t *index, int n,
                      const DeviceOperand *out) {
    const dim3 grid((unsigned)((out->n_groups + ROW_WARPS - 1) / ROW_WARPS), (unsigned)n);
    launch(stream, grid, dim3(ROW_THREADS), 0, store_rows, x, stride, index, *out);
}

/* ---- angles and copies --------------------------------------------------------------------------- */

enum { ANGLE_THREADS = 64 };

static __global__ void __launch_bounds__(ANGLE_THREADS)
    angles_of_rows(int n_rotated, const double *frequencies, const DeviceRow *rows, float *angles) {
    begin_grid();
    const int i = (int)blockIdx.y, d = (int)(blockIdx.x * ANGLE_THREADS + threadIdx.x);
    if (d >= n_rotated / 2) return;
    const double angle = rows[i].position * frequencies[d];
    float *out = angles + (size_t)i * (size_t)n_rotated + 2 * (size_t)d;
    out[0] = (float)cos(angle);
    out[1] = (float)sin(angle);
}

void queue_rope_angles(cudaStream_t stream, int n_rotated, const double *frequencies, const DeviceRow *rows, int n,
                       float *angles) {
    const int pairs = n_rotated / 2;
    if (!pairs) return;
    launch(stream, dim3((unsigned)((pairs + ANGLE_THREADS - 1) / ANGLE_THREADS), (unsigned)n), dim3(ANGLE_THREADS), 0,
           angles_of_rows, n_rotated, frequencies, rows, angles);
}

static __global__ void __launch_bounds__(ROW_THREADS)
    copy_rows(const float *from, size_t from_stride, float *to, size_t to_stride, int columns) {
    begin_grid();
    const size_t i = blockIdx.y;
    const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
    if (c < columns) to[i * to_stride + (size_t)c] = from[i * from_stride + (size_t)c];
}

void queue_copy(cudaStream_t stream, const float *from, size_t from_stride, float *to, size_t to_stride, int columns,
                int n) {
    launch(stream, dim3((unsigned)((columns + ROW_THREADS - 1) / ROW_THREADS), (unsigned)n), dim3(ROW_THREADS), 0,
           copy_rows, from, from_stride, to, to_stride, columns);
}
