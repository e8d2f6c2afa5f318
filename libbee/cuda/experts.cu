/* Mixtures of experts but for their products: which experts a row goes to, rows put together by expert, and the sum of
 * their answers. See kernels.h. */
#include "kernels.h"

enum {
    ROUTE_WARPS = 32,
    ROUTE_THREADS = ROUTE_WARPS * WARP_SIZE,
    COPY_WARPS = 8,
    SUM_THREADS = 256,
};
static_assert((int)MAX_EXPERTS <= WARP_SIZE * 32, "a lane has a bit for each of its experts");
static_assert((int)MAX_USED_EXPERTS <= (int)WARP_SIZE, "a lane has one of a row's experts");

/* ---- the choice ---------------------------------------------------------------------------------- */

static __device__ float probability_of(const Routing &r, float logit, float top, float sum) {
    if (r.probability == ROUTE_SIGMOID) return 1.0f / (1.0f + expf(-logit));
    if (r.probability == ROUTE_SOFTMAX) return expf(logit - top) / sum;
    return logit;
}

/* The largest value that is not taken, of equal ones the lower expert; the same in every lane. NaN counts as the
 * smallest: whatever the logits are, every choice is an expert, and another one. */
static __device__ int best_expert(const Routing &r, const float *logits, float top, float sum, unsigned taken) {
    int best = -1;
    float most = 0;
    for (int e = lane_of(); e < r.n_experts; e += WARP_SIZE) {
        if (taken >> (e / WARP_SIZE) & 1) continue;
        float value = probability_of(r, logits[e], top, sum) + (r.bias ? r.bias[e] : 0.0f);
        if (!(value == value)) value = -INFINITY;
        if (best < 0 || value > most) best = e, most = value;
    }
    for (int step = WARP_SIZE / 2; step; step /= 2) {
        const int other = __shfl_xor_sync(0xffffffffu, best, step);
        const float value = __shfl_xor_sync(0xffffffffu, most, step);
        const bool larger = best < 0 || value > most || (value == most && other < best);
        if (other >= 0 && larger) best = other, most = value;
    }
    return best;
}

/* By a warp: sums in a fixed order, a lane's own experts, then the lanes. */
static __device__ void route_row(const Routing &r, const float *logits, int32_t *ids, float *weights) {
    const int lane = lane_of();
    float top = -INFINITY, sum = 0;
    for (int e = lane; e < r.n_experts; e += WARP_SIZE) top = fmaxf(top, logits[e]);
    top = warp_max(top);
    for (int e = lane; e < r.n_experts; e += WARP_SIZE) sum += expf(logits[e] - top);
    sum = warp_sum(sum);
    unsigned taken = 0;
    int mine = 0, first = 0;
    for (int k = 0; k < r.n_used; k++) {
        const int best = best_expert(r, logits, top, sum, taken);
        if (best % WARP_SIZE == lane) taken |= 1u << (best / WARP_SIZE);
        if (k == lane) mine = best;
        if (k == 0) first = best;
    }
    const bool of_chosen = r.probability == ROUTE_SOFTMAX_OF_CHOSEN;
    float weight = 0;
    if (lane < r.n_used)
        weight = of_chosen ? expf(logits[mine] - logits[first]) : probability_of(r, logits[mine], top, sum);
    const float chosen = warp_sum(weight), least = 6.103515625e-5f;
    if (lane >= r.n_used) return;
    ids[lane] = mine;
    weights[lane] = weight * (r.normed || of_chosen ? r.scale / (chosen < least ? least : chosen) : r.scale);
}

/* ---- places -------------------------------------------------------------------------------------- */

static __device__ int tiles_of(int n_rows) { return (n_rows + EXPERT_ALIGNMENT - 1) / EXPERT_ALIGNMENT; }

/* By one warp: where each expert's rows begin, and its tiles. A lane has some experts that follow each other. */
static __device__ void place_experts(int n_experts, const int *count, int *first, const DevicePlaces &places) {
    const int each = (n_experts + WARP_SIZE - 1) / WARP_SIZE, begin = lane_of() * each;
    const int end = begin + each < n_experts ? begin + each : n_experts;
    int mine = 0, before = 0;
    for (int e = begin; e < end; e++) mine += tiles_of(count[e]);
    for (int lane = 0; lane < WARP_SIZE; lane++) {
        const int others = __shfl_sync(0xffffffffu, mine, lane);
        if (lane < lane_of()) before += others;
    }
    for (int e = begin; e < end; e++) {
        first[e] = before * EXPERT_ALIGNMENT;
        for (int left = count[e]; left > 0; left -= EXPERT_ALIGNMENT) {
            const int rows = left < EXPERT_ALIGNMENT ? left : EXPERT_ALIGNMENT;
            places.tiles[before] = {e, before * EXPERT_ALIGNMENT, rows, 0};
            before++;
        }
    }
    if (lane_of() == WARP_SIZE - 1) *places.n_tiles = before;
}

/* One block: a warp for each row, then all rows together. Which place of its expert a row gets is a matter of chance;
 * no number depends on it. */
static __global__ void __launch_bounds__(ROUTE_THREADS) route_rows(Routing r, const float *logits, size_t stride, int n,
                                                                   int32_t *ids, float *weights, DevicePlaces places) {
    __shared__ int count[MAX_EXPERTS], first[MAX_EXPERTS];
    begin_grid();
    const int thread = (int)threadIdx.x, warp = thread / WARP_SIZE;
    for (int i = warp; i < n; i += ROUTE_WARPS)
        route_row(r, logits + (size_t)i * stride, ids + i * r.n_used, weights + i * r.n_used);
    for (int e = thread; e < r.n_experts; e += ROUTE_THREADS) count[e] = 0;
    __syncthreads();
    for (int i = thread; i < n * r.n_used; i += ROUTE_THREADS) places.of[i] = atomicAdd(&count[ids[i]], 1);
    __syncthreads();
    if (warp == 0) place_experts(r.n_experts, count, first, places);
    __syncthreads();
    for (int i = thread; i < n * r.n_used; i += ROUTE_THREADS) places.of[i] += first[ids[i]];
}

void queue_route(cudaStream_t stream, const Routing *routing, const float *logits, size_t stride, int n, int32_t *ids,
                 float *weights, const DevicePlaces *places) {
    launch(stream, dim3(1), dim3(ROUTE_THREADS), 0, route_rows, *routing, logits, stride, n, ids, weights, *places);
}

/* ---- rows to their places, and back -------------------------------------------------------------- */

/* What one token has of a group lies in one piece, `bytes` long, in each of `pieces`. */
static __device__ void copy_words(const void *from, void *to, size_t from_at, int from_token, size_t to_at,
                                  int to_token, int pieces, int words) {
    const int lane = lane_of(), piece = lane / words, word = lane % words;
    if (piece >= pieces) return;
    const size_t group = (size_t)(8 * words), in_piece = (size_t)word;
    ((unsigned *)to)[(to_at * (size_t)pieces + (size_t)piece) * group + (size_t)(to_token % 8 * words) + in_piece] =
        ((const unsigned *)
             from)[(from_at * (size_t)pieces + (size_t)piece) * group + (size_t)(from_token % 8 * words) + in_piece];
}

/* Grid: groups by the warps of blocks; y: each row's each expert. */
static __global__ void __launch_bounds__(COPY_WARPS *WARP_SIZE)
    gather_rows(DeviceOperand in, int n_used, const int32_t *places, DeviceOperand out) {
    begin_grid();
    const int i = (int)blockIdx.y, from = i / n_used, to = places[i];
    const int group = (int)(blockIdx.x * COPY_WARPS + threadIdx.x / WARP_SIZE);
    if (group >= out.n_groups) return;
    const size_t in_at = operand_group(&in, from, group), out_at = operand_group(&out, to, group);
    if (out.formats & FORMAT_CODES) {
        copy_words(in.codes, out.codes, in_at, from, out_at, to, 1, 8);
        copy_words(in.scales, out.scales, in_at, from, out_at, to, 1, 2);
    }
    if (out.formats & FORMAT_F16) {
        copy_words(in.f16, out.f16, in_at, from, out_at, to, 2, 16);
        copy_words(in.f16_factors, out.f16_factors, in_at, from, out_at, to, 1, 1);
    }
    if (out.formats & FORMAT_BF16) {
        copy_words(in.bf16, out.bf16, in_at, from, out_at, to, 2, 16);
        copy_words(in.bf16_factors, out.bf16_factors, in_at, from, out_at, to, 1, 1);
    }
    const int column = group * GROUP + lane_of();
    if (out.formats & FORMAT_VALUES && column < out.columns)
        out.values[(size_t)to * (size_t)out.columns + (size_t)column] =
            in.values[(size_t)from * (size_t)in.columns + (size_t)column];
}

void queue_gather(cudaStream_t stream, const DeviceOperand *in, int n, int n_used, const DevicePlaces *places,
                  const DeviceOperand *out) {
    const int n_blocks = (out->n_groups + COPY_WARPS - 1) / COPY_WARPS;
    launch(stream, dim3((unsigned)n_blocks, (unsigned)(n * n_used)), dim3(COPY_WARPS * WARP_SIZE), 0, gather_rows, *in,
           n_used, (const int32_t *)places->of, *out);
}

/* In the order in which a row's experts were chosen. */
static __global__ void __launch_bounds__(SUM_THREADS)
    sum_answers(const float *each, size_t each_stride, const float *weights, const int32_t *places, int n_used,
                int columns, float *out, size_t stride) {
    begin_grid();
    const size_t i = blockIdx.y;
    const int c = (int)(blockIdx.x * SUM_THREADS + threadIdx.x);
    if (c >= columns) return;
    float sum = 0;
    for (size_t k = i * (size_t)n_used; k < (i + 1) * (size_t)n_used; k++)
        sum = fused(each[(size_t)places[k] * each_stride + (size_t)c], weights[k], sum);
    out[i * stride + (size_t)c] = sum;
}

void queue_sum_answers(cudaStream_t stream, const float *each, size_t each_stride, const float *weights,
                       const DevicePlaces *places, int n_used, int columns, int n, float *out, size_t stride) {
    launch(stream, dim3((unsigned)((columns + SUM_THREADS - 1) / SUM_THREADS), (unsigned)n), dim3(SUM_THREADS), 0,
           sum_answers, each, each_stride, weights, (const int32_t *)places->of, n_used, columns, out, stride);
}
