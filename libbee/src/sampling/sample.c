#include "sample.h"

#include <math.h>
#include <stdlib.h>

#include "error.h"

static uint64_t position_key(uint64_t seed, int32_t position) {
    return mix_bits(mix_bits(seed + 0x9e3779b97f4a7c15) + (uint64_t)(uint32_t)position * 0xd1342543de82ef95);
}

static double gumbel_from_bits(uint64_t bits) {
    /* 52 bits: with one more, the largest value plus a half would round to 2^53, and u to 1. */
    const double u = ((double)(bits >> 12) + 0.5) * 0x1p-52; /* inside (0, 1) */
    return -log(-log(u));
}

double gumbel_noise(uint64_t seed, int32_t position, int32_t token) {
    return gumbel_from_bits(token_bits(position_key(seed, position), token));
}

/* An upper bound of gumbel_from_bits without a logarithm: with k leading ones, u < 1 - 2^-(k+1), and
 * -log(-log(1 - e)) < -log(e). */
static double gumbel_bound(uint64_t bits) {
    const int ones = ~bits ? __builtin_clzll(~bits) : 64;
    return (ones + 1) * 0.6931471805599454;
}

/* ---- the best of a set of entries --------------------------------------------------------------- */

typedef struct Search {
    const Draw *draw;
    double inverse_temperature;
    uint64_t key;
    Best best; /* entry -1 at first */
} Search;

static Search search_new(const Draw *draw, float largest) {
    return (Search){
        draw, 1.0 / draw->sampling->temperature, position_key(draw->sampling->seed, draw->position), {largest, -1, 0}};
}

/* Entries come in any order; the outcome does not depend on it. */
static void consider(Search *search, int entry) {
    const Draw *draw = search->draw;
    Best *best = &search->best;
    const uint64_t bits = token_bits(search->key, draw->ids ? draw->ids[entry] : entry);
    const double scaled = draw->logits[entry] * search->inverse_temperature;
    if (best->entry >= 0 && scaled + gumbel_bound(bits) < best->score) return;
    const double score = scaled + gumbel_from_bits(bits);
    if (best->entry < 0 || score > best->score || (score == best->score && entry < best->entry)) {
        best->entry = entry;
        best->score = score;
    }
}

static int first_equal(const float *logits, int n, float value) {
    for (int i = 0; i < n; i++)
        if (logits[i] == value) return i;
    return -1;
}

/* ---- truncation --------------------------------------------------------------------------------- */

/* Order of rank: the larger logit, then the lower entry. */
static bool outranks(Candidate a, Candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.entry < b.entry);
}

static int compare_rank(const void *a, const void *b) {
    return outranks(*(const Candidate *)a, *(const Candidate *)b) ? -1 : 1;
}

/* Restores the heap (lowest rank at the root) below `i`. */
static void sift_down(Candidate *heap, int n, int i) {
    for (;;) {
        int lowest = i;
        for (int child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++)
            if (outranks(heap[lowest], heap[child])) lowest = child;
        if (lowest == i) return;
        const Candidate swap = heap[i];
        heap[i] = heap[lowest];
        heap[lowest] = swap;
        i = lowest;
    }
}

/* The k entries of highest rank, in rank order. */
static int take_top_k(const float *logits, int n, int k, Candidate *out) {
    if (k > n) k = n;
    for (int i = 0; i < k; i++) out[i] = (Candidate){logits[i], i};
    for (int i = k / 2; i-- > 0;) sift_down(out, k, i);
    for (int i = k; i < n; i++) {
        if (logits[i] <= out[0].logit) continue;
        out[0] = (Candidate){logits[i], i};
        sift_down(out, k, 0);
    }
    qsort(out, (size_t)k, sizeof *out, compare_rank);
    return k;
}

static int take_above(const float *logits, int n, float threshold, Candidate *out) {
    int count = 0;
    for (int i = 0; i < n; i++)
        if (logits[i] >= threshold) out[count++] = (Candidate){logits[i], i};
    qsort(out, (size_t)count, sizeof *out, compare_rank);
    return count;
}

/* Length of the shortest prefix whose probabilities sum to at least top_p of `total`; 0 where none does. */
static int nucleus(const Candidate *candidates, int count, float largest, double total, double top_p) {
    double sum = 0;
    for (int i = 0; i < count; i++) {
        sum += exp((double)candidates[i].logit - largest);
        if (sum >= top_p * total) return i + 1;
    }
    return 0;
}

/* The candidates that top_k, top_p and min_p leave, in rank order. `out` has room for n. */
static int truncate_logits(const float *logits, int n, float largest, const bee_sampling *s,
                           const Reductions *reductions, Candidate *out) {
    int count;
    if (s->top_k > 0 && s->top_k < n) {
        count = take_top_k(logits, n, s->top_k, out);
        if (s->top_p < 1) {
            double total = 0;
            for (int i = 0; i < count; i++) total += exp((double)out[i].logit - largest);
            const int kept = nucleus(out, count, largest, total, s->top_p);
            if (kept) count = kept;
        }
    } else if (s->top_p < 1) {
        const double total = reductions->sum_exp(logits, n, largest);
        int kept = 0;
        /* Most nuclei lie within a few nats of the top: sorting the whole vocabulary is the last resort. */
        for (float depth = 8; !kept; depth *= 4) {
            count = take_above(logits, n, depth > 200 ? -INFINITY : largest - depth, out);
            kept = nucleus(out, count, largest, total, s->top_p);
            if (!kept && depth > 200) kept = count;
        }
        count = kept;
    } else {
        count = take_above(logits, n, largest + logf(s->min_p), out);
    }
    if (s->min_p > 0) {
        const float threshold = largest + logf(s->min_p);
        while (count > 1 && out[count - 1].logit < threshold) count--;
    }
    return count;
}

/* ---- a row -------------------------------------------------------------------------------------- */

/* Truncations need the whole row; without a temperature they change nothing. */
static bool truncates(const bee_sampling *s) {
    return s->temperature > 0 && (s->top_k > 0 || s->top_p < 1 || s->min_p > 0);
}

static void search_part(Search *search, int top, int first, int last) {
    const Draw *draw = search->draw;
    const float largest = draw->logits[top], inverse = (float)search->inverse_temperature;
    consider(search, top); /* a high score to begin with lets the bounds dismiss most of the others */
    for (int i = first; i < last; i += 16) {
        const int end = i + 16 < last ? i + 16 : last;
        const float lead = (float)(search->best.score - largest * search->inverse_temperature);
        if (end == i + 16 && !draw->reductions->may_win(draw->logits + i, draw->ids ? draw->ids + i : NULL, i, largest,
                                                        inverse, search->key, lead))
            continue;
        for (int j = i; j < end; j++) consider(search, j);
    }
}

Best sample_part(const Draw *draw, int first, int last) {
    const float largest = draw->reductions->largest(draw->logits + first, last - first);
    Best best = {largest, -1, largest};
    if (!isfinite(largest) || truncates(draw->sampling)) return best;
    best.entry = first + first_equal(draw->logits + first, last - first, largest);
    if (draw->sampling->temperature == 0) return best;
    Search search = search_new(draw, largest);
    search_part(&search, best.entry, first, last);
    return search.best;
}

static int best_of_truncated(const Draw *draw, float largest, Candidate *room) {
    Search search = search_new(draw, largest);
    const int count = truncate_logits(draw->logits, draw->n, largest, draw->sampling, draw->reductions, room);
    for (int i = 0; i < count; i++) consider(&search, room[i].entry);
    return search.best.entry;
}

int32_t sample_finish(const Draw *draw, const Best *parts, int n_parts, Candidate *room) {
    float largest = -INFINITY;
    Best best = {0, -1, 0};
    for (int i = 0; i < n_parts; i++) {
        if (parts[i].largest > largest || isnan(parts[i].largest)) largest = parts[i].largest;
        if (isnan(largest)) return -1;
        if (parts[i].entry >= 0 && (best.entry < 0 || parts[i].score > best.score)) best = parts[i];
    }
    if (!isfinite(largest)) return -1;
    if (truncates(draw->sampling)) best.entry = best_of_truncated(draw, largest, room);
    return best.entry < 0 ? -1 : draw->ids ? draw->ids[best.entry] : best.entry;
}

bee_status sampling_check(const bee_sampling *s, bee_error *error) {
    if (!(s->temperature >= 0 && s->temperature <= 100))
        return bee_fail(error, BEE_ERROR_ARGUMENT, "temperature is %g; it must lie between 0 and 100",
                        (double)s->temperature);
    if (s->top_k < 0)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "top_k is %d; it must be at least 0 (0: off)", s->top_k);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return bee_fail(error, BEE_ERROR_ARGUMENT, "top_p is %g; it must be above 0 and at most 1 (1: off)",
                        (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return bee_fail(error, BEE_ERROR_ARGUMENT, "min_p is %g; it must lie between 0 and 1 (0: off)",
                        (double)s->min_p);
    return BEE_OK;
}
