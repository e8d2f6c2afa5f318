/* Tokens from logits, by the rules of src/sample.c, which says what they are. Everything here that depends on several
 * entries is a maximum of a total order or a sum of integers, so that neither threads nor devices change a choice. */
#include "kernels.h"

namespace {

enum { PART_THREADS = 256, TRUNCATION_THREADS = 1024, BINS = 256, MOST_LISTED = 2048 };

/* ---- rank --------------------------------------------------------------------------------------- */

/* An entry's rank in a row: the larger logit, then the lower entry; NaN is above everything. 0 is no entry's. */
typedef unsigned long long Rank;

__device__ __forceinline__ Rank rank_of(float logit, unsigned entry) {
    const unsigned bits = __float_as_uint(logit + 0.0f); /* minus zero is zero */
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Rank)(logit != logit ? 0xffffffffu : ordered) << 32 | (0xffffffffu - entry);
}

__device__ __forceinline__ float logit_of(Rank rank) {
    const unsigned ordered = (unsigned)(rank >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ int entry_of(Rank rank) { return (int)(0xffffffffu - (unsigned)rank); }

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }

/* ---- a block ------------------------------------------------------------------------------------ */

typedef struct Best {
    double score;
    int entry; /* -1: none */
} Best;

__device__ __forceinline__ Best better(Best a, Best b) {
    const bool second = b.entry >= 0 && (a.entry < 0 || b.score > a.score || (b.score == a.score && b.entry < a.entry));
    return second ? b : a;
}

__device__ Rank warp_highest(Rank x) {
    for (int step = 16; step; step /= 2) {
        const Rank other = __shfl_xor_sync(0xffffffffu, x, step);
        if (other > x) x = other;
    }
    return x;
}

__device__ Best warp_best(Best x) {
    for (int step = 16; step; step /= 2) {
        Best other;
        other.score = __shfl_xor_sync(0xffffffffu, x.score, step);
        other.entry = __shfl_xor_sync(0xffffffffu, x.entry, step);
        x = better(x, other);
    }
    return x;
}

__device__ double warp_sum_double(double x) {
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ Rank block_highest(Rank x) {
    __shared__ Rank warps[32];
    x = warp_highest(x);
    if (!lane_of()) warps[threadIdx.x / WARP_SIZE] = x;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x / WARP_SIZE; i++)
        if (warps[i] > x) x = warps[i];
    __syncthreads();
    return x;
}

__device__ Best block_best(Best x) {
    __shared__ double scores[32];
    __shared__ int entries[32];
    x = warp_best(x);
    if (!lane_of()) {
        scores[threadIdx.x / WARP_SIZE] = x.score;
        entries[threadIdx.x / WARP_SIZE] = x.entry;
    }
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x / WARP_SIZE; i++) x = better(x, {scores[i], entries[i]});
    __syncthreads();
    return x;
}

__device__ double block_sum(double x) {
    __shared__ double warps[32];
    x = warp_sum_double(x);
    if (!lane_of()) warps[threadIdx.x / WARP_SIZE] = x;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < (int)blockDim.x / WARP_SIZE; i++) sum += warps[i];
    __syncthreads();
    return sum;
}

/* ---- exponentials ------------------------------------------------------------------------------- */

/* exp(x) = result * 2^exponent for x from -90 to 0, the same on every device. */
__device__ __forceinline__ float split_exp(float x, int *exponent) {
    const float n = rintf(x * 1.44269504f);
    const float r = fused(n, -1.90465421e-9f, fused(n, -0.693147182f, x));
    float y = 1.0f / 5040;
    y = fused(y, r, 1.0f / 720);
    y = fused(y, r, 1.0f / 120);
    y = fused(y, r, 1.0f / 24);
    y = fused(y, r, 1.0f / 6);
    y = fused(y, r, 0.5f);
    y = fused(y, r, 1);
    *exponent = (int)n;
    return fused(y, r, 1);
}

__device__ __forceinline__ float exp_below(float x) {
    if (!(x >= -87)) return 0;
    int exponent;
    const float y = split_exp(x, &exponent);
    return y * __uint_as_float((unsigned)(exponent + 127) << 23);
}

/* exp(x) in units of 2^-40: sums of integers do not depend on their order. */
__device__ __forceinline__ Rank weight_below(float x) {
    if (!(x >= -30)) return 0;
    int exponent;
    const Rank y = (Rank)(split_exp(x, &exponent) * 0x1p24f);
    const int shift = exponent + 16;
    return shift >= 0 ? y << shift : (y + ((Rank)1 << (-shift - 1))) >> -shift;
}

/* ---- noise -------------------------------------------------------------------------------------- */

__device__ __forceinline__ uint64_t mix_bits(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

__device__ __forceinline__ uint64_t position_key(uint64_t seed, int32_t position) {
    return mix_bits(mix_bits(seed + 0x9e3779b97f4a7c15) + (uint64_t)(uint32_t)position * 0xd1342543de82ef95);
}

__device__ __forceinline__ uint64_t token_bits(uint64_t key, int32_t token) {
    return mix_bits(key + ((uint64_t)(uint32_t)token + 1) * 0x9e3779b97f4a7c15);
}

__device__ __forceinline__ double gumbel_from_bits(uint64_t bits) {
    const double u = ((double)(bits >> 12) + 0.5) * 0x1p-52;
    return -log(-log(u));
}

/* The noise is below so many times log 2. */
__device__ __forceinline__ int gumbel_steps(uint64_t bits) { return __clzll((long long)~bits) + 1; }

/* ---- the best score of a range ------------------------------------------------------------------ */

typedef struct Search {
    const float *logits;
    const int32_t *ids;
    Rank cut; /* entries below it do not count */
    uint64_t key;
    double inverse; /* of the temperature */
    float top, inverse_single;
    float margin; /* more than single precision gets wrong of a score's distance from the top's */
} Search;

__device__ Search search_new(const DeviceChoice *choice, const float *logits, const int32_t *ids, Rank top, Rank cut) {
    const double inverse = 1.0 / choice->sampling.temperature;
    const float highest = logit_of(top);
    /* Scores so high that their own rounding eats the noise are compared in double precision alone. */
    const float margin = fabs(highest * inverse) < 0x1p30 && inverse < 0x1p100 ? 1e-3f : INFINITY;
    return {logits,         ids,   cut, position_key(choice->sampling.seed, choice->position), inverse, highest,
            (float)inverse, margin};
}

__device__ __forceinline__ uint64_t bits_of_entry(const Search *s, int entry) {
    return token_bits(s->key, s->ids ? s->ids[entry] : entry);
}

/* Most entries are far below: they are told from the rest without a logarithm, and without double precision, of which
 * many devices have little. `lead` is the best score's distance from the top logit's. */
__device__ __forceinline__ void consider(const Search *s, int entry, Best *best, float *lead) {
    const float logit = s->logits[entry];
    const float distance = (logit - s->top) * s->inverse_single + s->margin;
    if (distance + 65 * 0.693148f < *lead || rank_of(logit, (unsigned)entry) < s->cut) return;
    const uint64_t bits = bits_of_entry(s, entry);
    const int steps = gumbel_steps(bits);
    if (distance + (float)steps * 0.693148f < *lead) return;
    const double scaled = logit * s->inverse;
    if (scaled + steps * 0.6931471805599454 < best->score) return;
    *best = better(*best, {scaled + gumbel_from_bits(bits), entry});
    *lead = (float)(best->score - s->top * s->inverse);
}

/* By the whole block. `top`: the highest entry of [first, last), whose score is what others have to beat at first. */
__device__ Best search_range(const Search *s, int top, int first, int last) {
    __shared__ double top_score;
    if (!threadIdx.x) top_score = s->logits[top] * s->inverse + gumbel_from_bits(bits_of_entry(s, top));
    __syncthreads();
    Best best = {top_score, top};
    float lead = (float)(best.score - s->top * s->inverse);
    for (int i = first + (int)threadIdx.x; i < last; i += (int)blockDim.x) consider(s, i, &best, &lead);
    return block_best(best);
}

/* ---- a part of a row ---------------------------------------------------------------------------- */

/* What a part comes to. Of the row before edits: the highest entries, and the sum of exp(logit - sum_top). */
typedef struct Part {
    Rank top; /* 0: the part is empty */
    Best best;
    double sum;
    float sum_top;
    Rank tops[BEE_MAX_TOP_LOGPROBS]; /* 0 behind the last */
} Part;

/* `saved`: [choice][n_vocab], the logits that edits changed, in the order of the edits; for rows with a report. */
typedef struct Scratch {
    Part *parts; /* [choice][CHOICE_PARTS] */
    float *saved;
} Scratch;

typedef struct Range {
    int first, last;
} Range;

/* A part has at least an entry for each thread; the last parts of a small vocabulary are empty. */
__device__ Range range_of_part(int n_vocab, int part) {
    const int even = (n_vocab + CHOICE_PARTS - 1) / CHOICE_PARTS;
    const int each = even < PART_THREADS ? (int)PART_THREADS : even, first = part * each;
    if (first >= n_vocab) return {n_vocab, n_vocab};
    return {first, first + each < n_vocab ? first + each : n_vocab};
}

/* The highest rank up to `most`. */
__device__ Rank highest_in(const float *row, Range range, Rank most) {
    Rank highest = 0;
    for (int i = range.first + (int)threadIdx.x; i < range.last; i += (int)blockDim.x) {
        const Rank rank = rank_of(row[i], (unsigned)i);
        if (rank <= most && rank > highest) highest = rank;
    }
    return block_highest(highest);
}

__device__ double sum_of_exp(const float *row, Range range, float largest) {
    double sum = 0;
    for (int i = range.first + (int)threadIdx.x; i < range.last; i += (int)blockDim.x)
        sum += (double)exp_below(row[i] - largest);
    return block_sum(sum);
}

__device__ void report_part(const float *row, Range range, int n_top, Part *out) {
    const Rank top = highest_in(row, range, ~(Rank)0);
    const float largest = top ? logit_of(top) : -INFINITY;
    const double sum = is_finite(largest) ? sum_of_exp(row, range, largest) : 0;
    Rank next = top;
    for (int i = 0; i < n_top; i++) {
        if (!threadIdx.x) out->tops[i] = next;
        if (next && i + 1 < n_top) next = highest_in(row, range, next - 1);
    }
    if (threadIdx.x) return;
    out->sum_top = largest;
    out->sum = sum;
}

/* An edit per token: they come in no order. */
__device__ void edit_part(float *row, Range range, const DeviceChoice *choice, float *saved) {
    for (int i = (int)threadIdx.x; i < choice->n_edits; i += (int)blockDim.x) {
        const DeviceEdit edit = choice->edits[i];
        if (edit.token < range.first || edit.token >= range.last) continue;
        if (choice->n_top >= 0) saved[i] = row[edit.token];
        const float logit = row[edit.token] + edit.bias;
        row[edit.token] = (logit > 0 ? logit / edit.repetition : logit * edit.repetition) - edit.penalty;
    }
}

__device__ void forbid_part(float *row, Range range, const int32_t *ids, const uint32_t *mask) {
    for (int i = range.first + (int)threadIdx.x; i < range.last; i += (int)blockDim.x) {
        const int token = ids ? ids[i] : i;
        if (!(mask[token / 32] >> token % 32 & 1)) row[i] = -INFINITY;
    }
}

__device__ __forceinline__ bool is_truncated(const bee_sampling *s) {
    return s->temperature > 0 && (s->top_k > 0 || s->top_p < 1 || s->min_p > 0);
}

__device__ void empty_part(Part *out) {
    if (threadIdx.x) return;
    out->top = 0;
    out->best = {0, -1};
    out->sum = 0;
    out->sum_top = -INFINITY;
    for (int i = 0; i < BEE_MAX_TOP_LOGPROBS; i++) out->tops[i] = 0;
}

template <bool EDITS>
__global__ __launch_bounds__(PART_THREADS) void choose_parts(float *logits, size_t stride, int n_vocab,
                                                             const int32_t *ids, const DeviceChoice *choices,
                                                             Scratch scratch) {
    begin_grid();
    const DeviceChoice *choice = &choices[blockIdx.y];
    const Range range = range_of_part(n_vocab, (int)blockIdx.x);
    float *row = logits + (size_t)choice->logits_row * stride;
    Part *out = &scratch.parts[blockIdx.y * CHOICE_PARTS + blockIdx.x];
    if (range.first == range.last) {
        empty_part(out);
        return;
    }
    if (EDITS) {
        if (choice->n_top >= 0) report_part(row, range, choice->n_top, out);
        __syncthreads();
        edit_part(row, range, choice, scratch.saved + (size_t)blockIdx.y * (size_t)n_vocab);
        __syncthreads();
        if (choice->mask) forbid_part(row, range, ids, choice->mask);
        __syncthreads();
    }
    const Rank top = highest_in(row, range, ~(Rank)0);
    Best best = {0, -1};
    if (top && is_finite(logit_of(top)) && !is_truncated(&choice->sampling)) {
        best = {logit_of(top), entry_of(top)};
        if (choice->sampling.temperature > 0) {
            const Search search = search_new(choice, row, ids, top, 0);
            best = search_range(&search, entry_of(top), range.first, range.last);
        }
    }
    if (threadIdx.x) return;
    out->top = top;
    out->best = best;
}

/* ---- truncation --------------------------------------------------------------------------------- */

/* What a cut is searched among: entries of rank `floor` and above with a probability. */
typedef struct Field {
    const float *row;
    int n;
    float largest;
    Rank floor;
    bool weighs; /* entries count by their probability, not by their number */
} Field;

/* Sums of 64 bits as two words: devices add words in shared memory at once, and longer numbers by trial. */
typedef struct Histogram {
    unsigned low[BINS], high[BINS];
} Histogram;

__device__ void histogram_clear(Histogram *h) {
    __syncthreads();
    for (int i = (int)threadIdx.x; i < BINS; i += (int)blockDim.x) h->low[i] = h->high[i] = 0;
    __syncthreads();
}

__device__ __forceinline__ void histogram_add(Histogram *h, int bin, Rank value) {
    if (!value) return;
    const unsigned low = (unsigned)value, before = atomicAdd(&h->low[bin], low);
    const unsigned high = (unsigned)(value >> 32) + (before + low < before);
    if (high) atomicAdd(&h->high[bin], high);
}

__device__ __forceinline__ Rank histogram_at(const Histogram *h, int bin) {
    return (Rank)h->high[bin] << 32 | h->low[bin];
}

__device__ Rank sum_of_lane(const Histogram *h) {
    Rank sum = 0;
    for (int i = 0; i < BINS / WARP_SIZE; i++) sum += histogram_at(h, lane_of() * (BINS / WARP_SIZE) + i);
    return sum;
}

__device__ Rank histogram_total(const Histogram *h) {
    Rank sum = sum_of_lane(h);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

/* The first bin up to whose end the bins hold `*need`, which becomes what it must give itself; -1 where none does. Each
 * warp finds it for itself. */
__device__ int histogram_find(const Histogram *h, Rank *need) {
    const Rank mine = sum_of_lane(h);
    Rank before = 0;
    for (int lane = 0; lane < WARP_SIZE; lane++) {
        const Rank other = __shfl_sync(0xffffffffu, mine, lane);
        if (lane < lane_of()) before += other;
    }
    const bool here = before < *need && before + mine >= *need;
    Rank left = *need - before;
    int bin = lane_of() * (BINS / WARP_SIZE);
    while (here && histogram_at(h, bin) < left) left -= histogram_at(h, bin++);
    const unsigned owner = __ballot_sync(0xffffffffu, here);
    if (!owner) return -1;
    *need = __shfl_sync(0xffffffffu, left, __ffs((int)owner) - 1);
    return __shfl_sync(0xffffffffu, bin, __ffs((int)owner) - 1);
}

/* 0 where the entry does not count. */
__device__ __forceinline__ Rank rank_in(const Field *field, int entry) {
    const float logit = field->row[entry];
    const Rank rank = rank_of(logit, (unsigned)entry);
    return logit > -INFINITY && rank >= field->floor ? rank : 0;
}

__device__ __forceinline__ Rank value_in(const Field *field, Rank rank) {
    return field->weighs ? weight_below(logit_of(rank) - field->largest) : 1;
}

/* Eighths of a nat below the top: bins in the order of rank, with not too many entries each. */
__device__ __forceinline__ int depth_of(const Field *field, Rank rank) {
    const float depth = (field->largest - logit_of(rank)) * 8;
    return depth < BINS - 1 ? (int)depth : BINS - 1;
}

/* The ranks of one depth, in any order; how many there are, which may be more than the list has room for. */
__device__ int list_depth(const Field *field, int depth, Rank *list) {
    __shared__ int n_listed;
    __syncthreads();
    if (!threadIdx.x) n_listed = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < field->n; i += (int)blockDim.x) {
        const Rank rank = rank_in(field, i);
        if (!rank || depth_of(field, rank) != depth) continue;
        const int at = atomicAdd(&n_listed, 1);
        if (at < MOST_LISTED) list[at] = rank;
    }
    __syncthreads();
    return n_listed;
}

/* The rank of one depth down to which its entries hold `need`, digit by digit. */
__device__ Rank cut_in_depth(const Field *field, int depth, Rank need, Histogram *h, Rank *list) {
    const int n_listed = list_depth(field, depth, list);
    if (n_listed == 1) return list[0];
    const bool listed = n_listed <= MOST_LISTED;
    Rank cut = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        histogram_clear(h);
        for (int i = (int)threadIdx.x; i < (listed ? n_listed : field->n); i += (int)blockDim.x) {
            const Rank rank = listed ? list[i] : rank_in(field, i);
            if (!rank || rank >> shift >> 8 != cut >> shift >> 8) continue;
            if (!listed && depth_of(field, rank) != depth) continue;
            histogram_add(h, BINS - 1 - (int)(rank >> shift & (BINS - 1)), value_in(field, rank));
        }
        __syncthreads();
        cut |= (Rank)(BINS - 1 - histogram_find(h, &need)) << shift;
    }
    return cut;
}

/* The highest rank down to which the field holds `need`, or a share of its weight; its floor where it holds less. */
__device__ Rank find_cut(const Field *field, Rank need, double share) {
    __shared__ Histogram histogram;
    __shared__ Rank list[MOST_LISTED];
    histogram_clear(&histogram);
    for (int i = (int)threadIdx.x; i < field->n; i += (int)blockDim.x) {
        const Rank rank = rank_in(field, i);
        if (rank) histogram_add(&histogram, depth_of(field, rank), value_in(field, rank));
    }
    __syncthreads();
    if (field->weighs) {
        const Rank total = histogram_total(&histogram);
        need = (Rank)ceil(share * (double)total);
        if (need > total) need = total;
        if (!need) need = 1;
    }
    const int depth = histogram_find(&histogram, &need);
    return depth < 0 ? field->floor : cut_in_depth(field, depth, need, &histogram, list);
}

/* The lowest rank that top_k, top_p and min_p leave. */
__device__ Rank truncation_of(const bee_sampling *s, const float *row, int n_vocab, float largest) {
    Field field = {row, n_vocab, largest, 0, false};
    if (s->top_k > 0) field.floor = find_cut(&field, (Rank)s->top_k, 0);
    field.weighs = true;
    if (s->top_p < 1) field.floor = find_cut(&field, 0, s->top_p);
    if (s->min_p > 0) {
        const Rank threshold = rank_of(largest + (float)log((double)s->min_p), 0xffffffffu);
        if (threshold > field.floor) field.floor = threshold;
    }
    return field.floor;
}

/* ---- a row -------------------------------------------------------------------------------------- */

/* By one warp; each lane has a part. */
__device__ void report_top(const Part *part, const int32_t *ids, int n_top, DeviceReport *report) {
    int n = 0, at = 0;
    for (; n < n_top; n++) {
        const Rank mine = at < n_top ? part->tops[at] : 0, highest = warp_highest(mine);
        if (!highest) break;
        if (mine == highest) at++;
        if (lane_of()) continue;
        report->top_tokens[n] = ids ? ids[entry_of(highest)] : entry_of(highest);
        report->top_logits[n] = logit_of(highest);
    }
    if (!lane_of()) report->n_top = n;
}

__device__ void report_sum(const Part *part, DeviceReport *report) {
    const float largest = warp_max(part->sum_top);
    const bool counts = part->sum_top != -INFINITY;
    const double sum = warp_sum_double(counts ? exp((double)part->sum_top - largest) * part->sum : 0);
    if (!lane_of()) report->log_sum = largest + log(sum);
}

/* The entry's logit as it was before the edits. */
__device__ void report_chosen(const DeviceChoice *choice, const float *row, const float *saved, int entry,
                              DeviceReport *report) {
    bool edited = false;
    for (int i = lane_of(); i < choice->n_edits; i += WARP_SIZE) {
        if (choice->edits[i].token != entry) continue;
        edited = true;
        report->chosen_logit = saved[i];
    }
    edited = __any_sync(0xffffffffu, edited);
    if (!lane_of() && !edited) report->chosen_logit = entry < 0 ? -INFINITY : row[entry];
}

template <bool TRUNCATES>
__global__ __launch_bounds__(TRUNCATION_THREADS) void choose_finish(const float *logits, size_t stride, int n_vocab,
                                                                    const int32_t *ids, const DeviceChoice *choices,
                                                                    Scratch scratch, int32_t *tokens,
                                                                    DeviceReport *reports) {
    static_assert((int)CHOICE_PARTS == (int)WARP_SIZE, "a lane looks at one part");
    begin_grid();
    const DeviceChoice *choice = &choices[blockIdx.x];
    const float *row = logits + (size_t)choice->logits_row * stride;
    const Part *part = &scratch.parts[blockIdx.x * CHOICE_PARTS + (unsigned)lane_of()];
    const Rank top = warp_highest(part->top);
    int entry = warp_best(part->best).entry;
    if (!is_finite(logit_of(top))) {
        entry = -1;
    } else if (TRUNCATES && is_truncated(&choice->sampling)) {
        const Rank cut = truncation_of(&choice->sampling, row, n_vocab, logit_of(top));
        const Search search = search_new(choice, row, ids, top, cut);
        entry = search_range(&search, entry_of(top), 0, n_vocab).entry;
    }
    if (threadIdx.x >= WARP_SIZE) return;
    if (!lane_of()) tokens[blockIdx.x] = entry < 0 ? -1 : ids ? ids[entry] : entry;
    if (!reports || choice->n_top < 0) return;
    DeviceReport *report = &reports[blockIdx.x];
    report_top(part, ids, choice->n_top, report);
    report_sum(part, report);
    report_chosen(choice, row, scratch.saved + (size_t)blockIdx.x * (size_t)n_vocab, entry, report);
}

size_t bytes_of_parts(int n) { return (size_t)n * CHOICE_PARTS * sizeof(Part); }

} // namespace

size_t choice_scratch_size(int n, int n_vocab) {
    return bytes_of_parts(n) + (size_t)n * (size_t)n_vocab * sizeof(float);
}

void queue_choose(cudaStream_t stream, float *logits, size_t stride, int n_vocab, const int32_t *ids,
                  const DeviceChoice *choices, int n, bool truncates, bool edits, void *scratch, int32_t *tokens,
                  DeviceReport *reports) {
    if (n <= 0) return;
    const Scratch room = {(Part *)scratch, (float *)((unsigned char *)scratch + bytes_of_parts(n))};
    launch(stream, dim3(CHOICE_PARTS, (unsigned)n), dim3(PART_THREADS), 0,
           edits ? choose_parts<true> : choose_parts<false>, logits, stride, n_vocab, ids, choices, room);
    launch(stream, dim3((unsigned)n), dim3(truncates ? (int)TRUNCATION_THREADS : (int)WARP_SIZE), 0,
           truncates ? choose_finish<true> : choose_finish<false>, logits, stride, n_vocab, ids, choices, room, tokens,
           edits ? reports : nullptr);
}
