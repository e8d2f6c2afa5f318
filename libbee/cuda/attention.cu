/* Attention: see kernels.h. The positions that a row sees are taken in chunks of 128, counted from position 0. Of each
 * chunk a block computes maximum, sum and weighted values for a tile of 16 queries; a row's chunks are put together in
 * ascending order. So the numbers depend on neither the grid nor the rows beside.
 *
 * Chunk c is the business of the blocks with z = c % (their number): a layer with a window has as many as a window can
 * touch, wherever it stands. What a row does not see, on either side, may be anything: in a ring it is another
 * position's.
 *
 * A tile's queries share a key head: as many rows of the pass as fit, each with all its query heads of that key head
 * (or a part of them, where there are more than 16). Both products are matrix instructions, whose rows, here the
 * queries, do not touch each other. */
#include "kernels.h"
#include "pointwise.h"

#include <type_traits>

#if defined(BEE_EMULATE)
#define UNROLL
#define UNROLL_BY_2
#define UNROLL_BY_4
#else
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_2 _Pragma("unroll 2")
#define UNROLL_BY_4 _Pragma("unroll 4")
#endif

enum {
    TILE_QUERIES = 16,
    ATTEND_WARPS = 4,
    ATTEND_THREADS = ATTEND_WARPS * WARP_SIZE,
    WARP_POSITIONS = CACHE_CHUNK / ATTEND_WARPS,
    KEY_BLOCKS = WARP_POSITIONS / 8,    /* of a warp: 8 positions each */
    VALUE_BLOCKS = WARP_POSITIONS / 16, /* of a warp: 16 positions each */
    SLICE_BLOCKS = 8,                   /* of 8 dimensions, of the values: what the registers hold at a time */
    SLICE = SLICE_BLOCKS * 8,
    SLICE_STRIDE = SLICE + 8, /* in shared memory: so that a warp's stores meet all banks */
};

static __host__ __device__ __forceinline__ int at_most(int a, int b) { return a < b ? a : b; }

static __device__ __forceinline__ size_t chunk_at(const DeviceHeads &heads, const DeviceRow &row, int head, int chunk) {
    return cache_chunk_at(row.cache.n_positions[heads.region], row.cache.position_bytes[heads.region], heads.first_byte,
                          heads.head_bytes, head, chunk);
}

/* Where the window of a row begins. */
static __device__ __forceinline__ int first_visible(const DeviceHeads &heads, const DeviceRow &row) {
    return heads.window && row.position >= heads.window ? row.position - heads.window + 1 : 0;
}

/* ---- queries, keys and values before attention --------------------------------------------------- */

/* The factor by which a head is multiplied before its gain. */
static __device__ float norm_factor(const float *x, int size, float eps) {
    float squares = 0;
    for (int d = lane_of(); d < size; d += WARP_SIZE) squares = fused(x[d], x[d], squares);
    return 1.0f / sqrtf(warp_sum(squares) / (float)size + eps);
}

/* The warp's dimensions of a head, normed where there is a gain and rotated, go to `use`. Each lane reads the
 * dimensions that it alone hands on, which `use` may therefore write in place. */
template <class Use>
static __device__ __forceinline__ void each_rotated(const DeviceHeads &heads, const float *x, const float *gain,
                                                    const float *turn, Use use) {
    const int half = heads.n_rotated / 2;
    const float factor = gain ? norm_factor(x, heads.head_size, heads.eps) : 1.0f;
    const auto normed = [&](int d) { return gain ? x[d] * factor * gain[d] : x[d]; };
    for (int i = lane_of(); i < half; i += WARP_SIZE) {
        const int a = heads.neox ? i : 2 * i, b = heads.neox ? i + half : 2 * i + 1;
        const float c = turn[2 * i], s = turn[2 * i + 1], first = normed(a), second = normed(b);
        use(a, first * c - second * s);
        use(b, first * s + second * c);
    }
    for (int d = 2 * half + lane_of(); d < heads.head_size; d += WARP_SIZE) use(d, normed(d));
}

/* A head on its way: normed, rotated, scaled, by a warp. */
template <class Store>
static __device__ void rotate_head(const DeviceHeads &heads, const float *x, const float *gain, const float *turn,
                                   float scale, Store store) {
    if (!gain || !heads.norm_rotated) {
        each_rotated(heads, x, gain, turn, [&](int d, float y) { store(d, y * scale); });
        return;
    }
    float squares = 0;
    each_rotated(heads, x, nullptr, turn, [&](int, float y) { squares = fused(y, y, squares); });
    const float factor = 1.0f / sqrtf(warp_sum(squares) / (float)heads.head_size + heads.eps);
    each_rotated(heads, x, nullptr, turn, [&](int d, float y) { store(d, y * factor * gain[d] * scale); });
}

/* Whether float16 holds all of the head's values. */
static __device__ bool values_fit(const float *v, float factor, int size) {
    bool fit = true;
    for (int d = lane_of(); d < size; d += WARP_SIZE) fit = fit && (half_from_float(v[d] * factor) & 0x7c00) != 0x7c00;
    return __all_sync(0xffffffffu, fit);
}

static __device__ void store_halves(const DeviceHeads &heads, uint16_t *keys, uint16_t *values, int in_chunk,
                                    const float *k, const float *v, float factor, const float *gain,
                                    const float *turn) {
    const int size = heads.head_size;
    const bool fit = values_fit(v, factor, size);
    rotate_head(heads, k, gain, turn, 1.0f, [&](int d, float x) {
        keys[key_place(size, in_chunk, d)] = fit ? half_from_float(x) : (uint16_t)0x7e00;
    });
    for (int d = lane_of(); d < size; d += WARP_SIZE)
        values[value_place(size, in_chunk, d)] = fit ? half_from_float(v[d] * factor) : (uint16_t)0;
}

/* A lane's share of a warp's 32 numbers in 8 bits; `scale` is the same in all lanes. Bit for bit as the CPU's. */
typedef struct Code {
    int8_t code;
    uint16_t scale;
    bool fits;
} Code;

static __device__ __forceinline__ Code encode(float x) {
    Code c;
    c.scale = half_from_float(warp_max(fabsf(x)) / 127.0f);
    const float scale = float_from_half(c.scale);
    /* warp_max drops NaN */
    c.fits = __all_sync(0xffffffffu, fabsf(x) <= 3.402823466e38f) && 127.0f * scale <= 65504.0f;
    c.code = (int8_t)(c.fits && scale > 0 ? (int)rintf(fmaxf(-127.0f, fminf(127.0f, x / scale))) : 0);
    return c;
}

/* In 8 bits all of a head's numbers are needed before the first can be stored: keys wait in the row, in place. */
static __device__ void store_codes(const DeviceHeads &heads, uint8_t *keys, uint8_t *values, int in_chunk, float *k,
                                   const float *v, float factor, const float *gain, const float *turn) {
    const int size = heads.head_size, lane = lane_of();
    uint16_t *key_scales = (uint16_t *)(keys + CACHE_CHUNK * size),
             *value_scales = (uint16_t *)(values + CACHE_CHUNK * size);
    bool fit = true;
    for (int d = lane; d - lane < size; d += WARP_SIZE) fit = encode(d < size ? v[d] * factor : 0.0f).fits && fit;
    for (int d = lane; d - lane < size; d += WARP_SIZE) {
        const Code c = encode(d < size ? v[d] * factor : 0.0f);
        if (d < size) values[value_code_place(size, in_chunk, d)] = (uint8_t)(fit ? c.code : 0);
        if (!lane) value_scales[value_scale_place(in_chunk, d)] = fit ? c.scale : (uint16_t)0;
    }
    __syncwarp();
    rotate_head(heads, k, gain, turn, 1.0f, [&](int d, float x) { k[d] = x; });
    __syncwarp();
    for (int d = lane; d - lane < size; d += WARP_SIZE) {
        const Code c = encode(d < size ? k[d] : 0.0f);
        if (d < size) keys[key_code_place(size, in_chunk, d)] = (uint8_t)c.code;
        if (!lane) key_scales[key_scale_place(in_chunk, d)] = fit && c.fits ? c.scale : (uint16_t)0x7e00;
    }
}

/* A value that is not finite would spoil, in the matrix instructions, rows of the tile that must not see its position:
 * zero times NaN. Such a position gets zeros for values and NaN for a key, which spoils those that do see it, alone. */
static __device__ void store_position(const DeviceHeads &heads, int head, const DeviceRow &row, float *k,
                                      const float *v, const float *gain, const float *turn) {
    const int in_chunk = row.position % CACHE_CHUNK;
    const size_t chunk = chunk_at(heads, row, head, row.position / CACHE_CHUNK);
    uint8_t *keys = row.cache.keys[heads.region] + chunk, *values = row.cache.values[heads.region] + chunk;
    const float factor = heads.norm_values ? norm_factor(v, heads.head_size, heads.eps) : 1.0f;
    if (heads.kv_type == BEE_KV_Q8_0)
        store_codes(heads, keys, values, in_chunk, k, v, factor, gain, turn);
    else
        store_halves(heads, (uint16_t *)keys, (uint16_t *)values, in_chunk, k, v, factor, gain, turn);
}

static __device__ float query_scale(const DeviceHeads &heads, int position) {
    if (!heads.growth || position < heads.period) return heads.scale;
    return heads.scale * (float)(1 + heads.growth * log(1 + floor((double)position / heads.period)));
}

/* A warp per row and head: the key heads, where there are keys, then the query heads. */
static __global__ void __launch_bounds__(ATTEND_THREADS)
    rotate_heads(DeviceHeads heads, const DeviceRow *rows, const float *angles, const float *q_gain,
                 const float *k_gain, float *q, size_t q_stride, float *k, const float *v, size_t kv_stride) {
    begin_grid();
    const size_t i = blockIdx.y, size = (size_t)heads.head_size;
    const int unit = (int)(blockIdx.x * ATTEND_WARPS + threadIdx.x / WARP_SIZE);
    const int query = unit - (k ? heads.n_head_kv : 0);
    const float *turn = angles + i * (size_t)heads.n_rotated;
    if (query < 0) {
        const size_t at = i * kv_stride + (size_t)unit * size;
        const DeviceRow &row = rows[i];
        if (row.position >= 0) store_position(heads, unit, row, k + at, v ? v + at : k + at, k_gain, turn);
    } else if (q && query < heads.n_head) {
        float *x = q + i * q_stride + (size_t)query * size;
        rotate_head(heads, x, q_gain, turn, query_scale(heads, rows[i].position), [&](int d, float y) { x[d] = y; });
    }
}

void queue_rotate_and_store(cudaStream_t stream, const DeviceHeads *heads, const DeviceRow *rows, int n,
                            const float *angles, const float *q_gain, const float *k_gain, float *q, size_t q_stride,
                            float *k, const float *v, size_t kv_stride) {
    const int units = (k ? heads->n_head_kv : 0) + (q ? heads->n_head : 0);
    launch(stream, dim3((unsigned)((units + ATTEND_WARPS - 1) / ATTEND_WARPS), (unsigned)n), dim3(ATTEND_THREADS), 0,
           rotate_heads, *heads, rows, angles, q_gain, k_gain, q, q_stride, k, v, kv_stride);
}

/* ---- chunks -------------------------------------------------------------------------------------- */

/* Partial results: maximum and sum of (row, head, chunk), then the weighted values of each. */
typedef struct Partials {
    float2 *totals;
    float *values;
} Partials;

/* How queries are put into tiles. */
typedef struct Tiling {
    int group;   /* query heads of a key head */
    int members; /* of them in one tile */
    int parts;   /* tiles that a row's group needs */
    int rows;    /* of a tile */
} Tiling;

static Tiling tiling_of(const DeviceHeads *heads) {
    const int group = heads->n_head / heads->n_head_kv;
    Tiling t;
    t.group = group;
    t.members = at_most(group, TILE_QUERIES);
    t.parts = (group + TILE_QUERIES - 1) / TILE_QUERIES;
    t.rows = TILE_QUERIES / t.members;
    return t;
}

typedef struct AttendTask {
    DeviceHeads heads;
    Tiling tiling;
    int n;
    const DeviceRow *rows;
    const float *q;
    size_t q_stride;
    Partials partials;
} AttendTask;

/* Row and head of a query of this block's tile; false where there is none. */
static __device__ __forceinline__ bool find_query(const AttendTask &task, int query, int *row, int *head) {
    const Tiling &t = task.tiling;
    const int tile = (int)blockIdx.x / t.parts, member = (int)blockIdx.x % t.parts * TILE_QUERIES + query % t.members;
    *row = tile * t.rows + query / t.members;
    *head = (int)blockIdx.y * t.group + member;
    return query / t.members < t.rows && *row < task.n && member < t.group;
}

/* The chunk of a row that this block has: the first that it sees, or one of those that follow. */
static __device__ __forceinline__ int chunk_of_block(const DeviceHeads &heads, const DeviceRow &row) {
    const int first = first_visible(heads, row) / CACHE_CHUNK, n = (int)gridDim.z;
    return first + ((int)blockIdx.z + n - first % n) % n;
}

/* Shared memory of a block, beside what is used in turns: queries first, then weighted values. */
typedef struct Shared {
    const uint8_t *keys[TILE_QUERIES]; /* of the tile's rows: their caches, and which chunk is this block's */
    int chunk[TILE_QUERIES];
    const float *query[TILE_QUERIES]; /* NULL: there is none */
    size_t partial[TILE_QUERIES];     /* where its result goes */
    /* The chunk's positions that a query sees: from hidden to visible; none where it is of another cache or chunk. */
    int hidden[TILE_QUERIES], visible[TILE_QUERIES];
    float top[ATTEND_WARPS][TILE_QUERIES], sum[ATTEND_WARPS][TILE_QUERIES];
} Shared;

static __device__ void find_rows(const AttendTask &task, int first, int end, Shared *shared) {
    const int i = (int)threadIdx.x;
    if (first + i >= end) return;
    const DeviceRow &row = task.rows[first + i];
    shared->keys[i] = row.cache.keys[task.heads.region];
    shared->chunk[i] = chunk_of_block(task.heads, row);
}

/* Those of the tile that have a row's cache and chunk. */
static __device__ void find_queries(const AttendTask &task, int in_tile, int first, Shared *shared) {
    const int i = (int)threadIdx.x, n_head = task.heads.n_head;
    int row, head, hidden = 0, visible = 0;
    if (i >= TILE_QUERIES) return;
    const bool found = find_query(task, i, &row, &head);
    if (found && shared->keys[row - first] == shared->keys[in_tile] &&
        shared->chunk[row - first] == shared->chunk[in_tile] && task.rows[row].position >= 0) {
        const int begin = shared->chunk[in_tile] * CACHE_CHUNK;
        hidden = first_visible(task.heads, task.rows[row]) - begin;
        visible = at_most(task.rows[row].n_visible - begin, CACHE_CHUNK);
    }
    shared->hidden[i] = hidden;
    shared->visible[i] = visible > 0 && visible > hidden ? visible : 0;
    shared->query[i] =
        found ? task.q + (size_t)row * task.q_stride + (size_t)head * (size_t)task.heads.head_size : nullptr;
    shared->partial[i] = found ? ((size_t)row * (size_t)n_head + (size_t)head) * gridDim.z + blockIdx.z : 0;
}

static __device__ __forceinline__ bool sees_any(const Shared *shared) {
    return __any_sync(0xffffffffu, shared->visible[lane_of() % TILE_QUERIES] > 0);
}

static __device__ __forceinline__ unsigned bits_below(int n) { return n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0; }

/* The warp's positions that any query sees, a bit for each. */
static __device__ __forceinline__ unsigned seen_positions(const Shared *shared) {
    static_assert((int)WARP_POSITIONS == 32, "a bit for each");
    const int before = (int)(threadIdx.x / WARP_SIZE) * WARP_POSITIONS, query = lane_of() % TILE_QUERIES;
    unsigned seen = bits_below(shared->visible[query] - before) & ~bits_below(shared->hidden[query] - before);
    for (int step = TILE_QUERIES / 2; step; step /= 2) seen |= __shfl_xor_sync(0xffffffffu, seen, step);
    return seen;
}

/* Queries as A fragments: [dimension / 16][lane][4 words]. */
static __device__ void stage_queries(int head_size, const Shared *shared, unsigned *fragments) {
    const int words = head_size * TILE_QUERIES / 2;
    UNROLL_BY_4 for (int i = (int)threadIdx.x; i < words; i += ATTEND_THREADS) {
        const int lane = i / 4 % WARP_SIZE, word = i % 4;
        const int d = i / (4 * WARP_SIZE) * 16 + lane % 4 * 2 + word / 2 * 8;
        const float *q = shared->query[lane / 4 + word % 2 * 8];
        fragments[i] = q ? (unsigned)half_from_float(q[d]) | (unsigned)half_from_float(q[d + 1]) << 16 : 0;
    }
}

/* The products of 16 dimensions. */
static __device__ __forceinline__ void score_step(const unsigned *queries, int step, const uint2 *keys,
                                                  float (*scores)[4]) {
    const uint4 words = ((const uint4 *)queries)[step * WARP_SIZE + lane_of()];
    const unsigned a[4] = {words.x, words.y, words.z, words.w};
    UNROLL for (int b = 0; b < KEY_BLOCKS; b++) {
        const unsigned key[2] = {keys[b].x, keys[b].y};
        mma_f16_k16(scores[b], a, key, scores[b]);
    }
}

/* Scores of the warp's positions, c registers of each block of 8. Blocks that nobody sees are not read. */
static __device__ __forceinline__ void score_halves(const uint8_t *keys, int head_size, const unsigned *queries,
                                                    unsigned seen, float (*scores)[4]) {
    const int steps = head_size / 16, first = (int)(threadIdx.x / WARP_SIZE) * KEY_BLOCKS;
    const uint2 *from = (const uint2 *)keys + (size_t)first * (size_t)steps * WARP_SIZE + lane_of();
    UNROLL_BY_4 for (int step = 0; step < steps; step++) {
        uint2 k[KEY_BLOCKS];
        UNROLL for (int b = 0; b < KEY_BLOCKS; b++) k[b] =
            seen >> 8 * b & 0xff ? from[(size_t)(b * steps + step) * WARP_SIZE] : make_uint2(0, 0);
        score_step(queries, step, k, scores);
    }
}

/* Four codes, times a pair of scales each two: float16 numbers, of a fragment. Codes are exact in it: 1024 + 128 + code
 * is put together as bits. */
static __device__ __forceinline__ uint2 numbers_of(unsigned codes, unsigned first_scales, unsigned second_scales) {
#if defined(BEE_EMULATE)
    const auto number = [&](int i, unsigned scales) {
        const float scale = float_from_half((uint16_t)(scales >> i % 2 * 16));
        return (unsigned)half_from_float((float)(int8_t)(codes >> 8 * i) * scale) << i % 2 * 16;
    };
    return make_uint2(number(0, first_scales) | number(1, first_scales),
                      number(2, second_scales) | number(3, second_scales));
#else
    const unsigned biased = codes ^ 0x80808080u;
    const auto numbers = [](unsigned bits, unsigned scales) {
        const __half2 pair = __hsub2(*(const __half2 *)&bits, __half2half2(__ushort_as_half(0x6480)));
        const __half2 out = __hmul2(pair, *(const __half2 *)&scales);
        return *(const unsigned *)&out;
    };
    return make_uint2(numbers(__byte_perm(biased, 0x64646464u, 0x4140), first_scales),
                      numbers(__byte_perm(biased, 0x64646464u, 0x4342), second_scales));
#endif
}

static __device__ __forceinline__ unsigned twice(unsigned half) { return half | half << 16; }

/* The same of keys in 8 bits, 32 dimensions at a time. */
static __device__ __forceinline__ void score_codes(const uint8_t *keys, int head_size, const unsigned *queries,
                                                   unsigned seen, float (*scores)[4]) {
    static_assert((int)KEY_BLOCKS == 4, "a scale for each block");
    const int warp = (int)(threadIdx.x / WARP_SIZE), lane = lane_of(), block_bytes = 8 * head_size;
    const uint8_t *from = keys + warp * KEY_BLOCKS * block_bytes;
    const uint2 *scales = (const uint2 *)(keys + CACHE_CHUNK * head_size) + (warp * WARP_POSITIONS + lane / 4 * 4) / 4;
    UNROLL_BY_2 for (int first = 0; first < head_size; first += CACHE_BLOCK) {
        const bool whole = first + CACHE_BLOCK <= head_size;
        const uint2 s = scales[first / CACHE_BLOCK * CACHE_CHUNK / 4];
        const unsigned scale[] = {s.x & 0xffff, s.x >> 16, s.y & 0xffff, s.y >> 16};
        uint2 codes[KEY_BLOCKS], k[KEY_BLOCKS];
        UNROLL for (int b = 0; b < KEY_BLOCKS; b++) {
            const uint8_t *at = from + b * block_bytes + first * 8;
            codes[b] = make_uint2(0, 0);
            if (!(seen >> 8 * b & 0xff)) continue;
            if (whole)
                codes[b] = ((const uint2 *)at)[lane];
            else
                codes[b].x = ((const unsigned *)at)[lane];
        }
        UNROLL for (int b = 0; b < KEY_BLOCKS; b++) k[b] = numbers_of(codes[b].x, twice(scale[b]), twice(scale[b]));
        score_step(queries, first / 16, k, scores);
        if (!whole) return;
        UNROLL for (int b = 0; b < KEY_BLOCKS; b++) k[b] = numbers_of(codes[b].y, twice(scale[b]), twice(scale[b]));
        score_step(queries, first / 16 + 1, k, scores);
    }
}

/* The four lanes that share a row of C, put together. */
static __device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

static __device__ __forceinline__ void cap_scores(float (*scores)[4], float softcap) {
    UNROLL for (int i = 0; i < 4 * KEY_BLOCKS; i++) scores[i / 4][i % 4] = capped(scores[i / 4][i % 4], softcap);
}

/* Hides what a query does not see, be it NaN, and leaves each query's largest score of the warp in shared memory. */
static __device__ __forceinline__ void hide_and_find_top(float (*scores)[4], Shared *shared) {
    const int warp = (int)(threadIdx.x / WARP_SIZE), g = lane_of() / 4, t = lane_of() % 4;
    UNROLL for (int half = 0; half < 2; half++) {
        const int query = g + 8 * half, before = warp * WARP_POSITIONS + 2 * t;
        const int hidden = shared->hidden[query] - before, visible = shared->visible[query] - before;
        float top = -INFINITY;
        UNROLL for (int i = 0; i < 2 * KEY_BLOCKS; i++) {
            float *x = &scores[i / 2][2 * half + i % 2];
            const int position = i / 2 * 8 + i % 2;
            if (position < hidden || position >= visible) *x = -INFINITY;
            top = fmaxf(top, *x);
        }
        top = quad_max(top);
        if (t == 0) shared->top[warp][query] = top;
    }
}

static __device__ __forceinline__ float top_of(const Shared *shared, int query) {
    float top = shared->top[0][query];
    for (int w = 1; w < ATTEND_WARPS; w++) top = fmaxf(top, shared->top[w][query]);
    return top;
}

static __device__ __forceinline__ float sum_of(const Shared *shared, int query) {
    float sum = shared->sum[0][query];
    for (int w = 1; w < ATTEND_WARPS; w++) sum += shared->sum[w][query];
    return sum;
}

/* Scores become weights, as the A fragments of the warp's positions. Summed up as they are used, after their rounding:
 * what is divided by the sum is then weighted by one in all. A NaN among the scores is dropped from the maximum, but
 * not from the sum. */
static __device__ __forceinline__ void soften(const float (*scores)[4], Shared *shared, unsigned (*weights)[4]) {
    const int warp = (int)(threadIdx.x / WARP_SIZE), g = lane_of() / 4, t = lane_of() % 4;
    UNROLL for (int half = 0; half < 2; half++) {
        const float top = top_of(shared, g + 8 * half);
        float sum = 0;
        UNROLL for (int b = 0; b < KEY_BLOCKS; b++) {
            const uint16_t first = half_from_float(expf(scores[b][2 * half] - top));
            const uint16_t second = half_from_float(expf(scores[b][2 * half + 1] - top));
            sum += float_from_half(first);
            sum += float_from_half(second);
            weights[b / 2][b % 2 * 2 + half] = (unsigned)first | (unsigned)second << 16;
        }
        sum = quad_sum(sum);
        if (t == 0) shared->sum[warp][g + 8 * half] = sum;
    }
}

/* SLICE dimensions of the warp's positions, on their way into fragments. */
typedef struct HalfSlice {
    uint2 words[VALUE_BLOCKS][SLICE_BLOCKS];
} HalfSlice;

typedef struct CodeSlice {
    uint2 codes[SLICE_BLOCKS];
    uint4 scales[SLICE / CACHE_BLOCK];
} CodeSlice;

/* A pair of float16 where the lower two bits of `seen` are set, zero in place of the others. */
static __device__ __forceinline__ unsigned keep_pair(unsigned pair, unsigned seen) {
    return pair & ((seen & 1 ? 0xffffu : 0) | (seen & 2 ? 0xffff0000u : 0));
}

/* From `block` of 8 dimensions on. Positions that nobody sees may hold anything. */
static __device__ __forceinline__ void load_values(const uint8_t *values, int head_size, int block, unsigned seen,
                                                   HalfSlice *slice) {
    const int blocks = head_size / 8, first = (int)(threadIdx.x / WARP_SIZE) * VALUE_BLOCKS;
    const uint2 *from =
        (const uint2 *)values + ((size_t)first * (size_t)blocks + (size_t)block) * WARP_SIZE + lane_of();
    UNROLL for (int p = 0; p < VALUE_BLOCKS; p++) {
        const unsigned all = seen >> 16 * p & 0xffff, mine = all >> lane_of() % 4 * 2;
        UNROLL for (int d = 0; d < SLICE_BLOCKS; d++) {
            uint2 pair = make_uint2(0, 0);
            if (all && block + d < blocks) pair = from[(size_t)(p * blocks + d) * WARP_SIZE];
            slice->words[p][d] = make_uint2(keep_pair(pair.x, mine), keep_pair(pair.y, mine >> 8));
        }
    }
}

static __device__ __forceinline__ void load_values(const uint8_t *values, int head_size, int block, unsigned seen,
                                                   CodeSlice *slice) {
    const int blocks = head_size / 8, warp = (int)(threadIdx.x / WARP_SIZE);
    const uint2 *from = (const uint2 *)values + ((size_t)warp * (size_t)blocks + (size_t)block) * WARP_SIZE + lane_of();
    const uint4 *scales = (const uint4 *)(values + CACHE_CHUNK * head_size) + warp * 4 + lane_of() % 4;
    UNROLL for (int d = 0; d < SLICE_BLOCKS; d++) slice->codes[d] =
        seen && block + d < blocks ? from[(size_t)d * WARP_SIZE] : make_uint2(0, 0);
    UNROLL for (int i = 0; i < SLICE / CACHE_BLOCK; i++) {
        const int first = block + i * CACHE_BLOCK / 8;
        slice->scales[i] = make_uint4(0, 0, 0, 0);
        if (seen && first < blocks) slice->scales[i] = scales[first * 8 / CACHE_BLOCK * CACHE_CHUNK / 8];
    }
}

/* The fragment of 16 positions and 8 dimensions. */
static __device__ __forceinline__ uint2 fragment_of(const HalfSlice *slice, int p, int d, unsigned) {
    return slice->words[p][d];
}

static __device__ __forceinline__ uint2 fragment_of(const CodeSlice *slice, int p, int d, unsigned seen) {
    const unsigned mine = seen >> (16 * p + lane_of() % 4 * 2);
    const uint4 scales = slice->scales[d * 8 / CACHE_BLOCK];
    return numbers_of(p ? slice->codes[d].y : slice->codes[d].x, keep_pair(p ? scales.z : scales.x, mine),
                      keep_pair(p ? scales.w : scales.y, mine >> 8));
}

/* The warp's share of the weighted values, into its part of shared memory. */
template <class Slice>
static __device__ __forceinline__ void weigh(const Slice *slice, const unsigned (*weights)[4], unsigned seen,
                                             float *part) {
    const int g = lane_of() / 4, t = lane_of() % 4;
    UNROLL for (int d = 0; d < SLICE_BLOCKS; d++) {
        float c[4] = {0, 0, 0, 0};
        UNROLL for (int p = 0; p < VALUE_BLOCKS; p++) {
            const uint2 words = fragment_of(slice, p, d, seen);
            const unsigned b[2] = {words.x, words.y};
            mma_f16_k16(c, weights[p], b, c);
        }
        float *out = part + g * SLICE_STRIDE + d * 8 + 2 * t;
        *(float2 *)out = make_float2(c[0], c[1]);
        *(float2 *)(out + 8 * SLICE_STRIDE) = make_float2(c[2], c[3]);
    }
}

/* The warps' shares put together, in the order of the warps: the order of the positions. */
static __device__ void store_values(const AttendTask &task, const Shared *shared, const float *parts, int first) {
    const int part = TILE_QUERIES * SLICE_STRIDE, size = task.heads.head_size;
    for (int i = (int)threadIdx.x; i < TILE_QUERIES * SLICE; i += ATTEND_THREADS) {
        const int query = i / SLICE, d = i % SLICE;
        if (!shared->visible[query] || first + d >= size) continue;
        const float *x = parts + query * SLICE_STRIDE + d;
        float sum = x[0];
        UNROLL for (int w = 1; w < ATTEND_WARPS; w++) sum += x[w * part];
        task.partials.values[shared->partial[query] * (size_t)size + (size_t)(first + d)] = sum;
    }
}

static __device__ void store_totals(const AttendTask &task, const Shared *shared) {
    const int query = (int)threadIdx.x;
    if (query < TILE_QUERIES && shared->visible[query])
        task.partials.totals[shared->partial[query]] = make_float2(top_of(shared, query), sum_of(shared, query));
}

/* The queries of the tile that have a row's cache and chunk. */
template <bool CODES>
static __device__ void attend_cache(const AttendTask &task, int in_tile, int first_row, Shared *shared, void *turns) {
    const int size = task.heads.head_size, warp = (int)(threadIdx.x / WARP_SIZE);
    const DeviceRow &row = task.rows[first_row + in_tile];
    const size_t chunk = chunk_at(task.heads, row, (int)blockIdx.y, shared->chunk[in_tile]);
    const uint8_t *const keys = row.cache.keys[task.heads.region] + chunk;
    const uint8_t *const values = row.cache.values[task.heads.region] + chunk;
    float *const parts = (float *)turns;
    __syncthreads(); /* the one before this is done with the shared memory */
    find_queries(task, in_tile, first_row, shared);
    __syncthreads();
    if (!sees_any(shared)) return;
    const unsigned seen = seen_positions(shared);
    stage_queries(size, shared, (unsigned *)turns);
    __syncthreads();

    float scores[KEY_BLOCKS][4];
    unsigned weights[VALUE_BLOCKS][4];
    typename std::conditional<CODES, CodeSlice, HalfSlice>::type slice;
    UNROLL for (int b = 0; b < KEY_BLOCKS; b++) scores[b][0] = scores[b][1] = scores[b][2] = scores[b][3] = 0;
    (CODES ? score_codes : score_halves)(keys, size, (const unsigned *)turns, seen, scores);
    load_values(values, size, 0, seen, &slice); /* under way during what follows */
    if (task.heads.softcap) cap_scores(scores, task.heads.softcap);
    hide_and_find_top(scores, shared);
    __syncthreads(); /* also: nobody reads the queries any more */
    soften(scores, shared, weights);
    for (int first = 0; first < size; first += SLICE) {
        weigh(&slice, weights, seen, parts + warp * TILE_QUERIES * SLICE_STRIDE);
        if (first + SLICE < size) load_values(values, size, (first + SLICE) / 8, seen, &slice);
        __syncthreads();
        if (first == 0) store_totals(task, shared);
        store_values(task, shared, parts, first);
        __syncthreads();
    }
}

/* Grid: tiles, key heads, chunks: blocks of the same keys and values follow each other, and find them in the cache.
 * Rows of one sequence stand side by side, so that most tiles have one cache, and one chunk of it; a tile is gone
 * through once for each. */
template <bool CODES> static __global__ void __launch_bounds__(ATTEND_THREADS, 4) attend_chunks(AttendTask task) {
    SHARED_MEMORY(turns);
    __shared__ Shared shared;
    begin_grid();
    const int first = (int)blockIdx.x / task.tiling.parts * task.tiling.rows;
    const int end = at_most(first + task.tiling.rows, task.n);
    find_rows(task, first, end, &shared);
    __syncthreads();
    for (int i = 0; i < end - first; i++) {
        bool done = false;
        for (int before = 0; before < i; before++)
            done = done || (shared.keys[before] == shared.keys[i] && shared.chunk[before] == shared.chunk[i]);
        if (!done) attend_cache<CODES>(task, i, first, &shared, turns);
    }
}

static size_t attend_shared_bytes(int head_size) {
    const size_t queries = (size_t)(TILE_QUERIES * 2) * (size_t)head_size;
    const size_t parts = ATTEND_WARPS * TILE_QUERIES * SLICE_STRIDE * sizeof(float);
    return queries > parts ? queries : parts;
}

/* ---- chunks put together ------------------------------------------------------------------------- */

enum { FOLD_WARPS = 4, FOLD_THREADS = FOLD_WARPS * WARP_SIZE };

/* One dimension of a head's result, from the partial results of chunks [first, end), of which there is room for n from
 * `at` on. A maximum is the same in any order. A sink is a score without a value. */
static __device__ float fold(const Partials &partials, size_t at, int first, int end, int n, int head_size, int d,
                             const float *sink) {
    const float2 *totals = partials.totals + at;
    const float *values = partials.values + at * (size_t)head_size + (size_t)d;
    float top = sink ? *sink : -INFINITY, sum = 0, value = 0;
    int place = first % n;
    UNROLL_BY_4 for (int c = first; c < end; c++) {
        top = fmaxf(top, totals[place].x);
        place = place + 1 < n ? place + 1 : 0;
    }
    place = first % n;
    UNROLL_BY_4 for (int c = first; c < end; c++) {
        const float2 total = totals[place];
        const float factor = expf(total.x - top);
        sum = fused(total.y, factor, sum);
        value = fused(values[(size_t)place * (size_t)head_size], factor, value);
        place = place + 1 < n ? place + 1 : 0;
    }
    return value * (1.0f / (sink ? sum + expf(*sink - top) : sum));
}

/* A warp per row and group of 32 columns, which may lie in two heads. */
static __global__ void __launch_bounds__(FOLD_THREADS)
    fold_chunks(DeviceHeads heads, const DeviceRow *rows, int n_chunks, Partials partials, const float *gates,
                size_t gate_stride, DeviceOperand out) {
    begin_grid();
    const int row = (int)blockIdx.y, group = (int)(blockIdx.x * FOLD_WARPS + threadIdx.x / WARP_SIZE);
    if (group >= out.n_groups) return;
    const int column = group * GROUP + lane_of(), head = column / heads.head_size, d = column % heads.head_size;
    const int first = first_visible(heads, rows[row]) / CACHE_CHUNK;
    const int end = (rows[row].n_visible + CACHE_CHUNK - 1) / CACHE_CHUNK;
    float x = 0;
    if (head < heads.n_head && rows[row].position >= 0)
        x = fold(partials, ((size_t)row * (size_t)heads.n_head + (size_t)head) * (size_t)n_chunks, first, end, n_chunks,
                 heads.head_size, d, heads.sinks ? heads.sinks + head : nullptr);
    if (gates && head < heads.n_head)
        x = gated(ACTIVATION_LOGISTIC, gates[(size_t)row * gate_stride + (size_t)column], x);
    store_group(&out, row, group, x);
}

void queue_attend(cudaStream_t stream, const DeviceHeads *heads, const DeviceRow *rows, int n, int n_chunks,
                  const float *q, size_t q_stride, const float *gates, size_t gate_stride, float *scratch,
                  const DeviceOperand *out) {
    Partials partials;
    partials.totals = (float2 *)scratch;
    partials.values = scratch + 2 * (size_t)n * (size_t)heads->n_head * (size_t)n_chunks;
    AttendTask task = {*heads, tiling_of(heads), n, rows, q, q_stride, partials};
    const int tiles = (n + task.tiling.rows - 1) / task.tiling.rows * task.tiling.parts;
    const size_t shared = attend_shared_bytes(heads->head_size);
    launch(stream, dim3((unsigned)tiles, (unsigned)heads->n_head_kv, (unsigned)n_chunks), dim3(ATTEND_THREADS), shared,
           heads->kv_type == BEE_KV_Q8_0 ? attend_chunks<true> : attend_chunks<false>, task);
    launch(stream, dim3((unsigned)((out->n_groups + FOLD_WARPS - 1) / FOLD_WARPS), (unsigned)n), dim3(FOLD_THREADS), 0,
           fold_chunks, *heads, rows, n_chunks, partials, gates, gate_stride, *out);
}
