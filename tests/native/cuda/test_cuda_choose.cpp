/* Tokens chosen on the device, and what a cycle accepts, against the CPU's rules. */
#include "cuda/kernels.h"

extern "C" {
#include "sampling/sample.h"
}

#include "../check.h"
#include "../random.h"
#include "device_array.h"

#include <algorithm>
#include <cstdlib>

/* ---- references --------------------------------------------------------------------------------- */

static float largest_of(const float *x, int n) {
    float largest = x[0];
    for (int i = 0; i < n; i++) {
        if (std::isnan(x[i])) return x[i];
        if (x[i] > largest) largest = x[i];
    }
    return largest;
}

static float sum_exp_of(const float *x, int n, float shift) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - shift);
    return (float)sum;
}

static bool may_always_win(const float *, const int32_t *, int32_t, float, float, uint64_t, float) { return true; }

static const Reductions reductions = {largest_of, sum_exp_of, may_always_win};

static int32_t sampled(const float *row, int n, const int32_t *ids, const bee_sampling &sampling, int32_t position) {
    const Draw draw = {row, ids, n, &sampling, position, &reductions};
    const Best whole = sample_part(&draw, 0, n);
    std::vector<Candidate> room((size_t)n);
    return sample_finish(&draw, &whole, 1, room.data());
}

static bool is_truncated(const bee_sampling &s) {
    return s.temperature > 0 && (s.top_k > 0 || s.top_p < 1 || s.min_p > 0);
}

static size_t nucleus_of(const std::vector<float> &ranked, double top_p, bool *close) {
    double total = 0, sum = 0;
    for (float logit : ranked) total += exp((double)logit - ranked[0]);
    size_t kept = 0;
    for (size_t i = 0; i < ranked.size(); i++) {
        sum += exp((double)ranked[i] - ranked[0]);
        if (fabs(sum - top_p * total) < 1e-6 * total) *close = true;
        if (!kept && sum >= top_p * total) kept = i + 1;
    }
    return kept ? kept : ranked.size();
}

/* By the letter: all entries in the order of rank. `close`: the end of the nucleus is a matter of rounding. */
static int32_t truncated(const float *row, int n, const int32_t *ids, const bee_sampling &s, int32_t position,
                         bool *close) {
    const float largest = largest_of(row, n);
    if (!std::isfinite(largest)) return -1;
    std::vector<int> order;
    for (int i = 0; i < n; i++)
        if (row[i] > -INFINITY) order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    if (s.top_k > 0 && (size_t)s.top_k < order.size()) order.resize((size_t)s.top_k);
    if (s.top_p < 1) {
        std::vector<float> ranked;
        for (int entry : order) ranked.push_back(row[entry]);
        order.resize(nucleus_of(ranked, s.top_p, close));
    }
    while (s.min_p > 0 && order.size() > 1 && row[order.back()] < largest + logf(s.min_p)) order.pop_back();
    std::sort(order.begin(), order.end());
    const double inverse = 1.0 / s.temperature;
    double best = 0;
    int chosen = -1;
    for (int entry : order) {
        const double score = row[entry] * inverse + gumbel_noise(s.seed, position, ids ? ids[entry] : entry);
        if (chosen < 0 || score > best) chosen = entry, best = score;
    }
    return ids ? ids[chosen] : chosen;
}

/* ---- choices ------------------------------------------------------------------------------------ */

enum { N_KINDS = 12 };

static void fill_row(Random *r, float *row, int n, int kind) {
    for (int i = 0; i < n; i++) {
        const double x = random_normal(r);
        switch (kind) {
        case 0: row[i] = (float)(x * 3); break;
        case 1: row[i] = (float)random_below(r, 4); break; /* ties */
        case 2: row[i] = random_below(r, 3) ? -INFINITY : (float)x; break;
        case 3: row[i] = -INFINITY; break;
        case 4: row[i] = (float)(x * 1e37); break;
        case 5: row[i] = (float)(x * 12 - 1000); break;
        case 6: row[i] = random_below(r, 2) ? 0.0f : -0.0f; break;
        case 7: row[i] = (float)(x * 1e-3); break;                                /* flat: too many for a list */
        case 8: row[i] = (float)(random_below(r, 4) ? x * 1e-3 : x * 0.5); break; /* the same, and others */
        case 9: row[i] = i < 3 ? (float)x : -INFINITY; break;
        default: row[i] = (float)(x * 2); break;
        }
    }
    if (kind == 10) row[random_below(r, n)] = NAN;
    if (kind == 11) row[random_below(r, n)] = INFINITY;
}

static bee_sampling sampling_of(Random *r, int kind) {
    bee_sampling s = {};
    s.top_p = 1;
    s.seed = random_bits(r);
    static const float temperatures[] = {1, 0.7f, 0.01f, 2.5f, 100, 1e-30f};
    if (kind) s.temperature = temperatures[random_below(r, 6)];
    if (kind >= 2 && kind % 2 == 0) s.top_k = 1 + random_below(r, kind > 6 ? 3000 : 50);
    static const float shares[] = {0.95f, 0.5f, 0.1f, 0.999f, 1e-6f};
    if (kind == 3 || kind == 4 || kind == 7 || kind == 8) s.top_p = shares[random_below(r, 5)];
    static const float smallest[] = {0.05f, 1, 1e-4f, 0.5f};
    if (kind == 5 || kind == 6 || kind == 7) s.min_p = smallest[random_below(r, 4)];
    return s;
}

/* Rows of logits and what is wanted of them. */
struct Case {
    int n_vocab, n;
    size_t stride;
    std::vector<float> logits;
    std::vector<int32_t> ids;
    std::vector<DeviceChoice> choices;
    std::vector<std::vector<uint32_t>> masks;
    std::vector<std::vector<DeviceEdit>> edits;
    bool truncates = false, edited = false;

    Case(int vocab, int rows) : n_vocab(vocab), n(rows), stride((size_t)vocab + 3) {
        logits.assign(stride * (size_t)n, NAN);
        choices.assign((size_t)n, DeviceChoice{});
        masks.resize((size_t)n);
        edits.resize((size_t)n);
        for (int i = 0; i < n; i++) {
            choices[(size_t)i].logits_row = i;
            choices[(size_t)i].n_top = -1;
        }
    }
    float *row(int i) { return logits.data() + (size_t)choices[(size_t)i].logits_row * stride; }
};

struct Outcome {
    std::vector<int32_t> tokens;
    std::vector<DeviceReport> reports;
};

static Outcome chosen_on_device(const Case &c) {
    DeviceArray<float> logits(c.logits);
    DeviceArray<int32_t> ids(c.ids), tokens((size_t)c.n);
    DeviceArray<DeviceReport> reports((size_t)c.n);
    DeviceArray<unsigned char> scratch(choice_scratch_size(c.n, c.n_vocab));
    MUST(cudaMemsetAsync(scratch.at, 0, scratch.n, stream));
    std::vector<DeviceChoice> choices = c.choices;
    std::vector<DeviceArray<uint32_t> *> masks;
    std::vector<DeviceArray<DeviceEdit> *> edits;
    for (size_t i = 0; i < choices.size(); i++) {
        if (!c.masks[i].empty()) {
            masks.push_back(new DeviceArray<uint32_t>(c.masks[i]));
            choices[i].mask = masks.back()->at;
        }
        if (c.edits[i].empty()) continue;
        edits.push_back(new DeviceArray<DeviceEdit>(c.edits[i]));
        choices[i].edits = edits.back()->at;
        choices[i].n_edits = (int32_t)c.edits[i].size();
    }
    DeviceArray<DeviceChoice> on_device(choices);
    queue_choose(stream, logits.at, c.stride, c.n_vocab, c.ids.empty() ? nullptr : ids.at, on_device.at, c.n,
                 c.truncates, c.edited, scratch.at, tokens.at, reports.at);
    Outcome out = {tokens.get(), reports.get()};
    MUST(cudaGetLastError());
    for (auto *mask : masks) delete mask;
    for (auto *edit : edits) delete edit;
    return out;
}

/* The row that tokens are chosen from. */
static std::vector<float> prepared(const Case &c, int i) {
    const DeviceChoice &choice = c.choices[(size_t)i];
    const float *from = c.logits.data() + (size_t)choice.logits_row * c.stride;
    std::vector<float> row(from, from + c.n_vocab);
    for (const DeviceEdit &e : c.edits[(size_t)i]) {
        float logit = row[(size_t)e.token] + e.bias;
        logit = logit > 0 ? logit / e.repetition : logit * e.repetition;
        row[(size_t)e.token] = logit - e.penalty;
    }
    const std::vector<uint32_t> &mask = c.masks[(size_t)i];
    for (int entry = 0; !mask.empty() && entry < c.n_vocab; entry++) {
        const int token = c.ids.empty() ? entry : c.ids[(size_t)entry];
        if (!(mask[(size_t)token / 32] >> token % 32 & 1)) row[(size_t)entry] = -INFINITY;
    }
    return row;
}

static int n_close;

static void check_tokens(const Case &c, const Outcome &out) {
    for (int i = 0; i < c.n; i++) {
        const DeviceChoice &choice = c.choices[(size_t)i];
        const std::vector<float> row = prepared(c, i);
        const int32_t *ids = c.ids.empty() ? nullptr : c.ids.data();
        const int32_t cpu = sampled(row.data(), c.n_vocab, ids, choice.sampling, choice.position);
        if (!is_truncated(choice.sampling)) {
            CHECK_EQ(out.tokens[(size_t)i], cpu);
            continue;
        }
        bool close = false;
        const int32_t exact = truncated(row.data(), c.n_vocab, ids, choice.sampling, choice.position, &close);
        if (close && (out.tokens[(size_t)i] != exact || cpu != exact)) {
            n_close++;
            continue;
        }
        if (!CHECK_EQ(out.tokens[(size_t)i], exact))
            printf("    vocabulary %d, row %d: temperature %g, top_k %d, top_p %g, min_p %g\n", c.n_vocab, i,
                   (double)choice.sampling.temperature, choice.sampling.top_k, (double)choice.sampling.top_p,
                   (double)choice.sampling.min_p);
        if (!close) CHECK_EQ(cpu, exact);
    }
}

/* What comes out is the same in every order of threads, and for every row alone. */
static void check_independence(const Case &c, const Outcome &out) {
    for (int order = 1; order <= 2; order++) {
        set_order(order);
        const Outcome again = chosen_on_device(c);
        CHECK(again.tokens == out.tokens);
        for (int i = 0; c.edited && i < c.n; i++)
            if (c.choices[(size_t)i].n_top >= 0 && !std::isnan(out.reports[(size_t)i].log_sum))
                CHECK_EQ(memcmp(&again.reports[(size_t)i].log_sum, &out.reports[(size_t)i].log_sum, sizeof(double)), 0);
    }
    set_order(0);
    for (int i = 0; i < c.n; i += 5) {
        Case alone(c.n_vocab, 1);
        alone.logits = c.logits;
        alone.ids = c.ids;
        alone.choices[0] = c.choices[(size_t)i];
        alone.masks[0] = c.masks[(size_t)i];
        alone.edits[0] = c.edits[(size_t)i];
        alone.edited = !alone.masks[0].empty() || !alone.edits[0].empty() || alone.choices[0].n_top >= 0;
        alone.truncates = is_truncated(alone.choices[0].sampling);
        CHECK_EQ(chosen_on_device(alone).tokens[0], out.tokens[(size_t)i]);
    }
}

static void check_report_of(const Case &c, int i, int32_t token, const DeviceReport &report) {
    const int n_top = c.choices[(size_t)i].n_top;
    const float *row = c.logits.data() + (size_t)c.choices[(size_t)i].logits_row * c.stride;
    const float largest = largest_of(row, c.n_vocab);
    if (n_top < 0 || !std::isfinite(largest)) return;
    std::vector<int> order((size_t)c.n_vocab);
    double sum = 0;
    for (int entry = 0; entry < c.n_vocab; entry++) {
        order[(size_t)entry] = entry;
        sum += exp((double)row[entry] - largest);
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    CHECK_EQ(report.n_top, n_top < c.n_vocab ? n_top : c.n_vocab);
    for (int k = 0; k < report.n_top; k++) {
        CHECK_EQ(report.top_tokens[k], order[(size_t)k]);
        CHECK(report.top_logits[k] == row[order[(size_t)k]]);
    }
    CHECK_NEAR(report.log_sum, largest + log(sum), 2e-7 + 1e-15 * fabs((double)largest));
    CHECK(report.chosen_logit == (token < 0 ? -INFINITY : row[token]));
}

static void add_mask(Random *r, Case *c, int i, int n_tokens) {
    std::vector<uint32_t> &mask = c->masks[(size_t)i];
    mask.resize((size_t)(n_tokens + 31) / 32);
    const int rare = random_below(r, 3);
    for (uint32_t &word : mask) {
        word = (uint32_t)random_bits(r);
        if (rare) word &= (uint32_t)(random_bits(r) & random_bits(r) & random_bits(r));
        if (rare == 2 && random_below(r, 20)) word = 0;
    }
}

static void add_edits(Random *r, Case *c, int i) {
    for (int token = random_below(r, 3); token < c->n_vocab; token += 1 + random_below(r, 5)) {
        DeviceEdit edit = {token, 0, 1, 0};
        if (random_below(r, 2)) edit.bias = (float)(random_normal(r) * 5);
        if (random_below(r, 2)) edit.repetition = 1.3f;
        if (random_below(r, 2)) edit.penalty = 0.4f * (float)random_below(r, 4);
        if (!random_below(r, 10)) edit.bias = -INFINITY;
        c->edits[(size_t)i].push_back(edit);
    }
    for (size_t k = c->edits[(size_t)i].size(); k > 1; k--) /* in no order */
        std::swap(c->edits[(size_t)i][k - 1], c->edits[(size_t)i][(size_t)random_below(r, (int)k)]);
}

static void fill_case(Random *r, Case *c, int first_kind) {
    for (int i = 0; i < c->n; i++) {
        fill_row(r, c->row(i), c->n_vocab, (first_kind + i) % N_KINDS);
        DeviceChoice &choice = c->choices[(size_t)i];
        choice.sampling = sampling_of(r, random_below(r, 4) ? random_below(r, 9) : random_below(r, 2));
        choice.position = random_below(r, 100000);
        c->truncates = c->truncates || is_truncated(choice.sampling);
    }
}

/* Distinct tokens in no order. */
static void add_ids(Random *r, Case *c) {
    c->ids.resize((size_t)c->n_vocab);
    for (int i = 0; i < c->n_vocab; i++) c->ids[(size_t)i] = 3 * i + random_below(r, 3);
    for (int i = c->n_vocab; i > 1; i--) std::swap(c->ids[(size_t)i - 1], c->ids[(size_t)random_below(r, i)]);
}

static void test_plain() {
    Random r = {1};
    static const int vocabularies[] = {1, 5, 97, 1000, 50000};
    for (int n_vocab : vocabularies)
        for (int round = 0; round < (n_vocab > 1000 ? 2 : 6); round++) {
            Case c(n_vocab, n_vocab > 1000 ? N_KINDS + 4 : 3 * N_KINDS);
            fill_case(&r, &c, round);
            for (int i = 0; i < c.n; i++) { /* rows in another order than choices */
                std::swap(c.choices[(size_t)i].logits_row, c.choices[(size_t)random_below(&r, c.n)].logits_row);
            }
            if (round % 2) add_ids(&r, &c);
            const Outcome out = chosen_on_device(c);
            check_tokens(c, out);
            if (round == 1) check_independence(c, out);
        }
}

/* Without truncations the kernels for them are not queued. */
static void test_untruncated() {
    Random r = {2};
    for (int round = 0; round < 20; round++) {
        Case c(1 + random_below(&r, 3000), N_KINDS);
        fill_case(&r, &c, round);
        for (DeviceChoice &choice : c.choices) choice.sampling = sampling_of(&r, random_below(&r, 2));
        c.truncates = false;
        check_tokens(c, chosen_on_device(c));
    }
}

/* The cut lies among more entries of one depth than are listed, and others are above and below them. */
static void test_crowded() {
    Random r = {6};
    Case c(12000, 12);
    c.truncates = true;
    for (int i = 0; i < c.n; i++) {
        for (int k = 0; k < c.n_vocab; k++) {
            const double x = random_normal(&r);
            c.row(i)[k] = (float)(random_below(&r, 4) ? 3 + x * 1e-3 : 3 + x * 0.2);
        }
        c.choices[(size_t)i].sampling = {};
        c.choices[(size_t)i].sampling.temperature = 100;
        c.choices[(size_t)i].sampling.top_k = i % 3 ? 0 : 2000 + 700 * i;
        c.choices[(size_t)i].sampling.top_p = i % 3 ? 0.2f + 0.05f * (float)i : 1;
        c.choices[(size_t)i].sampling.seed = (uint64_t)i;
    }
    check_tokens(c, chosen_on_device(c));
}

static void test_edits() {
    Random r = {3};
    for (int round = 0; round < 18; round++) {
        static const int vocabularies[] = {1, 5, 97, 1000, 3001, 12000};
        Case c(vocabularies[round % 6], N_KINDS);
        fill_case(&r, &c, round);
        const bool ids = round % 4 == 3;
        if (ids) add_ids(&r, &c);
        c.edited = true;
        for (int i = 0; i < c.n; i++) {
            if (random_below(&r, 2)) add_mask(&r, &c, i, ids ? 3 * c.n_vocab : c.n_vocab);
            if (!ids && random_below(&r, 3)) add_edits(&r, &c, i);
            if (!ids && random_below(&r, 4)) c.choices[(size_t)i].n_top = random_below(&r, BEE_MAX_TOP_LOGPROBS + 1);
        }
        const Outcome out = chosen_on_device(c);
        check_tokens(c, out);
        for (int i = 0; i < c.n; i++) check_report_of(c, i, out.tokens[(size_t)i], out.reports[(size_t)i]);
        if (round < 6) check_independence(c, out);
    }
}

/* ---- the cycle ---------------------------------------------------------------------------------- */

struct Stage {
    DeviceArray<DeviceSession> session{1};
    DeviceArray<DeviceRow> rows{BEE_MAX_BLOCK};
    DeviceArray<DeviceRun> run{1};
    DeviceArray<DeviceChoice> choices{BEE_MAX_BLOCK};
    DeviceArray<int32_t> drafts{BEE_MAX_BLOCK}, chosen{BEE_MAX_BLOCK};
    CycleResult *results = nullptr;
    Stage() { MUST(cudaHostAlloc((void **)&results, 2 * sizeof *results, cudaHostAllocDefault)); }
    ~Stage() { cudaFreeHost(results); }
};

static uint8_t *fake_pointer(uintptr_t value) { return (uint8_t *)(value << 12); }

static DeviceCache fake_cache(uintptr_t first) {
    DeviceCache cache = {};
    for (uintptr_t r = 0; r < CACHE_REGIONS; r++) {
        cache.keys[r] = fake_pointer(first + 2 * r), cache.values[r] = fake_pointer(first + 2 * r + 1);
        cache.n_positions[r] = (int32_t)(1024 * (first + r));
        cache.position_bytes[r] = 64 * (first + r) + 64;
    }
    cache.n_ctx = (int32_t)(1024 * first - 100);
    cache.states = (float *)fake_pointer(first + 5), cache.kept = (float *)fake_pointer(first + 6);
    return cache;
}

static bool same_cache(const DeviceCache &a, const DeviceCache &b) {
    bool same = a.n_ctx == b.n_ctx && a.states == b.states && a.kept == b.kept;
    for (int r = 0; r < CACHE_REGIONS; r++)
        same = same && a.keys[r] == b.keys[r] && a.values[r] == b.values[r] && a.n_positions[r] == b.n_positions[r] &&
               a.position_bytes[r] == b.position_bytes[r];
    return same;
}

static DeviceSession session_new(Random *r) {
    DeviceSession s = {};
    s.sampling = sampling_of(r, random_below(r, 9));
    s.last_token = random_below(r, 1000);
    s.n_cached = random_below(r, 1000);
    s.output_left = 1 + random_below(r, 60);
    s.context_left = 1 + random_below(r, 80);
    s.n_stop_tokens = random_below(r, 3) ? random_below(r, BEE_MAX_STOP_TOKENS + 1) : 0;
    for (int i = 0; i < s.n_stop_tokens; i++) s.stop_tokens[i] = 900 + random_below(r, 100);
    s.mask_token = 777;
    s.causal = random_below(r, 2);
    s.cache = fake_cache(1), s.draft_cache = fake_cache(10);
    s.end.n_kept = 1 + random_below(r, CACHE_KEPT_ROWS);
    s.end.position = s.n_cached - random_below(r, s.end.n_kept + 1);
    return s;
}

static void check_row(const DeviceRow &row, const DeviceSession &s, bool draft, int32_t token, int32_t position,
                      int32_t n_visible) {
    CHECK(same_cache(row.cache, draft ? s.draft_cache : s.cache));
    CHECK_EQ(row.token, token);
    CHECK_EQ(row.position, position);
    CHECK_EQ(row.n_visible, n_visible);
}

static void check_choice(const DeviceChoice &choice, const DeviceSession &s, int i) {
    CHECK(choice.sampling.seed == s.sampling.seed && choice.sampling.temperature == s.sampling.temperature);
    CHECK(choice.sampling.top_k == s.sampling.top_k && choice.sampling.top_p == s.sampling.top_p);
    CHECK_EQ(choice.position, s.n_cached + 1 + i);
    CHECK_EQ(choice.logits_row, i);
    CHECK(!choice.mask && !choice.edits && !choice.n_edits && choice.n_top == -1);
}

/* Of the rows that are kept those before the pass count; of a finished session there are no rows. */
static void check_run(const DeviceRun &run, const DeviceSession &s, int n_drafts) {
    CHECK(run.states == s.cache.states && run.kept == s.cache.kept);
    CHECK_EQ(run.first, 0);
    CHECK_EQ(run.n, s.finished ? 0 : n_drafts + 1);
    CHECK_EQ(run.end.position, s.end.position);
    CHECK_EQ(run.end.n_kept, s.n_cached - s.end.position);
}

/* Idle rows, where the session has finished. */
static void check_rows(Stage *stage, const DeviceSession &s, int n_drafts, const std::vector<int32_t> &drafts) {
    queue_draft_rows(stream, stage->session.at, n_drafts, stage->rows.at, stage->choices.at);
    std::vector<DeviceRow> rows = stage->rows.get();
    std::vector<DeviceChoice> choices = stage->choices.get();
    for (int i = 0; i <= n_drafts; i++) {
        const int position = s.n_cached + i;
        if (s.finished)
            check_row(rows[(size_t)i], s, true, s.last_token, -1, 1);
        else
            check_row(rows[(size_t)i], s, true, i ? s.mask_token : s.last_token, position,
                      s.causal ? position + 1 : s.n_cached + n_drafts + 1);
        if (i < n_drafts) check_choice(choices[(size_t)i], s, i);
    }
    queue_verify_rows(stream, stage->session.at, n_drafts, stage->drafts.at, stage->rows.at, stage->choices.at,
                      stage->run.at);
    check_run(stage->run.get()[0], s, n_drafts);
    rows = stage->rows.get();
    choices = stage->choices.get();
    for (int i = 0; i <= n_drafts; i++) {
        const int32_t draft = i ? std::max(drafts[(size_t)i - 1], 0) : s.last_token;
        if (s.finished)
            check_row(rows[(size_t)i], s, false, s.last_token, -1, 1);
        else
            check_row(rows[(size_t)i], s, false, draft, s.n_cached + i, s.n_cached + i + 1);
        check_choice(choices[(size_t)i], s, i);
    }
}

/* agreed_tokens, finish_of and commit of src/engine/cycle.c. */
static void expect_accept(DeviceSession *s, int n_drafts, const std::vector<int32_t> &drafts,
                          const std::vector<int32_t> &chosen) {
    int n = 0;
    if (!s->finished) s->end = {s->n_cached, n_drafts + 1};
    while (!s->finished && n <= n_drafts) {
        const int32_t token = chosen[(size_t)n];
        if (token < 0) {
            s->finished = 1;
            break;
        }
        n++;
        s->last_token = token;
        for (int k = 0; k < s->n_stop_tokens; k++)
            if (s->stop_tokens[k] == token) s->finished = 1;
        if (n >= s->output_left || n >= s->context_left) s->finished = 1;
        if (n <= n_drafts && std::max(drafts[(size_t)n - 1], 0) != token) break;
    }
    s->n_new = n;
    s->n_cached += n;
    s->output_left -= n;
    s->context_left -= n;
    s->cycles++;
}

static void check_session(const DeviceSession &s, const DeviceSession &expected) {
    CHECK_EQ(s.last_token, expected.last_token);
    CHECK_EQ(s.n_cached, expected.n_cached);
    CHECK_EQ(s.output_left, expected.output_left);
    CHECK_EQ(s.context_left, expected.context_left);
    CHECK_EQ(s.n_new, expected.n_new);
    CHECK_EQ(s.finished, expected.finished);
    CHECK_EQ(s.cycles, expected.cycles);
    CHECK_EQ(s.end.position, expected.end.position);
    CHECK_EQ(s.end.n_kept, expected.end.n_kept);
    CHECK(same_cache(s.cache, expected.cache) && same_cache(s.draft_cache, expected.draft_cache));
    CHECK(s.n_stop_tokens == expected.n_stop_tokens && s.causal == expected.causal);
}

static void check_injection(const std::vector<DeviceRow> &rows, const DeviceSession &before, int n_drafts, int n_new,
                            const std::vector<int32_t> &chosen) {
    for (int i = 0; i <= n_drafts; i++) {
        const int position = before.n_cached + i;
        const int32_t token = i ? chosen[(size_t)i - 1] : before.last_token;
        if (i < n_new)
            check_row(rows[(size_t)i], before, true, token, position, position + 1);
        else
            check_row(rows[(size_t)i], before, true, before.last_token, -1, 1);
    }
}

static void check_result(const CycleResult &result, const DeviceSession &after, int n_drafts,
                         const std::vector<int32_t> &drafts, const std::vector<int32_t> &chosen) {
    CHECK_EQ(result.cycle, after.cycles);
    CHECK_EQ(result.n_drafts, n_drafts);
    CHECK_EQ(result.n_new, after.n_new);
    CHECK_EQ(result.finished, after.finished);
    CHECK(result.end.position == after.end.position && result.end.n_kept == after.end.n_kept);
    for (int i = 0; i < n_drafts; i++) CHECK_EQ(result.drafts[i], std::max(drafts[(size_t)i], 0));
    for (int i = 0; i <= n_drafts; i++) CHECK_EQ(result.tokens[i], chosen[(size_t)i]);
}

static void test_cycles() {
    Random r = {4};
    Stage stage;
    int n_finished = 0, n_whole = 0;
    for (int round = 0; round < 400; round++) {
        set_order(round % 3);
        DeviceSession s = session_new(&r);
        stage.session.put({s});
        for (int cycle = 0; cycle < 8; cycle++) {
            const int n_drafts = random_below(&r, BEE_MAX_BLOCK);
            std::vector<int32_t> drafts(BEE_MAX_BLOCK, -1), chosen(BEE_MAX_BLOCK, -1);
            const int same = random_below(&r, n_drafts + 2), wild = random_below(&r, 2);
            for (int i = 0; i < BEE_MAX_BLOCK; i++) {
                chosen[(size_t)i] = random_below(&r, wild ? 1000 : 900);
                drafts[(size_t)i] = i < same ? chosen[(size_t)i] : random_below(&r, 1000);
                if (!random_below(&r, 40)) drafts[(size_t)i] = -1, chosen[(size_t)i] = 0;
                if (!random_below(&r, 60)) chosen[(size_t)i] = -1;
            }
            stage.drafts.put(drafts);
            stage.chosen.put(chosen);
            check_rows(&stage, s, n_drafts, drafts);
            const DeviceSession before = s;
            expect_accept(&s, n_drafts, drafts, chosen);
            const bool injects = random_below(&r, 4);
            queue_accept(stream, stage.session.at, n_drafts, stage.drafts.at, stage.chosen.at, stage.results,
                         injects ? stage.rows.at : nullptr);
            check_session(stage.session.get()[0], s);
            check_result(stage.results[s.cycles % 2], s, n_drafts, drafts, chosen);
            if (injects) check_injection(stage.rows.get(), before, n_drafts, s.n_new, chosen);
            n_whole += s.n_new == n_drafts + 1;
        }
        n_finished += s.finished;
    }
    CHECK(n_finished > 50 && n_finished < 400 && n_whole > 100);
    set_order(0);
}

static void test_profile() {
    Random r = {5};
    Stage stage;
    DeviceSession s = session_new(&r);
    s.output_left = s.context_left = 1 << 30;
    s.n_stop_tokens = 0;
    s.has_profile = 1;
    for (int k = 0; k < BEE_MAX_BLOCK; k++) s.profile[k] = (float)(0.9 * pow(0.8, k));
    stage.session.put({s});
    enum { CYCLES = 10000, N_DRAFTS = 7 };
    std::vector<int> more(N_DRAFTS, 0); /* [k]: cycles that accepted more than k drafts */
    for (int cycle = 0; cycle < CYCLES; cycle++) {
        std::vector<int32_t> chosen(BEE_MAX_BLOCK);
        for (int32_t &token : chosen) token = random_below(&r, 1000);
        stage.chosen.put(chosen);
        stage.drafts.put(std::vector<int32_t>(BEE_MAX_BLOCK, 5));
        queue_accept(stream, stage.session.at, N_DRAFTS, stage.drafts.at, stage.chosen.at, stage.results, nullptr);
        MUST(cudaStreamSynchronize(stream));
        const CycleResult &result = stage.results[(cycle + 1) % 2];
        const int accepted = result.n_new - 1;
        if (!CHECK(accepted >= 0 && accepted <= N_DRAFTS && !result.finished)) return;
        bool agree = true;
        for (int i = 0; i < accepted; i++) agree = agree && result.drafts[i] == chosen[(size_t)i];
        if (accepted < N_DRAFTS) agree = agree && result.drafts[accepted] == (chosen[(size_t)accepted] ^ 1);
        CHECK(agree);
        for (int k = 0; k < accepted; k++) more[(size_t)k]++;
        if (cycle % 1000) continue;
        /* The same session draws the same number, whatever the tokens are. */
        const DeviceSession after = stage.session.get()[0];
        DeviceSession again = after;
        again.n_cached -= result.n_new;
        stage.session.put({again});
        stage.chosen.put(std::vector<int32_t>(BEE_MAX_BLOCK, 3));
        queue_accept(stream, stage.session.at, N_DRAFTS, stage.drafts.at, stage.chosen.at, stage.results, nullptr);
        CHECK_EQ(stage.session.get()[0].n_new, accepted + 1);
        stage.session.put({after});
    }
    for (int k = 0; k < N_DRAFTS; k++) CHECK_NEAR((double)more[(size_t)k] / CYCLES, (double)s.profile[k], 0.02);
}

int main() {
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    test_plain();
    test_untruncated();
    test_crowded();
    test_edits();
    printf("%d truncations ended within rounding\n", n_close);
    CHECK(n_close < 10);
    test_cycles();
    test_profile();
    cudaStreamDestroy(stream);
    return check_report();
}
