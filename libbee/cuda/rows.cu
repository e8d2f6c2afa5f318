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

/* The CPU backend's dequantize_row, operation by operation: where a type has no minimum, zero is added all the same. */
static __device__ float dequantized(TensorType type, const uint8_t *row, int column) {
    const WeightTraits t = traits_of(type);
    if (type == TYPE_F32) return __uint_as_float(read_u32(row + 4 * (size_t)column));
    if (type == TYPE_F16) return float_from_half((uint16_t)read_u16(row + 2 * (size_t)column));
    if (type == TYPE_BF16) return bf16_to_float((uint16_t)read_u16(row + 2 * (size_t)column));
    const uint8_t *const block = row + (size_t)(column / t.columns) * (size_t)t.bytes;
    const int in_block = column % t.columns;
    const BlockScale s = block_scale(type, block, in_block);
    const int code = (int)(block_codes(type, block, in_block / 4 * 4) >> in_block % 4 * 8 & 0xff) - t.zero;
    const float minimum = float_from_half(s.minimum) * (float)s.small_minimum;
    return float_from_half(s.scale) * (float)s.small * (float)code + minimum;
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
