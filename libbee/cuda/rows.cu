/* What is done to single rows outside of products and attention: see kernels.h. Sums are taken in one fixed order: a
 * thread's own columns, then the lanes of its warp, then the warps. */
#include "kernels.h"
#include "pointwise.h"

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
    const float minimum = half_value(s.minimum) * (float)s.small_minimum;
    return scale_of(t, s.scale) * (float)s.small * (float)code + minimum;
}

static __global__ void __launch_bounds__(ROW_THREADS)
    embed_rows(TensorType type, const uint8_t *raw, size_t row_bytes, int columns, const DeviceRow *rows, float scale,
               float *x, size_t stride) {
    begin_grid();
    const int i = (int)blockIdx.x;
    const uint8_t *from = raw + (size_t)rows[i].token * row_bytes;
    float *to = x + (size_t)i * stride;
    for (size_t c = threadIdx.x; c < stride; c += ROW_THREADS)
        to[c] = c < (size_t)columns ? dequantized(type, from, (int)c) * scale : 0.0f;
}

void queue_embed(cudaStream_t stream, TensorType type, const uint8_t *raw, size_t row_bytes, int columns,
                 const DeviceRow *rows, int n, float scale, float *x, size_t stride) {
    launch(stream, dim3((unsigned)n), dim3(ROW_THREADS), 0, embed_rows, type, raw, row_bytes, columns, rows, scale, x,
           stride);
}

/* ---- norms --------------------------------------------------------------------------------------- */

/* The same in every thread of the block. */
static __device__ float block_sum(float x, float *of_warps) {
    const float mine = warp_sum(x);
    if (lane_of() == 0) of_warps[threadIdx.x / WARP_SIZE] = mine;
    __syncthreads();
    return warp_sum(of_warps[lane_of()]);
}

/* Of x - mean, or of its squares. All loads of a thread are under way before the first is waited for. */
static __device__ float row_sum(const float *x, int columns, float mean, bool squares, float *of_warps) {
    float sum = 0;
    for (int first = (int)threadIdx.x; first < columns; first += COLUMNS_IN_FLIGHT * NORM_THREADS) {
        float loaded[COLUMNS_IN_FLIGHT];
        for (int i = 0; i < COLUMNS_IN_FLIGHT; i++) {
            const int c = first + i * NORM_THREADS;
            loaded[i] = c < columns ? x[c] - mean : 0.0f;
        }
        for (int i = 0; i < COLUMNS_IN_FLIGHT; i++) sum = fused(loaded[i], squares ? loaded[i] : 1.0f, sum);
    }
    return block_sum(sum, of_warps);
}

/* A row's norm as far as it is the same for all columns. */
typedef struct RowNorm {
    float mean, factor;
} RowNorm;

/* By a whole block. Every thread has read its columns for the last time when this returns in any. */
static __device__ RowNorm row_norm(const DeviceNorm &norm, const float *x, int columns, float *of_warps) {
    RowNorm of = {0, 0};
    if (norm.centred) {
        of.mean = row_sum(x, columns, 0, false, of_warps) / (float)columns;
        __syncthreads(); /* the sums of the warps are used again */
    }
    of.factor = 1.0f / sqrtf(row_sum(x, columns, of.mean, true, of_warps) / (float)columns + norm.eps);
    return of;
}

/* Grid: the row's groups; y: rows. What takes time is waiting: for memory, shuffles, divisions. So few rows get blocks
 * enough that every warp has one group; each of them sums up the whole row, which is in the cache. */
static __global__ void __launch_bounds__(NORM_THREADS)
    norm_rows(DeviceNorm norm, const float *x, size_t stride, const int32_t *index, int columns, DeviceOperand out) {
    __shared__ float of_warps[NORM_WARPS];
    begin_grid();
    const int i = (int)blockIdx.y, step = (int)gridDim.x * NORM_WARPS;
    int group = (int)(blockIdx.x * NORM_WARPS + threadIdx.x / WARP_SIZE), c = group * GROUP + lane_of();
    const float *from = x + (size_t)(index ? index[i] : i) * stride, *gain = norm.gain;
    /* before they are needed */
    float value = c < columns ? from[c] : 0.0f, weight = gain && c < columns ? gain[c] : 1.0f;
    const RowNorm of = row_norm(norm, from, columns, of_warps);
    for (; group < out.n_groups; group += step) {
        const float normed = (value - of.mean) * of.factor * weight;
        c += step * GROUP;
        if (c < columns)
            value = from[c], weight = gain ? gain[c] : 1.0f; /* the next group's, while this one is stored */
        store_group(&out, i, group, c - step * GROUP < columns ? normed : 0.0f);
    }
}

void queue_norm(cudaStream_t stream, const DeviceNorm *norm, const float *x, size_t stride, const int32_t *index,
                int columns, int n, const DeviceOperand *out) {
    const int n_blocks = n <= 16 ? (out->n_groups + NORM_WARPS - 1) / NORM_WARPS : 1; /* of a row */
    launch(stream, dim3((unsigned)n_blocks, (unsigned)n), dim3(NORM_THREADS), 0, norm_rows, *norm, x, stride, index,
           columns, *out);
}

static __device__ float normed_value(const DeviceNorm &norm, const RowNorm &of, const float *x, int c) {
    return (x[c] - of.mean) * of.factor * (norm.gain ? norm.gain[c] : 1.0f);
}

/* Grid: parts; y: rows. */
static __global__ void __launch_bounds__(NORM_THREADS)
    norm_parts(DeviceNorm norm, float *x, size_t stride, int columns) {
    __shared__ float of_warps[NORM_WARPS];
    begin_grid();
    float *const part = x + blockIdx.y * stride + (size_t)blockIdx.x * (size_t)columns;
    const RowNorm of = row_norm(norm, part, columns, of_warps);
    if (norm.apart) norm.gain += (size_t)blockIdx.x * (size_t)columns;
    for (int c = (int)threadIdx.x; c < columns; c += NORM_THREADS) part[c] = normed_value(norm, of, part, c);
}

void queue_norm_in_place(cudaStream_t stream, const DeviceNorm *norm, float *x, size_t stride, int columns, int parts,
                         int n) {
    launch(stream, dim3((unsigned)parts, (unsigned)n), dim3(NORM_THREADS), 0, norm_parts, *norm, x, stride, columns);
}

/* ---- sums ---------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float added(float x, float y, float scale, float whole) {
    return fused(y, scale, x) * whole;
}

static __global__ void __launch_bounds__(NORM_THREADS)
    add_normed_rows(DeviceNorm norm, float *y, size_t y_stride, float scale, float whole, int columns, float *x,
                    size_t x_stride) {
    __shared__ float of_warps[NORM_WARPS];
    begin_grid();
    float *const from = y + blockIdx.x * y_stride, *const to = x + blockIdx.x * x_stride;
    const RowNorm of = row_norm(norm, from, columns, of_warps);
    for (int c = (int)threadIdx.x; c < columns; c += NORM_THREADS) {
        const float normed = from[c] = normed_value(norm, of, from, c);
        to[c] = added(to[c], normed, scale, whole);
    }
}

static __global__ void __launch_bounds__(ROW_THREADS)
    add_rows(const float *y, size_t y_stride, float scale, float whole, int columns, float *x, size_t x_stride) {
    begin_grid();
    const size_t i = blockIdx.y;
    const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
    float *const to = x + i * x_stride + (size_t)c;
    if (c < columns) *to = added(*to, y[i * y_stride + (size_t)c], scale, whole);
}

/* Blocks of the threads that have one column each. */
static unsigned column_blocks(int columns) { return (unsigned)((columns + ROW_THREADS - 1) / ROW_THREADS); }

void queue_add(cudaStream_t stream, const DeviceNorm *norm, float *y, size_t y_stride, float scale, float whole,
               int columns, int n, float *x, size_t x_stride) {
    if (norm)
        launch(stream, dim3((unsigned)n), dim3(NORM_THREADS), 0, add_normed_rows, *norm, y, y_stride, scale, whole,
               columns, x, x_stride);
    else
        launch(stream, dim3(column_blocks(columns), (unsigned)n), dim3(ROW_THREADS), 0, add_rows, y, y_stride, scale,
               whole, columns, x, x_stride);
}

static __global__ void __launch_bounds__(ROW_THREADS)
    add_gated_rows(const float *gates, size_t gate_stride, const float *y, size_t y_stride, int columns, float *x,
                   size_t x_stride) {
    begin_grid();
    const size_t i = blockIdx.y;
    const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
    float *const to = x + i * x_stride + (size_t)c;
    if (c < columns) *to = added(*to, y[i * y_stride + (size_t)c], 1.0f / (1.0f + expf(-gates[i * gate_stride])), 1);
}

void queue_add_gated(cudaStream_t stream, const float *gates, size_t gate_stride, const float *y, size_t y_stride,
                     int columns, int n, float *x, size_t x_stride) {
    launch(stream, dim3(column_blocks(columns), (unsigned)n), dim3(ROW_THREADS), 0, add_gated_rows, gates, gate_stride,
           y, y_stride, columns, x, x_stride);
}

/* ---- rows become operands ------------------------------------------------------------------------ */

/* Groups of an operand by the warps of blocks; y: rows. */
static dim3 group_grid(const DeviceOperand *out, int n) {
    return dim3((unsigned)((out->n_groups + ROW_WARPS - 1) / ROW_WARPS), (unsigned)n);
}

static __device__ __forceinline__ int group_of_warp() {
    return (int)(blockIdx.x * ROW_WARPS + threadIdx.x / WARP_SIZE);
}

static __global__ void __launch_bounds__(ROW_THREADS)
    store_rows(const float *x, size_t stride, const int32_t *index, DeviceOperand out) {
    begin_grid();
    const int i = (int)blockIdx.y, group = group_of_warp();
    if (group >= out.n_groups) return;
    const float *from = x + (size_t)(index ? index[i] : i) * stride;
    const int c = group * GROUP + lane_of();
    store_group(&out, i, group, c < out.columns ? from[c] : 0.0f);
}

void queue_to_operand(cudaStream_t stream, const float *x, size_t stride, const int32_t *index, int n,
                      const DeviceOperand *out) {
    launch(stream, group_grid(out, n), dim3(ROW_THREADS), 0, store_rows, x, stride, index, *out);
}

static __global__ void __launch_bounds__(ROW_THREADS)
    gate_rows(Activation activation, const float *gate, size_t gate_stride, const float *up, size_t up_stride,
              int columns, DeviceOperand out) {
    begin_grid();
    const size_t i = blockIdx.y;
    const int group = group_of_warp(), c = group * GROUP + lane_of();
    if (group >= out.n_groups) return;
    float x = 0;
    if (c < columns) x = gated(activation, gate[i * gate_stride + (size_t)c], up[i * up_stride + (size_t)c]);
    store_group(&out, (int)i, group, x);
}

void queue_gate_values(cudaStream_t stream, Activation activation, const float *gate, size_t gate_stride,
                       const float *up, size_t up_stride, int columns, int n, const DeviceOperand *out) {
    launch(stream, group_grid(out, n), dim3(ROW_THREADS), 0, gate_rows, activation, gate, gate_stride, up, up_stride,
           columns, *out);
}

/* ---- angles, logits and copies ------------------------------------------------------------------- */

enum { ANGLE_THREADS = 64 };

static __global__ void __launch_bounds__(ANGLE_THREADS)
    angles_of_rows(DeviceRope rope, const DeviceRow *rows, float *angles) {
    begin_grid();
    const int i = (int)blockIdx.y, d = (int)(blockIdx.x * ANGLE_THREADS + threadIdx.x);
    if (d >= rope.n_rotated / 2) return;
    const bool is_long = rope.long_frequencies && rows[i].cache.n_ctx > rope.long_beyond;
    const double angle = rows[i].position * (is_long ? rope.long_frequencies : rope.frequencies)[d];
    float *out = angles + (size_t)i * (size_t)rope.n_rotated + 2 * (size_t)d;
    out[0] = rope.magnitude * (float)cos(angle);
    out[1] = rope.magnitude * (float)sin(angle);
}

void queue_rope_angles(cudaStream_t stream, const DeviceRope *rope, const DeviceRow *rows, int n, float *angles) {
    const int pairs = rope->n_rotated / 2;
    if (!pairs) return;
    launch(stream, dim3((unsigned)((pairs + ANGLE_THREADS - 1) / ANGLE_THREADS), (unsigned)n), dim3(ANGLE_THREADS), 0,
           angles_of_rows, *rope, rows, angles);
}

static __global__ void __launch_bounds__(ROW_THREADS)
    cap_rows(float scale, float softcap, float *logits, size_t stride, int columns) {
    begin_grid();
    const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
    float *const x = logits + blockIdx.y * stride + (size_t)c;
    if (c < columns) *x = softcap ? capped(*x * scale, softcap) : *x * scale;
}

void queue_cap(cudaStream_t stream, float scale, float softcap, float *logits, size_t stride, int columns, int n) {
    launch(stream, dim3(column_blocks(columns), (unsigned)n), dim3(ROW_THREADS), 0, cap_rows, scale, softcap, logits,
           stride, columns);
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
    launch(stream, dim3(column_blocks(columns), (unsigned)n), dim3(ROW_THREADS), 0, copy_rows, from, from_stride, to,
           to_stride, columns);
}
