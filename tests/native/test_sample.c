/* Tests of sampling: truncations against a plain implementation, the pruned search against brute force, and the drawn
 * distribution against the softmax. */
#include "check.h"
#include "compiled_kernels.h"
#include "random.h"
#include "sample_row.h"

#include <stdlib.h>

enum { MOST_TOKENS = 400 };

static float plain_largest(const float *x, int n) {
    float largest = -INFINITY;
    for (int i = 0; i < n; i++)
        if (isnan(x[i]) || x[i] > largest) {
            largest = x[i];
            if (isnan(largest)) break;
        }
    return largest;
}

static float plain_sum_exp(const float *x, int n, float shift) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - shift);
    return (float)sum;
}

/* Nothing is ruled out. */
static bool plain_may_win(const float *logits, const int32_t *ids, int32_t first, float top, float inverse_temperature,
                          uint64_t key, float lead) {
    (void)logits, (void)ids, (void)first, (void)top, (void)inverse_temperature, (void)key, (void)lead;
    return true;
}

static const Reductions reductions = {plain_largest, plain_sum_exp, plain_may_win};

/* ---- the plain implementation ----------------------------------------------------------------------- */

typedef struct Entry {
    float logit;
    int index;
} Entry;

static int by_rank(const void *left, const void *right) {
    const Entry *a = left, *b = right;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->index - b->index;
}

/* Sorts everything and cuts, in the documented order: top_k, top_p, min_p. Returns how many are left; `*close` where a
 * cut lies so near an entry that rounding may decide it either way. */
static int plain_truncation(const float *logits, int n, const bee_sampling *s, Entry *entries, bool *close) {
    for (int i = 0; i < n; i++) entries[i] = (Entry){logits[i], i};
    qsort(entries, (size_t)n, sizeof *entries, by_rank);
    int count = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    const double top = entries[0].logit;
    if (s->top_p < 1) {
        double total = 0, sum = 0;
        for (int i = 0; i < count; i++) total += exp(entries[i].logit - top);
        int kept = 0;
        while (kept < count && sum < s->top_p * total) {
            sum += exp(entries[kept++].logit - top);
            if (fabs(sum - s->top_p * total) < 1e-5 * total) *close = true;
        }
        count = kept;
    }
    int kept = 0;
    while (kept < count && exp(entries[kept].logit - top) >= s->min_p) kept++;
    for (int i = 0; i < count && s->min_p > 0; i++)
        if (fabs(exp(entries[i].logit - top) / s->min_p - 1) < 1e-5 && entries[i].logit < top) *close = true;
    return s->min_p > 0 ? kept : count;
}

/* The draw over the first `count` entries, every score computed. */
static int plain_draw(const Entry *entries, int count, const int32_t *ids, const bee_sampling *s, int position) {
    int best = -1;
    double best_score = 0;
    for (int i = 0; i < count; i++) {
        const int token = ids ? ids[entries[i].index] : entries[i].index;
        const double score = entries[i].logit * (1.0 / s->temperature) + gumbel_noise(s->seed, position, token);
        if (best >= 0 && (score < best_score || (score == best_score && entries[i].index > best))) continue;
        best = entries[i].index;
        best_score = score;
    }
    return ids ? ids[best] : best;
}

static void random_logits(Random *random, int n, float *logits) {
    const double spread = 0.1 * pow(200, random_unit(random)); /* 0.1 to 20 */
    const bool coarse = random_below(random, 3) == 0;          /* many equal logits */
    for (int i = 0; i < n; i++) {
        const double x = spread * random_normal(random);
        logits[i] = (float)(coarse ? 4 * round(x / 4) : x);
        if (random_below(random, 100) == 0) logits[i] = -INFINITY;
    }
    logits[random_below(random, n)] = (float)(3 * spread);
}

static bee_sampling random_sampling(Random *random) {
    bee_sampling s = {
        .temperature = (float)pow(10, 2 * random_unit(random) - 1), .top_p = 1, .seed = random_bits(random)};
    if (random_below(random, 2)) s.top_k = 1 + random_below(random, 60);
    if (random_below(random, 2)) s.top_p = (float)(1 - 0.999 * random_unit(random) * random_unit(random));
    if (random_below(random, 2)) s.min_p = (float)pow(random_unit(random), 3);
    if (random_below(random, 20) == 0) s.min_p = 1;
    if (random_below(random, 20) == 0) s.top_p = 1e-6f;
    return s;
}

/* Distinct ids far above the entries, in no order. */
static void reduced_ids(Random *random, int n, int32_t *ids) {
    for (int i = 0; i < n; i++) ids[i] = 1000 + 7 * i;
    for (int i = n; i-- > 1;) {
        const int j = random_below(random, i + 1);
        const int32_t swap = ids[i];
        ids[i] = ids[j];
        ids[j] = swap;
    }
}

static void test_against_plain(void) {
    Random random = {2};
    static float logits[MOST_TOKENS];
    static Entry entries[MOST_TOKENS];
    static int32_t ids[MOST_TOKENS];
    int left_out = 0, cut = 0;
    enum { CASES = 6000 };
    for (int c = 0; c < CASES; c++) {
        const int n = 1 + random_below(&random, MOST_TOKENS);
        random_logits(&random, n, logits);
        const bee_sampling s = random_sampling(&random);
        const int32_t *map = random_below(&random, 2) ? ids : NULL;
        reduced_ids(&random, n, ids);
        bool close = false;
        const int count = plain_truncation(logits, n, &s, entries, &close);
        left_out += close;
        cut += count < n;
        for (int position = 0; position < 3 && !close; position++)
            if (!CHECK_EQ(sample_row(logits, n, map, &s, position, &reductions),
                          plain_draw(entries, count, map, &s, position)))
                printf("    case %d: n %d, top_k %d, top_p %g, min_p %g, %d left\n", c, n, s.top_k, (double)s.top_p,
                       (double)s.min_p, count);
    }
    CHECK(left_out < CASES / 10); /* coarse logits put equal sums on the cut now and then */
    CHECK(cut > CASES / 2);
}

/* Rows in parts, with what the instruction sets rule out, choose what a whole row without such help does. */
static void test_parts(const Kernels *kernels) {
    const Reductions quick = {kernels->largest, kernels->sum_exp, kernels->may_win};
    Random random = {11};
    enum { N = 3000, PARTS = 5 };
    static float logits[N];
    static int32_t ids[N];
    static Candidate room[N];
    for (int c = 0; c < 400; c++) {
        const float spread = (float)pow(10, 2 * random_unit(&random) - 1), middle = c % 7 ? 0 : 1000;
        for (int i = 0; i < N; i++) logits[i] = middle + spread * (float)random_normal(&random);
        if (c % 5 == 0) logits[random_below(&random, N)] = -INFINITY;
        reduced_ids(&random, N, ids);
        const bee_sampling s = {.temperature = c % 9 ? (float)pow(10, 3 * random_unit(&random) - 2) : 0,
                                .top_p = c % 4 ? 1 : 0.9F,
                                .seed = random_bits(&random)};
        const int32_t *map = c % 2 ? ids : NULL;
        const Draw draw = {logits, map, N, &s, c, &quick};
        Best parts[PARTS];
        int cuts[PARTS + 1] = {0};
        for (int i = 1; i <= PARTS; i++) cuts[i] = i == PARTS ? N : cuts[i - 1] + 1 + random_below(&random, 600);
        for (int i = 0; i < PARTS; i++) parts[i] = sample_part(&draw, cuts[i], cuts[i + 1]);
        if (!CHECK_EQ(sample_finish(&draw, parts, PARTS, room), sample_row(logits, N, map, &s, c, &reductions)))
            printf("    %s, case %d\n", kernels->name, c);
    }
}

/* ---- properties ------------------------------------------------------------------------------------- */

static void test_greedy(void) {
    const float logits[] = {1, 3, -2, 3, 0};
    const int32_t ids[] = {50, 40, 30, 20, 10};
    bee_sampling s = {.temperature = 0, .top_k = 1, .top_p = 0.1f, .min_p = 0.5f, .seed = 9};
    for (int position = 0; position < 50; position++) {
        CHECK_EQ(sample_row(logits, 5, NULL, &s, position, &reductions), 1); /* equal: the lower entry */
        CHECK_EQ(sample_row(logits, 5, ids, &s, position, &reductions), 40);
    }
}

/* Infinite and undefined logits are refused, at any place and by any path; minus infinity is a token that never
 * comes. */
static void test_not_finite(void) {
    static const bee_sampling samplings[] = {
        {.temperature = 0, .top_p = 1},
        {.temperature = 1, .top_p = 1, .seed = 3},
        {.temperature = 1, .top_k = 2, .top_p = 0.9f, .min_p = 0.1f, .seed = 3},
    };
    for (size_t i = 0; i < 3; i++)
        for (int place = 0; place < 40; place++) {
            float logits[40];
            for (int t = 0; t < 40; t++) logits[t] = (float)(t % 7);
            logits[place] = NAN;
            CHECK_EQ(sample_row(logits, 40, NULL, &samplings[i], 5, &reductions), -1);
            logits[place] = INFINITY;
            CHECK_EQ(sample_row(logits, 40, NULL, &samplings[i], 5, &reductions), -1);
            for (int t = 0; t < 40; t++) logits[t] = -INFINITY;
            CHECK_EQ(sample_row(logits, 40, NULL, &samplings[i], 5, &reductions), -1);
            logits[place] = -5;
            for (int position = 0; position < 20; position++)
                CHECK_EQ(sample_row(logits, 40, NULL, &samplings[i], position, &reductions), place);
        }
}

/* The noise of a token is its own: other entries, and the order of the head's rows, do not matter. */
static void test_order_of_rows(void) {
    Random random = {4};
    float logits[64], permuted[64];
    int32_t ids[64];
    for (int c = 0; c < 500; c++) {
        for (int i = 0; i < 64; i++) logits[i] = (float)random_normal(&random);
        reduced_ids(&random, 64, ids);
        for (int i = 0; i < 64; i++) ids[i] = (ids[i] - 1000) / 7, permuted[i] = logits[ids[i]];
        const bee_sampling s = {.temperature = 0.7f, .top_p = 1, .seed = random_bits(&random)};
        CHECK_EQ(sample_row(logits, 64, NULL, &s, c, &reductions), sample_row(permuted, 64, ids, &s, c, &reductions));
    }
}

/* ---- distributions ---------------------------------------------------------------------------------- */

/* The noise of 100000 (position, token) pairs: mean is Euler's constant, variance pi^2 / 6. The means of N values
 * scatter by sqrt(variance / N), the variances by about sqrt(kurtosis 4.4 / N) of themselves; five of either are
 * allowed. */
static void test_noise(void) {
    enum { N = 100000 };
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) {
        const double g = gumbel_noise(7, i / 100, i % 100);
        CHECK(isfinite(g));
        sum += g;
        squares += g * g;
    }
    const double mean = sum / N, variance = squares / N - mean * mean, expected = 9.869604401089358 / 6;
    CHECK_NEAR(mean, 0.5772156649015329, 5 * sqrt(expected / N));
    CHECK_NEAR(variance / expected, 1, 5 * sqrt(4.4 / N));
    CHECK(gumbel_noise(7, 1, 2) == gumbel_noise(7, 1, 2));
    CHECK(gumbel_noise(7, 1, 2) != gumbel_noise(7, 2, 1));
    CHECK(gumbel_noise(7, 1, 2) != gumbel_noise(8, 1, 2));
}

/* Draws against the softmax of what the truncations leave. With k - 1 degrees of freedom chi-square has mean k - 1 and
 * variance 2 (k - 1); six deviations above the mean is a chance below 1e-5 for the k here, and the seeds are fixed. */
static void chi_square(const float *logits, int n, bee_sampling s, bool over_seeds) {
    enum { DRAWS = 20000 };
    Entry entries[MOST_TOKENS];
    bool close = false;
    const int kept = plain_truncation(logits, n, &s, entries, &close);
    CHECK(!close);
    double weight[MOST_TOKENS] = {0}, total = 0;
    for (int i = 0; i < kept; i++)
        total += weight[entries[i].index] = exp((entries[i].logit - logits[0]) / s.temperature);
    int seen[MOST_TOKENS] = {0};
    for (int i = 0; i < DRAWS; i++) {
        if (over_seeds) s.seed++;
        seen[sample_row(logits, n, NULL, &s, over_seeds ? 17 : i, &reductions)]++;
    }
    double statistic = 0;
    for (int i = 0; i < n; i++) {
        const double expected = DRAWS * weight[i] / total;
        if (weight[i] == 0) {
            CHECK_EQ(seen[i], 0);
        } else {
            CHECK(expected >= 5);
            statistic += (seen[i] - expected) * (seen[i] - expected) / expected;
        }
    }
    if (!CHECK(statistic < kept - 1 + 6 * sqrt(2.0 * (kept - 1))))
        printf("    chi-square %g for %d tokens\n", statistic, kept);
}

static void test_distribution(void) {
    float logits[24];
    for (int i = 0; i < 24; i++) logits[i] = (float)(2.0 * sin(i * 1.7) + 0.3 * i / 24);
    for (int over_seeds = 0; over_seeds < 2; over_seeds++) {
        chi_square(logits, 24, (bee_sampling){.temperature = 1, .top_p = 1, .seed = 11}, over_seeds);
        chi_square(logits, 24, (bee_sampling){.temperature = 3, .top_p = 1, .seed = 12}, over_seeds);
        chi_square(logits, 24, (bee_sampling){.temperature = 0.8f, .top_k = 7, .top_p = 1, .seed = 13}, over_seeds);
        chi_square(logits, 24, (bee_sampling){.temperature = 1, .top_p = 0.8f, .seed = 14}, over_seeds);
        chi_square(logits, 24, (bee_sampling){.temperature = 1.5f, .top_p = 1, .min_p = 0.3f, .seed = 15}, over_seeds);
    }
}

static void test_parameters(void) {
    static const struct {
        bee_sampling sampling;
        const char *part; /* NULL: accepted */
    } cases[] = {
        {{.temperature = 0, .top_p = 1}, NULL},
        {{.temperature = 100, .top_k = 5, .top_p = 0.01f, .min_p = 1}, NULL},
        {{.temperature = -0.1f, .top_p = 1}, "temperature is -0.1; it must lie between 0 and 100"},
        {{.temperature = NAN, .top_p = 1}, "temperature"},
        {{.temperature = INFINITY, .top_p = 1}, "temperature"},
        {{.top_k = -1, .top_p = 1}, "top_k is -1"},
        {{.top_p = 0}, "top_p is 0; it must be above 0"},
        {{.top_p = 1.01f}, "top_p"},
        {{.top_p = NAN}, "top_p"},
        {{.top_p = 1, .min_p = -0.5f}, "min_p is -0.5"},
        {{.top_p = 1, .min_p = NAN}, "min_p"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bee_error error = {BEE_OK, ""};
        CHECK_EQ(sampling_check(&cases[i].sampling, &error), cases[i].part ? BEE_ERROR_ARGUMENT : BEE_OK);
        if (cases[i].part) CHECK_CONTAINS(error.message, cases[i].part);
        CHECK_EQ(sampling_check(&cases[i].sampling, NULL), cases[i].part ? BEE_ERROR_ARGUMENT : BEE_OK);
    }
}

int main(void) {
    test_against_plain();
    for (const char *const *name = bee_instruction_sets(); *name; name++) test_parts(kernels_named(*name));
    test_greedy();
    test_not_finite();
    test_order_of_rows();
    test_noise();
    test_distribution();
    test_parameters();
    return check_report();
}
