/* Products of weights and operands with the matrix instructions.
 *
 * A block of 4 warps computes 64 weight rows, a tile of 16 for each warp, times 8, 16 or 64 tokens: what it reads of
 * the weight lies in one piece per tile, and 64 rows are enough that the tokens' part of the traffic stays small. Up to
 * 64 tokens the weights are read once. Beyond that blocks of the same rows follow each other (grid.x: tokens), so that
 * all but the first find the weights in the cache.
 * Weights and activations come through a ring in shared memory, a stage of 64 to 256 columns in each slot: while one is
 * worked on, the copies of the following ones are under way. Up to 16 tokens, when all the time goes into waiting for
 * the weights, there are 2 or 3 slots of 10 to 25 KiB, so that two blocks or more share a processor; for 64 tokens 2.
 *
 * Columns are split into parts where a weight has few rows (parts_of). The parts' sums go through memory; the block
 * that comes last adds them up in their order.
 *
 * What a number comes to depends on its weight's row and its token only: groups of columns ascending within a part,
 * parts ascending, each step the same instructions whatever the number of tokens; how the columns are split follows
 * from the weight's shape. */
#include "kernels.h"
#include "pointwise.h"

#if defined(BEE_EMULATE)
#define UNROLL
#define UNROLL_BY_ARGUMENT
#else
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_ARGUMENT _Pragma("unroll UNROLLED")
#endif

namespace {

enum {
    BLOCK_WARPS = 4,
    BLOCK_THREADS = BLOCK_WARPS * WARP_SIZE,
    BLOCK_ROWS = BLOCK_WARPS * TILE_ROWS,
    RESULT_STRIDE = BLOCK_ROWS + 4, /* fragments of a warp go to different banks */
    PAIR = 2 * GROUP,
    UNIT_PAIRS = 4, /* parts of the columns are whole units: 256 columns */
    MAX_PRODUCTS = 4,
    FLOAT_TOKENS = 16,   /* of a block where the weight is float32 */
    RESIDENT_BLOCKS = 4, /* of a processor: 128 registers a thread; without it some are spilled to have more blocks */
    RESIDENT_LARGE = 3,  /* for 64 tokens: 168 registers; shared memory has no place for more on most processors */
    /* Shared memory of a block, so that two of them share a processor: most have 100 KiB, of which each block costs one
     * more. */
    MOST_SHARED = 100 * 1024 / 2 - 1024,
};

/* A product as the kernel sees it: one of DeviceProduct, or a gate and up, whose rows a block has 32 of each. */
struct Task {
    const uint8_t *data, *up; /* up: NULL but for a gate */
    float *out, *partials;
    unsigned *tickets;
    size_t stride;
    int rows, n_tiles, n_pairs, n_parts, n_blocks;
    bool add;
    bool activates;        /* an up without a gate: what comes of it is an operand, too */
    Activation activation; /* of a gate, or that */
    const float *bias, *up_bias;
    float scale, up_scale;
};

struct Tasks {
    Task task[MAX_PRODUCTS];
    int n_tasks;
};

/* What a block has to do. */
struct Share {
    Task task;
    int block, part; /* of the task: 64 rows; columns */
    int first_token, n_tokens, max_tokens;
};

__host__ __device__ int smaller(int a, int b) { return a < b ? a : b; }

__host__ __device__ int quotient_up(int a, int b) { return (a + b - 1) / b; }

/* Blocks are numbered through all tasks; the parts of the same rows follow each other. */
template <int TOKENS> __device__ Share share_of_block(const Tasks &tasks, int n) {
    int block = (int)blockIdx.y, index = 0;
    while (index + 1 < tasks.n_tasks && block >= tasks.task[index].n_blocks * tasks.task[index].n_parts) {
        block -= tasks.task[index].n_blocks * tasks.task[index].n_parts;
        index++;
    }
    Share s;
    s.task = tasks.task[index];
    s.block = block / s.task.n_parts;
    s.part = block % s.task.n_parts;
    s.first_token = (int)blockIdx.x * TOKENS;
    s.n_tokens = smaller(n - s.first_token, TOKENS);
    s.max_tokens = TOKENS;
    return s;
}

/* The same of experts' matrices: what differs between them. */
struct ExpertTask {
    Task task; /* of the first expert */
    const int32_t *n_tiles;
    const ExpertTile *tiles;
    size_t bytes, bias_stride;
    const float *scales, *up_scales;
};

/* A tile is a block's tokens; columns are not split: there are blocks enough, and it must not depend on how many. */
__device__ Share share_of_tile(const ExpertTask &experts, int max_tokens) {
    const ExpertTile tile = experts.tiles[blockIdx.x];
    const size_t expert = (size_t)tile.expert;
    Share s;
    s.task = experts.task;
    s.task.data += expert * experts.bytes;
    if (s.task.up) s.task.up += expert * experts.bytes;
    if (s.task.bias) s.task.bias += expert * experts.bias_stride;
    if (s.task.up_bias) s.task.up_bias += expert * experts.bias_stride;
    if (experts.scales) s.task.scale = experts.scales[expert];
    if (experts.up_scales) s.task.up_scale = experts.up_scales[expert];
    s.block = (int)blockIdx.y;
    s.part = 0;
    s.first_token = tile.first;
    s.n_tokens = tile.n;
    s.max_tokens = max_tokens;
    return s;
}

/* The first pair of a part; that of the part behind the last is where the columns end. */
__device__ int part_begin(const Task &task, int part) {
    const int n_units = quotient_up(task.n_pairs, UNIT_PAIRS);
    return smaller(UNIT_PAIRS * (int)((long long)n_units * part / task.n_parts), task.n_pairs);
}

/* The warp's tile: NULL where the weight has no more. Of a gate's task the first two warps have gate's rows, the others
 * the same rows of up. */
__device__ const uint8_t *tile_data(const Share &s, size_t bytes) {
    const int warp = (int)threadIdx.x / WARP_SIZE;
    const int tile = s.task.up ? s.block * 2 + warp % 2 : s.block * BLOCK_WARPS + warp;
    if (tile >= s.task.n_tiles) return nullptr;
    return (s.task.up && warp >= 2 ? s.task.up : s.task.data) + (size_t)tile * bytes;
}

/* ---- what follows a block's sums ------------------------------------------------------------------ */

/* results[token][row of the block] are a part's sums. Where there are several parts they are left in memory, and the
 * block that comes last gets the sums of all; the others are done (false). */
__device__ bool sum_parts(const Share &s, float *results, int n) {
    int *const is_last = (int *)(results + s.max_tokens * RESULT_STRIDE);
    const int thread = (int)threadIdx.x, count = s.n_tokens * BLOCK_ROWS;
    const size_t part_floats = (size_t)n * BLOCK_ROWS;
    float *const all =
        s.task.partials + (size_t)(s.block * s.task.n_parts) * part_floats + (size_t)s.first_token * BLOCK_ROWS;
    for (int i = thread; i < count; i += BLOCK_THREADS)
        all[(size_t)s.part * part_floats + (size_t)i] = results[i / BLOCK_ROWS * RESULT_STRIDE + i % BLOCK_ROWS];
    __syncthreads();
    unsigned *const ticket = s.task.tickets + s.block * (int)gridDim.x + (int)blockIdx.x;
    if (thread == 0) { /* for all, who met it: its fences order what they wrote, and what they will read */
        __threadfence();
        *is_last = atomicAdd(ticket, 1u) == (unsigned)s.task.n_parts - 1;
        __threadfence();
    }
    __syncthreads();
    if (!*is_last) return false;
    const volatile float *const written = all; /* by other processors: not from this one's cache */
    for (int i = thread; i < count; i += BLOCK_THREADS) {
        float sum = written[i];
        for (int part = 1; part < s.task.n_parts; part++) sum += written[(size_t)part * part_floats + (size_t)i];
        results[i / BLOCK_ROWS * RESULT_STRIDE + i % BLOCK_ROWS] = sum;
    }
    if (thread == 0) *ticket = 0;
    __syncthreads();
    return true;
}

/* A row of the weight: its product, and what belongs to it. */
__device__ float with_bias(float product, float scale, const float *bias, int row) {
    return bias ? product * scale + bias[row] : product * scale;
}

__device__ void store_rows(const Share &s, const float *results) {
    for (int i = (int)threadIdx.x; i < s.n_tokens * BLOCK_ROWS; i += BLOCK_THREADS) {
        const int token = i / BLOCK_ROWS, in_block = i % BLOCK_ROWS, row = s.block * BLOCK_ROWS + in_block;
        if (row >= s.task.rows) continue;
        float *const out = s.task.out + (size_t)(s.first_token + token) * s.task.stride + (size_t)row;
        const float result = with_bias(results[token * RESULT_STRIDE + in_block], s.task.scale, s.task.bias, row);
        *out = s.task.add ? *out + result : result;
    }
}

/* The block's 32 rows of gate and of up are one group of the operand. */
__device__ void store_gated(const Share &s, const float *results, const DeviceOperand &out) {
    const int lane = lane_of();
    for (int token = (int)threadIdx.x / WARP_SIZE; token < s.n_tokens; token += BLOCK_WARPS) {
        const float *const both = results + token * RESULT_STRIDE;
        const int row = s.block * GROUP + lane;
        float x = 0;
        if (row < s.task.rows)
            x = gated(s.task.activation, with_bias(both[lane], s.task.scale, s.task.bias, row),
                      with_bias(both[GROUP + lane], s.task.up_scale, s.task.up_bias, row));
        store_group(&out, s.first_token + token, s.block, x);
    }
}

/* The block's 64 rows are two groups of the operand. */
__device__ void store_activated(const Share &s, const float *results, const DeviceOperand &out) {
    for (int job = (int)threadIdx.x / WARP_SIZE; job < 2 * s.n_tokens; job += BLOCK_WARPS) {
        const int token = job / 2, in_block = job % 2 * GROUP + lane_of(), row = s.block * BLOCK_ROWS + in_block;
        float x = 0;
        if (row < s.task.rows)
            x = activated(s.task.activation,
                          with_bias(results[token * RESULT_STRIDE + in_block], s.task.scale, s.task.bias, row));
        store_group(&out, s.first_token + token, s.block * 2 + job % 2, x);
    }
}

__device__ void finish(const Share &s, float *results, const DeviceOperand &out, int n) {
    __syncthreads();
    if (s.task.n_parts > 1 && !sum_parts(s, results, n)) return;
    if (s.task.up)
        store_gated(s, results, out);
    else if (s.task.activates)
        store_activated(s, results, out);
    else
        store_rows(s, results);
}

/* ---- a stage ------------------------------------------------------------------------------------- */

/* How a weight's type is computed with TILES times 8 tokens. */
template <TensorType TYPE, int TILES> struct Form {
    static constexpr WeightTraits traits = traits_of(TYPE);
    static constexpr bool blocks = keeps_blocks(TYPE); /* unpacked from the file's blocks */
    static constexpr bool k_type = !blocks && (traits.flags & SUPER) != 0;
    static constexpr bool halves = TYPE == TYPE_F16 || TYPE == TYPE_BF16;
    static constexpr bool minimum = (traits.flags & MINIMUM) != 0;
    static constexpr int bits = halves ? 16 : traits.bits;
    /* Codes of types without a minimum are computed at the top of their bytes, as this power of two times themselves:
     * so their sign needs no instruction. */
    static constexpr float code_unit = minimum || halves || blocks ? 1.0f : 1.0f / (1 << (bits < 8 ? 8 - bits : 0));
    static constexpr int span_pairs = traits.columns > 64 ? traits.columns / 64 : 1;
    /* Types that are twice as large get stages half as wide, and so do all where 64 tokens take the place. */
    static constexpr int stage_pairs = (halves || (bits == 8 && !blocks) ? 2 : 4) / (TILES == 8 ? 2 : 1);
    static constexpr int stage_groups = 2 * stage_pairs;
    /* A K type's spans then last for two stages, and have two slots of their own. */
    static constexpr int span_stages = stage_pairs < span_pairs ? span_pairs / stage_pairs : 1;
    static constexpr bool spans_apart = span_stages > 1;
    /* Pairs of a stage, in a straight line: a span's scales are loaded once, one pair's loads are under way during the
     * other's products. Of 16-bit types, and of most for 64 tokens, one pair is line enough, and registers are few. */
    static constexpr int unrolled = blocks ? 1 : k_type ? stage_pairs : TILES == 8 || halves ? 1 : 2;
    static constexpr int group_bytes = halves ? 1024 : 256; /* of 8 tokens: codes, or halves */
    static constexpr int group_scale_bytes = halves ? 32 : 64;
    static constexpr int tile_bytes = stage_pairs * span_stages / span_pairs * (int)span_bytes(TYPE);
    static constexpr int slot_bytes =
        (spans_apart ? 0 : BLOCK_WARPS * tile_bytes) + TILES * stage_groups * (group_bytes + group_scale_bytes);
    static constexpr int apart_bytes = spans_apart ? 2 * BLOCK_WARPS * tile_bytes : 0;
    /* Three slots of the largest would leave room for one block. */
    static constexpr int slots = TILES == 8 || 3 * slot_bytes + apart_bytes > MOST_SHARED ? 2 : 3;
};

/* Where things are in a slot: the four tiles' spans, the tokens' codes, their scales. Spans that last for two stages
 * lie behind all slots instead. */
template <TensorType TYPE, int TILES> struct Slot {
    typedef Form<TYPE, TILES> F;
    static constexpr __host__ __device__ int tile_bytes() { return F::tile_bytes; }
    static constexpr __host__ __device__ int codes_at(int tile) {
        return (F::spans_apart ? 0 : BLOCK_WARPS * tile_bytes()) + tile * F::stage_groups * F::group_bytes;
    }
    static constexpr __host__ __device__ int scales_at(int tile) {
        return codes_at(TILES) + tile * F::stage_groups * F::group_scale_bytes;
    }
    static constexpr __host__ __device__ int bytes() { return scales_at(TILES); }
    /* A stage's spans that lie apart, from the ring's beginning. */
    static __host__ __device__ int spans_at(int stage) {
        return F::slots * bytes() + (int)((unsigned)stage / F::span_stages % 2) * BLOCK_WARPS * tile_bytes();
    }
};

/* What a block's results take, and behind them whether it came last. */
constexpr int results_bytes(int tokens) { return tokens * RESULT_STRIDE * (int)sizeof(float) + 16; }

/* Shared memory of a block: the ring, in which the results will lie. */
template <TensorType TYPE, int TILES> constexpr int ring_bytes() {
    typedef Form<TYPE, TILES> F;
    typedef Slot<TYPE, TILES> S;
    const int ring = F::slots * S::bytes() + F::apart_bytes;
    return ring > results_bytes(8 * TILES) ? ring : results_bytes(8 * TILES);
}

template <TensorType TYPE> __device__ const uint8_t *operand_codes(const DeviceOperand &in) {
    return TYPE == TYPE_F16    ? (const uint8_t *)in.f16
           : TYPE == TYPE_BF16 ? (const uint8_t *)in.bf16
                               : (const uint8_t *)in.codes;
}

template <TensorType TYPE> __device__ const uint8_t *operand_scales(const DeviceOperand &in) {
    return TYPE == TYPE_F16    ? (const uint8_t *)in.f16_factors
           : TYPE == TYPE_BF16 ? (const uint8_t *)in.bf16_factors
                               : (const uint8_t *)in.scales;
}

/* Tokens are copied by teams of threads, a tile of 8 tokens by each, or two by each warp where there are 8. */
template <int TILES> struct Team {
    static constexpr int threads = TILES < BLOCK_WARPS ? BLOCK_THREADS / TILES : WARP_SIZE;
    static constexpr int n_teams = BLOCK_THREADS / threads;
    static __device__ int index() { return (int)threadIdx.x / threads; }
    static __device__ int member() { return (int)threadIdx.x % threads; }
};

/* Where a thread's first 16 bytes of the next stage are; its others lie at constant distances. */
struct Sources {
    const uint8_t *weight, *codes, *scales; /* weight: NULL where the warp has no tile */
};

template <TensorType TYPE, int TILES>
__device__ Sources first_sources(const uint8_t *weight_tile, const DeviceOperand &in, int first_tile, int first_pair) {
    typedef Form<TYPE, TILES> F;
    typedef Team<TILES> T;
    const size_t group = operand_group(&in, 8 * (first_tile + T::index()), 2 * first_pair);
    const size_t span = (size_t)(first_pair / F::span_pairs) * span_bytes(TYPE);
    Sources s;
    s.weight = weight_tile ? weight_tile + span + lane_of() * 16 : nullptr;
    s.codes = operand_codes<TYPE>(in) + group * F::group_bytes + T::member() * 16;
    s.scales = operand_scales<TYPE>(in) + group * F::group_scale_bytes + T::member() * 16;
    return s;
}

/* The thread's part of what `n_threads` copy, the first `bytes` of `most`: 16 from everyone in turn. A straight line: a
 * copy costs one instruction, and a test where not everyone has one. */
__device__ __forceinline__ void copy_piece(unsigned char *to, const uint8_t *from, int most, int bytes, int thread,
                                           int n_threads) {
    const int left = bytes - thread * 16;
    UNROLL for (int at = 0; at < most; at += n_threads * 16) {
        const bool everyone = bytes == most && at + n_threads * 16 <= most;
        if (everyone || at < left) copy_async(to + thread * 16 + at, from + at);
    }
}

/* A stage of the weight into its slot, and on to the next stage; spans that last for two stages with the first. */
template <TensorType TYPE, int TILES>
__device__ __forceinline__ void fill_weights(unsigned char *ring, unsigned char *slot, int stage, Sources *from,
                                             int n_pairs) {
    typedef Form<TYPE, TILES> F;
    typedef Slot<TYPE, TILES> S;
    if (!from->weight || (unsigned)stage % F::span_stages) return;
    unsigned char *const spans = F::spans_apart ? ring + S::spans_at(stage) : slot;
    copy_piece(spans + (int)threadIdx.x / WARP_SIZE * S::tile_bytes(), from->weight, S::tile_bytes(),
               n_pairs * F::span_stages / F::span_pairs * (int)span_bytes(TYPE), lane_of(), WARP_SIZE);
    from->weight += S::tile_bytes();
}

/* The same of the tokens. Tiles that the pass does not have are not copied: they may lie outside of the operand. */
template <TensorType TYPE, int TILES>
__device__ __forceinline__ void fill_tokens(unsigned char *slot, Sources *from, const DeviceOperand &in, int n_tiles,
                                            int n_pairs) {
    typedef Form<TYPE, TILES> F;
    typedef Slot<TYPE, TILES> S;
    typedef Team<TILES> T;
    constexpr int codes = F::stage_groups * F::group_bytes, scales = F::stage_groups * F::group_scale_bytes;
    UNROLL for (int i = 0; i < TILES / T::n_teams; i++) {
        const int tile = T::index() + i * T::n_teams;
        if (TILES > 2 && tile >= n_tiles) break;
        const size_t groups = (size_t)(i * T::n_teams) * (size_t)in.n_groups;
        copy_piece(slot + S::codes_at(tile), from->codes + groups * F::group_bytes, codes, 2 * n_pairs * F::group_bytes,
                   T::member(), T::threads);
        copy_piece(slot + S::scales_at(tile), from->scales + groups * F::group_scale_bytes, scales,
                   2 * n_pairs * F::group_scale_bytes, T::member(), T::threads);
    }
    from->codes += codes;
    from->scales += scales;
}

/* ---- codes and scales of a pair --------------------------------------------------------------------- */

/* Of the file's blocks: the one of a row of the tile that has the span's column. */
template <TensorType TYPE>
__device__ __forceinline__ const uint8_t *block_of(const unsigned char *span, int row, int column) {
    constexpr WeightTraits t = traits_of(TYPE);
    return span + row * span_row_bytes(TYPE) + column / t.columns * t.bytes;
}

template <TensorType TYPE>
__device__ __forceinline__ void unpack_blocks(const unsigned char *span, int pair, unsigned a[2][4]) {
    constexpr WeightTraits t = traits_of(TYPE);
    const int lane = lane_of();
    UNROLL for (int i = 0; i < 8; i++) {
        const int j = i % 4, column = PAIR * pair + GROUP * (i / 4) + 4 * (lane % 4) + 16 * (j / 2);
        const uint8_t *const block = block_of<TYPE>(span, lane / 4 + 8 * (j % 2), column);
        a[i / 4][j] = bytes_less(block_codes(TYPE, block, column % t.columns), t.zero);
    }
}

/* The registers of both groups of a pair. Types with a minimum: the codes; others: at the top of their bytes. */
template <TensorType TYPE>
__device__ __forceinline__ void unpack_codes(const unsigned char *span, int pair, unsigned a[2][4]) {
    typedef Form<TYPE, 1> F;
    if constexpr (F::blocks) {
        unpack_blocks<TYPE>(span, pair, a);
        return;
    }
    const int place = pair * WARP_SIZE + lane_of();
    if constexpr (F::bits == 8) {
        const uint4 even = ((const uint4 *)span)[2 * place], odd = ((const uint4 *)span)[2 * place + 1];
        a[0][0] = even.x, a[0][1] = even.y, a[0][2] = even.z, a[0][3] = even.w;
        a[1][0] = odd.x, a[1][1] = odd.y, a[1][2] = odd.z, a[1][3] = odd.w;
        return;
    }
    const uint4 nibbles = ((const uint4 *)span)[place];
    const unsigned *const planes = (const unsigned *)(span + F::span_pairs * WARP_SIZE * 16);
    constexpr int up = F::minimum ? 0 : 8 - F::bits; /* how far the nibble is moved */
    constexpr unsigned mask = 0x0f0f0f0fu << up;
    const unsigned words[4] = {nibbles.x, nibbles.y, nibbles.z, nibbles.w};
    UNROLL for (int j = 0; j < 4; j++) {
        a[0][j] = words[j] << up & mask;
        a[1][j] = words[j] >> 4 << up & mask;
    }
    if constexpr (F::bits == 5) {
        const unsigned plane = planes[place];
        constexpr int to = up + 4;
        UNROLL for (int r = 0; r < 8; r++) {
            const unsigned moved = r < to ? plane << ((to - r) & 31) : plane >> ((r - to) & 31);
            a[r / 4][r % 4] |= moved & 0x01010101u << to;
        }
    } else if constexpr (F::bits == 6) {
        const uint2 plane = ((const uint2 *)planes)[place];
        UNROLL for (int r = 0; r < 8; r++) {
            a[r / 4][r % 4] |= (r < 4 ? plane.x : plane.y) << (6 - r % 4 * 2) & 0xc0c0c0c0u;
        }
    }
}

/* Of the lane's rows g and g + 8, for each group, or, HALVES, for each half of a group. */
struct PairScales {
    float scale[2][4], minimum[2][4];
};

__device__ __forceinline__ float low_half(unsigned bits) { return float_from_half((uint16_t)bits); }

__device__ __forceinline__ float high_half(unsigned bits) { return float_from_half((uint16_t)(bits >> 16)); }

/* A K type's products d * scale are exact. */
template <TensorType TYPE>
__device__ __forceinline__ void unpack_scales(const unsigned char *span, int pair, PairScales *out) {
    typedef Form<TYPE, 1> F;
    const unsigned *const words = (const unsigned *)(span + F::span_pairs * WARP_SIZE * 4 * F::bits);
    UNROLL for (int i = 0; i < 2; i++) {
        const int row = lane_of() / 4 + 8 * i;
        if constexpr (F::blocks) {
            constexpr int n = F::traits.flags & HALVES ? 4 : 2;
            UNROLL for (int j = 0; j < n; j++) {
                const int column = PAIR * pair + PAIR / n * j;
                const BlockScale s = block_scale(TYPE, block_of<TYPE>(span, row, column), column % F::traits.columns);
                out->scale[i][j] = scale_of(F::traits, s.scale) * (float)s.small;
                if (F::minimum) out->minimum[i][j] = half_value(s.minimum) * (float)s.small_minimum;
            }
        } else if constexpr (TYPE == TYPE_Q6_K) {
            const float d = float_from_half(((const uint16_t *)(words + 4 * TILE_ROWS))[row]);
            const unsigned small = words[pair * TILE_ROWS + row];
            UNROLL for (int j = 0; j < 4; j++) out->scale[i][j] = d * (float)(int8_t)(small >> 8 * j);
        } else if constexpr (F::k_type) {
            const int at = 24 * pair, word = at / 32; /* bits that pair 3 takes end in word 2 */
            const unsigned small = __funnelshift_r(
                words[word * TILE_ROWS + row], words[(word < 2 ? word + 1 : 2) * TILE_ROWS + row], (unsigned)at % 32);
            const unsigned both = words[3 * TILE_ROWS + row];
            const float d = low_half(both), d_minimum = high_half(both);
            UNROLL for (int group = 0; group < 2; group++) {
                out->scale[i][group] = d * (float)(small >> 12 * group & 63);
                out->minimum[i][group] = -(d_minimum * (float)(small >> (12 * group + 6) & 63));
            }
        } else if constexpr (F::minimum) {
            const uint2 both = ((const uint2 *)words)[row];
            out->scale[i][0] = low_half(both.x), out->minimum[i][0] = high_half(both.x);
            out->scale[i][1] = low_half(both.y), out->minimum[i][1] = high_half(both.y);
        } else {
            out->scale[i][0] = low_half(words[row]), out->scale[i][1] = high_half(words[row]);
        }
    }
}

/* ---- sums ---------------------------------------------------------------------------------------- */

/* 1.5 * 2^23, as a float's bits and as a float. An integer s, |s| < 2^22, added to the bits gives those of the float
 * 1.5 * 2^23 + s: the products start from there, and no instruction has to turn their sum into a float. */
constexpr int SUM_BASE_BITS = 0x4b400000;
constexpr float SUM_BASE = 12582912.0f;

/* Adds what a group, or half of one, comes to: c are sums of products of codes. */
__device__ __forceinline__ void add_scaled(float *sums, const int *c, const float *scale, const float *token_scale) {
    UNROLL for (int e = 0; e < 4; e++) {
        sums[e] = fused(__int_as_float(c[e]) - SUM_BASE, scale[e / 2] * token_scale[e % 2], sums[e]);
    }
}

template <TensorType TYPE, int TILES>
__device__ __forceinline__ void add_pair(const unsigned char *slot, const unsigned char *span, int pair, int in_stage,
                                         int n_tiles, float sums[TILES][4]) {
    typedef Slot<TYPE, TILES> S;
    constexpr bool minimum = Form<TYPE, TILES>::minimum;
    constexpr bool halves = (Form<TYPE, TILES>::traits.flags & HALVES) != 0;
    const int base[4] = {SUM_BASE_BITS, SUM_BASE_BITS, SUM_BASE_BITS, SUM_BASE_BITS};
    const int lane = lane_of();
    unsigned a[2][4];
    PairScales scales;
    unpack_codes<TYPE>(span, pair, a);
    unpack_scales<TYPE>(span, pair, &scales);
    UNROLL for (int tile = 0; tile < TILES; tile++) {
        if (TILES > 2 && tile >= n_tiles) break;
        UNROLL for (int group = 0; group < 2; group++) {
            const int place = 2 * in_stage + group;
            const uint2 codes = ((const uint2 *)(slot + S::codes_at(tile)))[place * WARP_SIZE + lane];
            /* scale and scale * (sum of codes) of the tokens 2 t and 2 t + 1 */
            const float4 token = ((const float4 *)(slot + S::scales_at(tile)))[place * 4 + lane % 4];
            const float token_scale[2] = {token.x, token.z}, token_sum[2] = {token.y, token.w};
            const unsigned b[2] = {codes.x, codes.y};
            int c[4];
            if constexpr (halves) {
                UNROLL for (int half = 0; half < 2; half++) {
                    const int at = 2 * group + half;
                    const float scale[2] = {scales.scale[0][at], scales.scale[1][at]};
                    mma_s8_k16(c, a[group] + 2 * half, b[half], base);
                    add_scaled(sums[tile], c, scale, token_scale);
                    if constexpr (minimum) { /* the sums of half a group's codes */
                        const unsigned ones[2] = {0x01010101u, 0x01010101u};
                        const float minima[2] = {scales.minimum[0][at], scales.minimum[1][at]};
                        mma_s8_k16(c, ones, b[half], base);
                        add_scaled(sums[tile], c, minima, token_scale);
                    }
                }
            } else {
                const float scale[2] = {scales.scale[0][group], scales.scale[1][group]};
                mma_s8_k32(c, a[group], b, base);
                add_scaled(sums[tile], c, scale, token_scale);
            }
            if constexpr (minimum && !halves) {
                UNROLL for (int e = 0; e < 4; e++) {
                    sums[tile][e] = fused(scales.minimum[e / 2][group], token_sum[e % 2], sums[tile][e]);
                }
            }
        }
    }
}

template <TensorType TYPE>
__device__ __forceinline__ void multiply_halves(float *c, const uint4 &weights, unsigned low, unsigned high) {
    const unsigned a[4] = {weights.x, weights.y, weights.z, weights.w}, b[2] = {low, high};
    if constexpr (TYPE == TYPE_F16)
        mma_f16_k16(c, a, b, c);
    else
        mma_bf16_k16(c, a, b, c);
}

/* The same of float16 and bfloat16: a group's sum starts from zero, and its factor brings it to its size. */
template <TensorType TYPE, int TILES>
__device__ __forceinline__ void add_pair_of_halves(const unsigned char *slot, const unsigned char *span, int in_stage,
                                                   int n_tiles, float sums[TILES][4]) {
    typedef Slot<TYPE, TILES> S;
    const int lane = lane_of();
    UNROLL for (int group = 0; group < 2; group++) {
        const uint4 weights[2] = {((const uint4 *)span)[2 * group * WARP_SIZE + lane],
                                  ((const uint4 *)span)[(2 * group + 1) * WARP_SIZE + lane]};
        const int place = 2 * in_stage + group;
        UNROLL for (int tile = 0; tile < TILES; tile++) {
            if (TILES > 2 && tile >= n_tiles) break;
            const float2 factor = ((const float2 *)(slot + S::scales_at(tile)))[place * 4 + lane % 4];
            float c[4] = {0, 0, 0, 0};
            UNROLL for (int step = 0; step < 2; step++) {
                const uint4 parts = ((const uint4 *)(slot + S::codes_at(tile)))[(2 * place + step) * WARP_SIZE + lane];
                multiply_halves<TYPE>(c, weights[step], parts.x, parts.y);
                multiply_halves<TYPE>(c, weights[step], parts.z, parts.w);
            }
            UNROLL for (int e = 0; e < 4; e++) sums[tile][e] = fused(c[e], e % 2 ? factor.y : factor.x, sums[tile][e]);
        }
    }
}

/* `first`: of the span's pairs, where it lasts for two stages. */
template <TensorType TYPE, int TILES, int UNROLLED>
__device__ __forceinline__ void add_pairs(const unsigned char *slot, const unsigned char *tile, int first, int n_pairs,
                                          int n_tiles, float sums[TILES][4]) {
    typedef Form<TYPE, TILES> F;
    UNROLL_BY_ARGUMENT for (int i = 0; i < n_pairs; i++) {
        const unsigned char *const span = tile + i / F::span_pairs * (int)span_bytes(TYPE);
        if constexpr (F::halves)
            add_pair_of_halves<TYPE, TILES>(slot, span, i, n_tiles, sums);
        else
            add_pair<TYPE, TILES>(slot, span, first + i % F::span_pairs, i, n_tiles, sums);
    }
}

/* With all tiles there no branch stands between them: one's products go on while another's are scaled. 16-bit types
 * scale little and would spill registers. Each half of a span that lasts for two stages has a line of its own, where
 * its scales' places are constants. */
template <TensorType TYPE, int TILES>
__device__ __forceinline__ void add_stage(const unsigned char *ring, const unsigned char *slot, int stage, int n_pairs,
                                          int n_tiles, float sums[TILES][4]) {
    typedef Form<TYPE, TILES> F;
    typedef Slot<TYPE, TILES> S;
    const unsigned char *const tile =
        (F::spans_apart ? ring + S::spans_at(stage) : slot) + (int)threadIdx.x / WARP_SIZE * S::tile_bytes();
    const int first = (int)((unsigned)stage % F::span_stages) * F::stage_pairs;
    if (TILES > 2 && (F::halves || n_tiles < TILES))
        add_pairs<TYPE, TILES, 1>(slot, tile, first, n_pairs, n_tiles, sums);
    else if (first)
        add_pairs<TYPE, TILES, F::unrolled>(slot, tile, F::stage_pairs, n_pairs, TILES, sums);
    else
        add_pairs<TYPE, TILES, F::unrolled>(slot, tile, 0, n_pairs, TILES, sums);
}

template <int TILES>
__device__ __forceinline__ void store_results(float *results, const float sums[TILES][4], float unit) {
    const int lane = lane_of(), warp = (int)threadIdx.x / WARP_SIZE;
    UNROLL for (int tile = 0; tile < TILES; tile++) {
        UNROLL for (int e = 0; e < 4; e++) {
            const int token = 8 * tile + lane % 4 * 2 + e % 2, row = warp * TILE_ROWS + lane / 4 + e / 2 * 8;
            results[token * RESULT_STRIDE + row] = sums[tile][e] * unit;
        }
    }
}

/* ---- kernels ------------------------------------------------------------------------------------- */

/* How many pairs of a part are in its stage, which begins when `left` of them are left: where a span is a whole unit,
 * all stages are full. */
template <TensorType TYPE, int TILES> __device__ __forceinline__ int stage_pairs(int left) {
    typedef Form<TYPE, TILES> F;
    return F::span_pairs == UNIT_PAIRS ? F::stage_pairs : smaller(left, F::stage_pairs);
}

/* A block's work, once it is known; first weights are on their way before it waits for the grid before. */
template <TensorType TYPE, int TILES>
__device__ __forceinline__ void multiply_share(const Share &s, const DeviceOperand &in, const DeviceOperand &out, int n,
                                               unsigned char *ring) {
    typedef Form<TYPE, TILES> F;
    const uint8_t *const weight_tile = tile_data(s, (size_t)(s.task.n_pairs / F::span_pairs) * span_bytes(TYPE));
    const int first_tile = s.first_token / 8, n_tiles = quotient_up(s.n_tokens, 8);
    const int begin = part_begin(s.task, s.part), end = part_begin(s.task, s.part + 1);
    const int n_stages = quotient_up(end - begin, F::stage_pairs), bytes = Slot<TYPE, TILES>::bytes();
    Sources from = first_sources<TYPE, TILES>(weight_tile, in, first_tile, begin);
    for (int stage = 0; stage < F::slots - 1 && stage < n_stages; stage++)
        fill_weights<TYPE, TILES>(ring, ring + stage * bytes, stage, &from,
                                  stage_pairs<TYPE, TILES>(end - begin - stage * F::stage_pairs));
    wait_for_grid_before(); /* no kernel writes weights: the first ones are on their way already */

    unsigned char *next = ring; /* the slot filled next; behind it is the one that was filled first */
    float sums[TILES][4] = {};
    for (int stage = 0; stage < n_stages + F::slots - 1; stage++) {
        /* A turn starts the copies of a stage, and works on the one that was started slots - 1 turns ago. A thread has
         * a group of copies for every turn, empty or not, so that counting them tells which have arrived. */
        const int ready = stage - (F::slots - 1);
        unsigned char *const oldest = next == ring + (F::slots - 1) * bytes ? ring : next + bytes;
        if (ready >= 0) {
            copies_wait<F::slots - 2>();
            __syncthreads(); /* everyone's copies are there; and everyone is done with the slot filled next */
        }
        if (stage < n_stages) {
            const int n_pairs = stage_pairs<TYPE, TILES>(end - begin - stage * F::stage_pairs);
            if (ready >= 0) fill_weights<TYPE, TILES>(ring, next, stage, &from, n_pairs);
            fill_tokens<TYPE, TILES>(next, &from, in, n_tiles, n_pairs);
        }
        copies_commit();
        if (ready >= 0 && weight_tile)
            add_stage<TYPE, TILES>(ring, oldest, ready, stage_pairs<TYPE, TILES>(end - begin - ready * F::stage_pairs),
                                   n_tiles, sums);
        next = oldest;
    }
    __syncthreads(); /* the results lie where the ring was */
    store_results<TILES>((float *)ring, sums, F::code_unit);
    finish(s, (float *)ring, out, n);
}

/* Grid: 8 TILES tokens each; y: blocks and parts of all tasks. */
template <TensorType TYPE, int TILES>
__global__ void __launch_bounds__(BLOCK_THREADS, TILES == 8 ? RESIDENT_LARGE : RESIDENT_BLOCKS)
    multiply_kernel(const Tasks tasks, const DeviceOperand in, const DeviceOperand out, int n) {
    SHARED_MEMORY(ring);
    let_next_grid_begin();
    multiply_share<TYPE, TILES>(share_of_block<8 * TILES>(tasks, n), in, out, n, ring);
}

/* Grid: tiles of gathered rows, as many as may come; y: blocks of 64 rows of a matrix. Which matrix it is was written
 * by the grid before. */
template <TensorType TYPE, int TILES>
__global__ void __launch_bounds__(BLOCK_THREADS, RESIDENT_BLOCKS)
    multiply_experts_kernel(const ExpertTask task, const DeviceOperand in, const DeviceOperand out) {
    SHARED_MEMORY(ring);
    begin_grid();
    if ((int)blockIdx.x >= *task.n_tiles) return;
    multiply_share<TYPE, TILES>(share_of_tile(task, 8 * TILES), in, out, 0, ring);
}

/* float32 weights are small, of tests and of odd files: the plain way. A lane has a row and every other column. */
__device__ void multiply_share_of_floats(const Share &s, const DeviceOperand &in, const DeviceOperand &out, int n,
                                         unsigned char *results) {
    const int warp = (int)threadIdx.x / WARP_SIZE, row = lane_of() % TILE_ROWS, odd = lane_of() / TILE_ROWS;
    const float *const weights = (const float *)tile_data(s, (size_t)s.task.n_pairs * span_bytes(TYPE_F32));
    const float *const x = in.values + (size_t)s.first_token * (size_t)in.columns;
    const int end = smaller(PAIR * part_begin(s.task, s.part + 1), in.columns);
    float sums[FLOAT_TOKENS] = {};
    for (int column = PAIR * part_begin(s.task, s.part) + odd; weights && column < end; column += 2) {
        const float weight = weights[(size_t)column * TILE_ROWS + (size_t)row];
        UNROLL for (int token = 0; token < FLOAT_TOKENS; token++) {
            if (token < s.n_tokens)
                sums[token] = fused(weight, x[(size_t)token * (size_t)in.columns + (size_t)column], sums[token]);
        }
    }
    UNROLL for (int token = 0; token < FLOAT_TOKENS; token++) {
        const float sum = sums[token] + __shfl_xor_sync(0xffffffffu, sums[token], TILE_ROWS);
        if (!odd) ((float *)results)[token * RESULT_STRIDE + warp * TILE_ROWS + row] = sum;
    }
    finish(s, (float *)results, out, n);
}

__global__ void __launch_bounds__(BLOCK_THREADS, RESIDENT_BLOCKS)
    multiply_floats_kernel(const Tasks tasks, const DeviceOperand in, const DeviceOperand out, int n) {
    SHARED_MEMORY(results);
    begin_grid();
    multiply_share_of_floats(share_of_block<FLOAT_TOKENS>(tasks, n), in, out, n, results);
}

__global__ void __launch_bounds__(BLOCK_THREADS, RESIDENT_BLOCKS)
    multiply_expert_floats_kernel(const ExpertTask task, const DeviceOperand in, const DeviceOperand out) {
    SHARED_MEMORY(results);
    begin_grid();
    if ((int)blockIdx.x >= *task.n_tiles) return;
    multiply_share_of_floats(share_of_tile(task, FLOAT_TOKENS), in, out, 0, results);
}

/* ---- launches ------------------------------------------------------------------------------------ */

typedef void Kernel(const Tasks, const DeviceOperand, const DeviceOperand, int);

/* Shared memory that a block has without being asked is 48 KiB; the kernel's own variables come on top of the ring. */
const size_t USUAL_SHARED_BYTES = 47 << 10;

template <class AnyKernel> void allow_shared_memory(AnyKernel *kernel, size_t bytes) {
    if (bytes > USUAL_SHARED_BYTES)
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

void launch_kernel(cudaStream_t stream, Kernel *kernel, int tokens, size_t shared_bytes, const Tasks &tasks,
                   const DeviceOperand &in, const DeviceOperand &out, int n) {
    int n_blocks = 0;
    for (int i = 0; i < tasks.n_tasks; i++) n_blocks += tasks.task[i].n_blocks * tasks.task[i].n_parts;
    allow_shared_memory(kernel, shared_bytes);
    launch(stream, dim3((unsigned)quotient_up(n, tokens), (unsigned)n_blocks), dim3(BLOCK_THREADS), shared_bytes,
           kernel, tasks, in, out, n);
}

/* What the head of this file promises. */
template <TensorType TYPE, int TILES> constexpr bool two_blocks_fit() {
    static_assert(Form<TYPE, TILES>::slot_bytes == Slot<TYPE, TILES>::bytes(), "a slot is as large as its parts");
    return ring_bytes<TYPE, TILES>() <= MOST_SHARED;
}

template <TensorType TYPE>
void launch_type(cudaStream_t stream, const Tasks &tasks, const DeviceOperand &in, const DeviceOperand &out, int n) {
    static_assert(two_blocks_fit<TYPE, 1>() && two_blocks_fit<TYPE, 2>() && two_blocks_fit<TYPE, 8>(),
                  "two blocks share a processor");
    if (n <= 8)
        launch_kernel(stream, multiply_kernel<TYPE, 1>, 8, ring_bytes<TYPE, 1>(), tasks, in, out, n);
    else if (n <= 16)
        launch_kernel(stream, multiply_kernel<TYPE, 2>, 16, ring_bytes<TYPE, 2>(), tasks, in, out, n);
    else
        launch_kernel(stream, multiply_kernel<TYPE, 8>, 64, ring_bytes<TYPE, 8>(), tasks, in, out, n);
}

void launch_tasks(cudaStream_t stream, TensorType type, const Tasks &tasks, const DeviceOperand &in,
                  const DeviceOperand &out, int n) {
#define CASE(NAME, name, number) \
    case TYPE_##NAME: launch_type<TYPE_##NAME>(stream, tasks, in, out, n); break;
    switch (type) {
        QUANTISED_TYPES(CASE)
        CASE(F16, f16, 1)
        CASE(BF16, bf16, 30)
    default: /* F32 */
        launch_kernel(stream, multiply_floats_kernel, FLOAT_TOKENS, results_bytes(FLOAT_TOKENS), tasks, in, out, n);
    }
#undef CASE
}

/* Blocks of 64 rows. */
int blocks_of(const DeviceWeight *w) { return quotient_up(w->n_tiles, BLOCK_WARPS); }

/* Parts of the columns: so many that there are 256 blocks or more, about two for each processor of a large device; but
 * each has 1024 columns or more, or it would be over before its first copies arrive. Of the shape alone: it decides in
 * which order numbers are added. */
int parts_of(const DeviceWeight *w) {
    const int n_units = quotient_up(w->columns, UNIT_PAIRS * PAIR);
    const int wanted = quotient_up(256, blocks_of(w)), most = n_units / 4;
    return smaller(wanted, most < 1 ? 1 : most);
}

/* A pass of so few rows has no tile of more. */
enum { SMALL_TILE = 8 };

template <TensorType TYPE, int TILES>
void launch_expert_tiles(cudaStream_t stream, dim3 grid, const ExpertTask &task, const DeviceOperand &in,
                         const DeviceOperand &out) {
    allow_shared_memory(multiply_experts_kernel<TYPE, TILES>, ring_bytes<TYPE, TILES>());
    launch(stream, grid, dim3(BLOCK_THREADS), ring_bytes<TYPE, TILES>(), multiply_experts_kernel<TYPE, TILES>, task, in,
           out);
}

template <TensorType TYPE>
void launch_experts_type(cudaStream_t stream, dim3 grid, const ExpertTask &task, const DeviceOperand &in,
                         const DeviceOperand &out, int n) {
    if (n <= SMALL_TILE)
        launch_expert_tiles<TYPE, 1>(stream, grid, task, in, out);
    else
        launch_expert_tiles<TYPE, 2>(stream, grid, task, in, out);
}

void launch_experts(cudaStream_t stream, TensorType type, int n_tiles, const ExpertTask &task, const DeviceOperand &in,
                    const DeviceOperand &out, int n) {
    const dim3 grid((unsigned)n_tiles, (unsigned)task.task.n_blocks);
#define CASE(NAME, name, number) \
    case TYPE_##NAME: launch_experts_type<TYPE_##NAME>(stream, grid, task, in, out, n); break;
    switch (type) {
        QUANTISED_TYPES(CASE)
        CASE(F16, f16, 1)
        CASE(BF16, bf16, 30)
    default: /* F32 */
        launch(stream, grid, dim3(BLOCK_THREADS), results_bytes(FLOAT_TOKENS), multiply_expert_floats_kernel, task, in,
               out);
    }
#undef CASE
}

/* Takes what the task needs from the scratch memory's beginning. */
Task new_task(const DeviceProduct *product, int n_blocks, int n, ProductScratch *left) {
    const DeviceWeight *w = &product->weight;
    Task t = {};
    t.data = w->data;
    t.bias = product->bias;
    t.scale = product->scale;
    t.rows = w->rows;
    t.n_tiles = w->n_tiles;
    t.n_pairs = w->n_spans * span_columns(w->type) / PAIR;
    t.n_parts = parts_of(w);
    t.n_blocks = n_blocks;
    if (t.n_parts > 1) {
        t.partials = left->partials;
        t.tickets = left->tickets;
        left->partials += (size_t)(n_blocks * t.n_parts) * (size_t)n * BLOCK_ROWS;
        left->tickets += n_blocks * quotient_up(n, FLOAT_TOKENS);
    }
    return t;
}

} // namespace

void product_scratch_size(const DeviceWeight *weights, int n_weights, int max_rows, size_t *partial_floats,
                          int *n_tickets) {
    *partial_floats = 0;
    *n_tickets = 0;
    for (int i = 0; i < n_weights; i++) {
        const int n_blocks = blocks_of(&weights[i]), n_parts = parts_of(&weights[i]);
        if (n_parts == 1) continue;
        *partial_floats += (size_t)(n_blocks * n_parts) * (size_t)max_rows * BLOCK_ROWS;
        *n_tickets +=
            n_blocks * quotient_up(max_rows, FLOAT_TOKENS); /* no block has fewer tokens but one that has all */
    }
}

/* One launch for each type that occurs. */
void queue_multiply(cudaStream_t stream, const DeviceProduct *products, int n_products, const DeviceOperand *in, int n,
                    const ProductScratch *scratch) {
    const DeviceOperand none = {};
    for (int first = 0; first < n_products; first++) {
        const TensorType type = products[first].weight.type;
        bool done = false; /* with an earlier one of the type */
        for (int i = 0; i < first; i++) done = done || products[i].weight.type == type;
        if (done) continue;
        ProductScratch left = *scratch;
        Tasks tasks = {};
        for (int i = first; i < n_products; i++) {
            const DeviceProduct *p = &products[i];
            if (p->weight.type != type) continue;
            Task t = new_task(p, blocks_of(&p->weight), n, &left);
            t.out = p->out;
            t.stride = p->stride;
            t.add = p->add;
            tasks.task[tasks.n_tasks++] = t;
        }
        launch_tasks(stream, type, tasks, *in, none, n);
    }
}

/* Gate and up of the same type in one launch that makes the operand, too: a block has the same 32 rows of both. It
 * needs as many blocks as there are groups, which is what the two would need apart. Groups of an operand that is wider
 * than this weight are left as they are: what multiplies it reads whole pairs of its own columns alone. */
void queue_gate(cudaStream_t stream, Activation activation, const DeviceProduct *gate, const DeviceProduct *up,
                const DeviceOperand *in, int n, const DeviceOperand *out, const ProductScratch *scratch) {
    ProductScratch left = *scratch;
    Tasks tasks = {};
    Task *const t = &tasks.task[0];
    if (!gate) {
        *t = new_task(up, blocks_of(&up->weight), n, &left);
        t->activates = true;
        t->activation = activation;
        tasks.n_tasks = 1;
        launch_tasks(stream, up->weight.type, tasks, *in, *out, n);
        return;
    }
    if (gate->weight.type == up->weight.type) {
        *t = new_task(gate, 2 * quotient_up(gate->weight.rows, PAIR), n, &left);
        t->activation = activation;
        t->up = up->weight.data;
        t->up_bias = up->bias;
        t->up_scale = up->scale;
        tasks.n_tasks = 1;
        launch_tasks(stream, gate->weight.type, tasks, *in, *out, n);
        return;
    }
    const DeviceProduct products[2] = {*gate, *up};
    queue_multiply(stream, products, 2, in, n, scratch);
    queue_gate_values(stream, activation, gate->out, gate->stride, up->out, up->stride, gate->weight.rows, n, out);
}

static ExpertTask expert_task(const DeviceExperts *e, const DevicePlaces *places, int n_blocks) {
    const DeviceWeight *w = &e->weight;
    ExpertTask t = {};
    t.task.data = w->data;
    t.task.bias = e->bias;
    t.task.scale = t.task.up_scale = 1;
    t.task.rows = w->rows;
    t.task.n_tiles = w->n_tiles;
    t.task.n_pairs = w->n_spans * span_columns(w->type) / PAIR;
    t.task.n_parts = 1;
    t.task.n_blocks = n_blocks;
    t.n_tiles = places->n_tiles;
    t.tiles = places->tiles;
    t.bytes = device_weight_bytes(w);
    t.bias_stride = e->bias_stride;
    t.scales = e->scales;
    return t;
}

void queue_expert_multiply(cudaStream_t stream, const DeviceExperts *experts, const DevicePlaces *places, int n_tiles,
                           const DeviceOperand *in, int n, float *out, size_t stride) {
    const DeviceOperand none = {};
    ExpertTask t = expert_task(experts, places, blocks_of(&experts->weight));
    t.task.out = out;
    t.task.stride = stride;
    launch_experts(stream, experts->weight.type, n_tiles, t, *in, none, n);
}

void queue_expert_gate(cudaStream_t stream, Activation activation, const DeviceExperts *gate, const DeviceExperts *up,
                       const DevicePlaces *places, int n_tiles, const DeviceOperand *in, int n,
                       const DeviceOperand *out) {
    ExpertTask t = gate ? expert_task(gate, places, 2 * quotient_up(gate->weight.rows, PAIR))
                        : expert_task(up, places, blocks_of(&up->weight));
    t.task.activation = activation;
    t.task.activates = !gate;
    if (gate) {
        t.task.up = up->weight.data;
        t.task.up_bias = up->bias;
        t.up_scales = up->scales;
    }
    launch_experts(stream, up->weight.type, n_tiles, t, *in, *out, n);
}
