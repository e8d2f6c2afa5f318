/* Recurrent layers: see kernels.h, and Recurrence in src/recurrence.h. A head's rows follow one another in one order,
 * so that a token gets the same bits in any pass; columns of its state have nothing to do with each other and are
 * shared out over blocks and lanes, keys over warps: a thread has 32 keys of one column in its registers. So a pass
 * reads a state once and writes it at most once, behind the rows that are certain to stay; the others go on in
 * registers.
 *
 * States lie as [head][key][value], behind the rows of inputs that the convolution remembers. */
#include "kernels.h"
#include "pointwise.h"

#if defined(BEE_EMULATE)
#define UNROLL
#else
#define UNROLL _Pragma("unroll")
#endif

enum {
    STATE_COLUMNS = WARP_SIZE, /* of a block */
    WARP_KEYS = 32,
    MOST_KEY_WARPS = MAX_STATE_SIZE / WARP_KEYS,
    ROWS_TOGETHER = 8, /* whose convolved inputs lie in shared memory */
    COLUMN_THREADS = 256,
    COLUMN_WARPS = COLUMN_THREADS / WARP_SIZE,
    FINISH_WARPS = 4,
};

/* ---- rows ---------------------------------------------------------------------------------------- */

/* One sequence's rows in a pass, behind those that its state lacks. Row 0 is the first of the latter; the rows before
 * it, below 0, are those that the convolution remembers. */
struct Stretch {
    const float *inputs;
    size_t stride;
    float *memory, *states, *kept; /* of this layer */
    int n_remembered;              /* rows before row 0 */
    int n_late, n_rows;            /* rows before the pass, and all */
    int n_certain;                 /* rows behind which the state is written: those behind them may be rejected */
    int first;                     /* of its rows in the pass */
    bool begins;                   /* there is no state yet */
};

static __device__ Stretch stretch_of(const Recurrence &r, const DeviceRun &run, const float *inputs, size_t stride) {
    Stretch s;
    s.inputs = inputs + (size_t)run.first * stride;
    s.stride = stride;
    s.memory = run.states + r.first_state;
    s.states = s.memory + (size_t)(r.kernel - 1) * (size_t)r.channels;
    s.kept = run.kept + r.first_kept;
    s.n_remembered = run.end.position < r.kernel - 1 ? run.end.position : r.kernel - 1;
    s.n_late = run.end.n_kept;
    s.n_rows = s.n_late + run.n;
    s.n_certain = s.n_late + (run.n > CACHE_KEPT_ROWS ? run.n - CACHE_KEPT_ROWS : 0);
    s.first = run.first;
    s.begins = !run.end.position;
    return s;
}

/* What a row gives to a column. A convolution alone mixes products of two numbers. */
static __device__ __forceinline__ float input_of(const Recurrence &r, const Stretch &s, int row, int column) {
    if (row < 0) return s.memory[(size_t)(r.kernel - 1 + row) * (size_t)r.channels + (size_t)column];
    if (row < s.n_late) return s.kept[(size_t)row * (size_t)r.input_floats + (size_t)column];
    const float *const in = s.inputs + (size_t)(row - s.n_late) * s.stride + (size_t)column;
    return r.n_heads ? *in : *in * in[2 * (size_t)r.channels];
}

/* A column of a row, mixed with the rows before it; before a sequence's first row there are none. */
static __device__ float convolved(const Recurrence &r, const Stretch &s, int row, int column) {
    float sum = 0;
    for (int t = 0; t < r.kernel; t++) {
        const int from = row - (r.kernel - 1) + t;
        if (from < -s.n_remembered) continue;
        sum = fused(input_of(r, s, from, column), r.taps[(size_t)t * (size_t)r.channels + (size_t)column], sum);
    }
    return r.tap_bias ? sum + r.tap_bias[column] : sum;
}

/* The column of what the layer remembers behind the pass: the inputs before n_certain, and those of the rows that it
 * keeps. Nobody reads the old ones any more. What moves up is read before it is written over. */
static __device__ void remember_column(const Recurrence &r, const Stretch &s, int column) {
    const int n_memory = r.kernel - 1;
    for (int i = 0; s.n_certain && column < r.channels && i < n_memory; i++) {
        const int from = s.n_certain - n_memory + i;
        if (from >= -s.n_remembered)
            s.memory[(size_t)i * (size_t)r.channels + (size_t)column] = input_of(r, s, from, column);
    }
    for (int row = s.n_certain; row < s.n_rows; row++)
        s.kept[(size_t)(row - s.n_certain) * (size_t)r.input_floats + (size_t)column] = input_of(r, s, row, column);
}

/* ---- heads --------------------------------------------------------------------------------------- */

/* What some rows give to a block's columns of a head, in shared memory. */
struct HeadRows {
    float *keys, *queries; /* [ROWS_TOGETHER][n_keys], zero beyond the head's */
    float *values;         /* [ROWS_TOGETHER][STATE_COLUMNS] */
    float *decay, *rate;   /* [ROWS_TOGETHER] */
    float *sums;           /* [2][warps][STATE_COLUMNS] */
    int n_keys;            /* in whole warps */
};

static __host__ __device__ size_t head_floats(int n_warps) {
    const size_t row = 2 * (size_t)(n_warps * WARP_KEYS) + STATE_COLUMNS + 2;
    return ROWS_TOGETHER * row + 2 * (size_t)(n_warps * STATE_COLUMNS);
}

static __device__ HeadRows head_rows(float *memory, int n_warps) {
    HeadRows h;
    h.n_keys = n_warps * WARP_KEYS;
    h.keys = memory;
    h.queries = h.keys + ROWS_TOGETHER * h.n_keys;
    h.values = h.queries + ROWS_TOGETHER * h.n_keys;
    h.sums = h.values + ROWS_TOGETHER * STATE_COLUMNS;
    h.decay = h.sums + 2 * n_warps * STATE_COLUMNS;
    h.rate = h.decay + ROWS_TOGETHER;
    return h;
}

/* By a warp: n convolved columns of a row, zeros up to n_out. Where there is a length they are brought to it. */
static __device__ void read_columns(const Recurrence &r, const Stretch &s, int row, int column, int n, int n_out,
                                    float length, float *out) {
    float squares = 0;
    for (int d = lane_of(); d < n_out; d += WARP_SIZE) {
        const float x = d < n ? activated(ACTIVATION_SILU, convolved(r, s, row, column + d)) : 0.0f;
        squares = fused(x, x, squares);
        out[d] = x;
    }
    if (!length) return;
    const float factor = length / sqrtf(warp_sum(squares) + r.eps);
    for (int d = lane_of(); d < n_out; d += WARP_SIZE) out[d] *= factor;
}

static __device__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

static __device__ void read_rates(const Recurrence &r, const Stretch &s, int head, int row, int i, const HeadRows &h) {
    const float step = softplus(input_of(r, s, row, r.step_at + head) + r.step_bias[head]);
    h.decay[i] = expf(r.decay[head] * step);
    h.rate[i] = r.corrects ? activated(ACTIVATION_LOGISTIC, input_of(r, s, row, r.rate_at + head)) : step;
}

/* By a block: rows [first, first + n) become the head's. Rows before the pass give nothing, so they need no queries. */
static __device__ void read_rows(const Recurrence &r, const Stretch &s, int head, int first_column, int first, int n,
                                 const HeadRows &h) {
    const int key_head = r.alternating ? head % r.n_key_heads : head / (r.n_heads / r.n_key_heads);
    const int key = key_head * r.key_size, left = r.value_size - first_column;
    const int n_values = left < STATE_COLUMNS ? left : STATE_COLUMNS;
    const float key_length = r.corrects ? 1.0f : 0.0f, query_length = key_length / sqrtf((float)r.key_size);
    const int n_warps = (int)blockDim.x / WARP_SIZE;
    for (int job = (int)threadIdx.x / WARP_SIZE; job < 3 * n; job += n_warps) {
        const int i = job / 3, row = first + i;
        if (job % 3 == 0)
            read_columns(r, s, row, r.key_at + key, r.key_size, h.n_keys, key_length, h.keys + i * h.n_keys);
        else if (job % 3 == 1)
            read_columns(r, s, row, r.value_at + head * r.value_size + first_column, n_values, STATE_COLUMNS, 0,
                         h.values + i * STATE_COLUMNS);
        else if (row >= s.n_late)
            read_columns(r, s, row, r.query_at + key, r.key_size, h.n_keys, query_length, h.queries + i * h.n_keys);
    }
    if ((int)threadIdx.x < n) read_rates(r, s, head, first + (int)threadIdx.x, (int)threadIdx.x, h);
}

/* ---- states -------------------------------------------------------------------------------------- */

/* A thread's part of a head's state: the keys of its warp, the column of its lane. Beyond the head's all is zero. */
struct StatePart {
    float *memory; /* the first of them, `stride` apart */
    size_t stride;
    int n; /* keys; 0 where the column is none */
};

static __device__ StatePart state_part(const Recurrence &r, const Stretch &s, int head, int first_column) {
    const int column = first_column + lane_of(), key = (int)threadIdx.x / WARP_SIZE * WARP_KEYS;
    const int left = r.key_size - key;
    StatePart part;
    part.stride = (size_t)r.value_size;
    part.memory = s.states + ((size_t)head * (size_t)r.key_size + (size_t)key) * part.stride + (size_t)column;
    part.n = column >= r.value_size ? 0 : left < WARP_KEYS ? left : WARP_KEYS;
    return part;
}

static __device__ __forceinline__ float dot(const float *state, const float *with) {
    float parts[4] = {0, 0, 0, 0};
    UNROLL for (int i = 0; i < WARP_KEYS; i += 4) {
        const float4 x = *(const float4 *)(with + i);
        parts[0] = fused(state[i], x.x, parts[0]);
        parts[1] = fused(state[i + 1], x.y, parts[1]);
        parts[2] = fused(state[i + 2], x.z, parts[2]);
        parts[3] = fused(state[i + 3], x.w, parts[3]);
    }
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

/* state = decay state + key change */
static __device__ __forceinline__ void change_state(float *state, float decay, const float *key, float change) {
    UNROLL for (int i = 0; i < WARP_KEYS; i += 4) {
        const float4 x = *(const float4 *)(key + i);
        state[i] = fused(x.x, change, decay * state[i]);
        state[i + 1] = fused(x.y, change, decay * state[i + 1]);
        state[i + 2] = fused(x.z, change, decay * state[i + 2]);
        state[i + 3] = fused(x.w, change, decay * state[i + 3]);
    }
}

/* Of what the warps have of the lane's column, in their order; the same in all of them. Calls take turns at the halves
 * of the memory: who writes one again has met, at the barrier of the call between, all who read it. */
static __device__ float sum_of_warps(float mine, const HeadRows &h, int *turn) {
    const int n_warps = (int)blockDim.x / WARP_SIZE;
    float *const sums = h.sums + (*turn ^= 1) * n_warps * STATE_COLUMNS;
    sums[threadIdx.x] = mine;
    __syncthreads();
    float sum = sums[lane_of()];
    for (int w = 1; w < n_warps; w++) sum += sums[w * STATE_COLUMNS + lane_of()];
    return sum;
}

/* Row i of the head's changes the state, and reads it where it belongs to the pass. decay (state' key) is
 * (decay state)' key. */
static __device__ __forceinline__ float recur_row(const Recurrence &r, const HeadRows &h, int i, bool reads,
                                                  float *state, int *turn) {
    const int keys = (int)threadIdx.x / WARP_SIZE * WARP_KEYS;
    const float *const key = h.keys + i * h.n_keys + keys;
    const float value = h.values[i * STATE_COLUMNS + lane_of()], decay = h.decay[i];
    float change = value;
    if (r.corrects) change -= decay * sum_of_warps(dot(state, key), h, turn);
    change_state(state, decay, key, h.rate[i] * change);
    if (!reads) return 0;
    return sum_of_warps(dot(state, h.queries + i * h.n_keys + keys), h, turn);
}

/* Grid: the column blocks of each head; y: runs. A warp for every 32 keys. */
static __global__ void __launch_bounds__(MOST_KEY_WARPS *WARP_SIZE)
    recur_heads(Recurrence r, const DeviceRun *runs, const float *inputs, size_t input_stride, float *out,
                size_t stride) {
    SHARED_MEMORY(memory);
    begin_grid();
    const DeviceRun run = runs[blockIdx.y];
    if (!run.n) return;
    const Stretch s = stretch_of(r, run, inputs, input_stride);
    const int blocks = (r.value_size + STATE_COLUMNS - 1) / STATE_COLUMNS, head = (int)blockIdx.x / blocks;
    const int first_column = (int)blockIdx.x % blocks * STATE_COLUMNS, column = first_column + lane_of();
    const StatePart part = state_part(r, s, head, first_column);
    const HeadRows h = head_rows((float *)memory, (int)blockDim.x / WARP_SIZE);
    float state[WARP_KEYS];
    int turn = 0;
    UNROLL for (int i = 0; i < WARP_KEYS; i++) state[i] = i < part.n && !s.begins ? part.memory[i * part.stride] : 0.0f;
    for (int first = 0; first < s.n_rows; first += ROWS_TOGETHER) {
        const int n = s.n_rows - first < ROWS_TOGETHER ? s.n_rows - first : ROWS_TOGETHER;
        __syncthreads(); /* nobody reads the rows before any more */
        read_rows(r, s, head, first_column, first, n, h);
        __syncthreads();
        for (int i = 0; i < n; i++) {
            const int row = first + i;
            if (row && row == s.n_certain) {
                UNROLL for (int k = 0; k < WARP_KEYS; k++) if (k < part.n) part.memory[k * part.stride] = state[k];
            }
            const float result = recur_row(r, h, i, row >= s.n_late, state, &turn);
            if (row < s.n_late || threadIdx.x >= WARP_SIZE || column >= r.value_size) continue;
            out[(size_t)(s.first + row - s.n_late) * stride + (size_t)(head * r.value_size + column)] =
                r.skip ? fused(h.values[i * STATE_COLUMNS + lane_of()], r.skip[head], result) : result;
        }
    }
}

/* A warp for each head, y: rows of the pass. */
static __global__ void __launch_bounds__(FINISH_WARPS *WARP_SIZE)
    finish_heads(Recurrence r, const float *gates, float *out, size_t stride) {
    begin_grid();
    const int head = (int)(blockIdx.x * FINISH_WARPS + threadIdx.x / WARP_SIZE);
    if (head >= r.n_heads) return;
    const size_t at = blockIdx.y * stride + (size_t)head * (size_t)r.value_size;
    float squares = 0;
    for (int d = lane_of(); r.gain && d < r.value_size; d += WARP_SIZE)
        squares = fused(out[at + d], out[at + d], squares);
    const float factor = r.gain ? 1.0f / sqrtf(warp_sum(squares) / (float)r.value_size + r.eps) : 1.0f;
    for (int d = lane_of(); d < r.value_size; d += WARP_SIZE) {
        const float x = r.gain ? out[at + d] * factor * r.gain[d] : out[at + d];
        out[at + d] = gated(ACTIVATION_SILU, gates[at + d], x);
    }
}

/* Grid: columns; y: runs. */
static __global__ void __launch_bounds__(COLUMN_THREADS)
    remember_rows(Recurrence r, const DeviceRun *runs, const float *inputs, size_t input_stride) {
    begin_grid();
    const DeviceRun run = runs[blockIdx.y];
    const int column = (int)(blockIdx.x * COLUMN_THREADS + threadIdx.x);
    if (run.n && column < r.input_floats) remember_column(r, stretch_of(r, run, inputs, input_stride), column);
}

void queue_recur(cudaStream_t stream, const Recurrence *r, const DeviceRun *runs, int n_runs, int n,
                 const float *inputs, size_t input_stride, const float *gates, float *out, size_t stride) {
    const int n_warps = (r->key_size + WARP_KEYS - 1) / WARP_KEYS;
    const int blocks = (r->value_size + STATE_COLUMNS - 1) / STATE_COLUMNS;
    launch(stream, dim3((unsigned)(r->n_heads * blocks), (unsigned)n_runs), dim3((unsigned)(n_warps * WARP_SIZE)),
           head_floats(n_warps) * sizeof(float), recur_heads, *r, runs, inputs, input_stride, out, stride);
    launch(stream, dim3((unsigned)((r->n_heads + FINISH_WARPS - 1) / FINISH_WARPS), (unsigned)n),
           dim3(FINISH_WARPS * WARP_SIZE), 0, finish_heads, *r, gates, out, stride);
    launch(stream, dim3((unsigned)((r->input_floats + COLUMN_THREADS - 1) / COLUMN_THREADS), (unsigned)n_runs),
           dim3(COLUMN_THREADS), 0, remember_rows, *r, runs, inputs, input_stride);
}

/* ---- convolutions alone -------------------------------------------------------------------------- */

/* Columns have nothing to do with each other: a block has 32 of a run, and its warps share out the rows. Grid: columns;
 * y: runs. */
static __global__ void __launch_bounds__(COLUMN_THREADS)
    convolve_rows(Recurrence r, const DeviceRun *runs, const float *inputs, size_t input_stride, float *out,
                  size_t stride) {
    begin_grid();
    const DeviceRun run = runs[blockIdx.y];
    if (!run.n) return;
    const Stretch s = stretch_of(r, run, inputs, input_stride);
    const int warp = (int)threadIdx.x / WARP_SIZE, column = (int)blockIdx.x * WARP_SIZE + lane_of();
    for (int i = warp; i < run.n && column < r.channels; i += COLUMN_WARPS) {
        const float third = s.inputs[(size_t)i * input_stride + (size_t)(r.channels + column)];
        out[(size_t)(run.first + i) * stride + (size_t)column] = convolved(r, s, s.n_late + i, column) * third;
    }
    __syncthreads();
    if (!warp && column < r.channels) remember_column(r, s, column);
}

void queue_convolve(cudaStream_t stream, const Recurrence *r, const DeviceRun *runs, int n_runs, const float *inputs,
                    size_t input_stride, float *out, size_t stride) {
    launch(stream, dim3((unsigned)((r->channels + WARP_SIZE - 1) / WARP_SIZE), (unsigned)n_runs), dim3(COLUMN_THREADS),
           0, convolve_rows, *r, runs, inputs, input_stride, out, stride);
}
