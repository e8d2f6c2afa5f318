/* Tests of the CUDA backend's recurrence.cu, on the host's emulation or on a device: the first rows of a sequence
 * against double precision within bounds that are computed beside it, and however the rows come in passes, drafts among
 * them that are rejected, against rows that come one by one, bit for bit. */
#include "cuda/kernels.h"
#include "device_array.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "../check.h"
#include "../random.h"
}

/* Largest relative errors of a rounding, and of CUDA's expf and log1pf. */
static const double U = 0x1p-24, FUNCTION_ERROR = 0x1p-22;

/* ---- numbers that know how far off they are ------------------------------------------------------- */

/* What exact arithmetic makes of it, and a bound of what float arithmetic is off by. */
struct Number {
    double x, error;
    Number(double value = 0, double off = 0) : x(value), error(off) {}
};

static Number rounded(double x, double error) { return {x, error + U * (fabs(x) + error)}; }
static Number operator+(Number a, Number b) { return rounded(a.x + b.x, a.error + b.error); }
static Number operator-(Number a, Number b) { return rounded(a.x - b.x, a.error + b.error); }
static Number operator*(Number a, Number b) {
    return rounded(a.x * b.x, fabs(a.x) * b.error + fabs(b.x) * a.error + a.error * b.error);
}
static Number operator/(Number a, Number b) {
    const double least = fabs(b.x) - b.error;
    return rounded(a.x / b.x, (a.error + fabs(a.x / b.x) * b.error) / least);
}
static Number root(Number a) { return rounded(sqrt(a.x), a.error / sqrt(a.x)); }
static Number exponential(Number a) {
    const double x = exp(a.x);
    return {x, x * (expm1(a.error) + FUNCTION_ERROR * exp(a.error))};
}
/* log(1 + x), whose slope is 1 / (1 + x) */
static Number logarithm(Number a) {
    return {log1p(a.x), a.error / (1 + a.x - a.error) + FUNCTION_ERROR * log1p(a.x + a.error)};
}
static Number logistic(Number a) { return Number(1) / (Number(1) + exponential({-a.x, a.error})); }
static Number silu(Number a) { return a / (Number(1) + exponential({-a.x, a.error})); }

/* Products that are added up in any order, fused or not. */
struct Sum {
    double x = 0, error = 0, magnitude = 0;
    int n = 0;
    void add(Number a, Number b = 1) {
        const Number product = a * b;
        x += product.x, error += product.error, magnitude += fabs(product.x) + product.error, n++;
    }
    Number total() const { return {x, error + n * U * magnitude * 1.01}; }
};

/* ---- cases ---------------------------------------------------------------------------------------- */

struct Kind {
    const char *name;
    int kernel, n_heads, n_key_heads, key_size, value_size; /* 0 heads: a convolution alone, of key_size channels */
    bool corrects, alternating, tap_bias, skip, gain;
};

static const Kind kinds[] = {
    {"a delta net with keys in turn", 4, 6, 2, 16, 16, true, true, false, false, true},
    {"a delta net, blocks of keys and values", 4, 4, 2, 112, 80, true, false, false, false, true},
    {"a delta net of the largest heads", 2, 1, 1, MAX_STATE_SIZE, 48, true, false, false, false, true},
    {"Mamba-2", 4, 6, 2, 32, 16, false, false, true, true, false},
    {"Mamba-2, wider", 3, 4, 1, 128, 64, false, false, true, true, false},
    {"a short convolution", 3, 0, 0, 80, 0, false, false, false, false, false},
    {"a long convolution", MAX_KERNEL, 0, 0, 48, 0, false, false, true, false, false},
};

static std::vector<float> random_floats(size_t n, double middle, double spread, Random *random) {
    std::vector<float> out(n);
    for (float &x : out) x = (float)(middle + spread * random_normal(random));
    return out;
}

/* A layer behind another one's numbers. */
struct Case {
    Kind kind;
    Recurrence r, host; /* with pointers to the device's memory, and the host's */
    size_t input_stride, out_stride, state_size, kept_size;
    int n_out; /* columns */
    std::vector<float> taps, tap_bias, decay, step_bias, skip, gain;
    DeviceArray<float> device_taps, device_tap_bias, device_decay, device_step_bias, device_skip, device_gain;

    static Recurrence layout(const Kind &k) {
        Recurrence r = {};
        const int keys = k.n_key_heads * k.key_size, values = k.n_heads * k.value_size;
        r.kernel = k.kernel;
        r.channels = k.n_heads ? 2 * keys + values : k.key_size;
        r.n_heads = k.n_heads, r.n_key_heads = k.n_key_heads;
        r.key_size = k.key_size, r.value_size = k.value_size;
        r.corrects = k.corrects, r.alternating = k.alternating;
        r.eps = 1e-5f;
        r.query_at = 0, r.key_at = keys, r.value_at = 2 * keys;
        r.step_at = r.channels + 16, r.rate_at = r.channels;
        r.input_floats = k.n_heads ? r.channels + 32 : r.channels;
        r.first_state = 48, r.first_kept = 80;
        return r;
    }
    Case(const Kind &k, Random *random)
        : kind(k), r(layout(k)), host(r), taps(random_floats((size_t)(r.kernel * r.channels), 0, .6, random)),
          tap_bias(random_floats((size_t)r.channels, 0, .3, random)),
          decay(random_floats((size_t)r.n_heads, -.6, .2, random)),
          step_bias(random_floats((size_t)r.n_heads, 0, .5, random)),
          skip(random_floats((size_t)r.n_heads, 0, 1, random)),
          gain(random_floats((size_t)r.value_size, 1, .2, random)), device_taps(taps), device_tap_bias(tap_bias),
          device_decay(decay), device_step_bias(step_bias), device_skip(skip), device_gain(gain) {
        n_out = k.n_heads ? k.n_heads * k.value_size : r.channels;
        input_stride = (size_t)(k.n_heads ? r.input_floats : 3 * r.channels) + 7;
        out_stride = (size_t)n_out + 5;
        state_size = r.first_state + state_floats(&r) + 16;
        kept_size = r.first_kept + CACHE_KEPT_ROWS * (size_t)r.input_floats + 16;
        point(&r, device_taps.at, device_tap_bias.at, device_decay.at, device_step_bias.at, device_skip.at,
              device_gain.at);
        point(&host, taps.data(), tap_bias.data(), decay.data(), step_bias.data(), skip.data(), gain.data());
    }
    void point(Recurrence *to, const float *t, const float *b, const float *d, const float *s, const float *k,
               const float *g) const {
        to->taps = t, to->decay = d, to->step_bias = s;
        to->tap_bias = kind.tap_bias ? b : nullptr;
        to->skip = kind.skip ? k : nullptr;
        to->gain = kind.gain ? g : nullptr;
    }
};

/* A sequence's rows, of which a pass may bring others that are rejected, and what is remembered of it. */
struct Sequence {
    const Case &c;
    int n;
    std::vector<float> inputs, gates, out; /* [n][stride] each */
    DeviceArray<float> states, kept;
    StateEnd end;
    int position; /* rows that have come */
    Sequence(const Case &of, int n_rows, Random *random)
        : c(of), n(n_rows), inputs(random_floats((size_t)n * c.input_stride, 0, 1, random)),
          gates(random_floats((size_t)n * c.out_stride, 0, 1, random)), out((size_t)n * c.out_stride),
          states(c.state_size), kept(c.kept_size), end(), position(0) {}
    void begin() {
        states.put(std::vector<float>(c.state_size, NAN));
        kept.put(std::vector<float>(c.kept_size, NAN));
        end = {}, position = 0;
    }
};

/* ---- passes --------------------------------------------------------------------------------------- */

/* The next rows of a sequence: some that stay, and drafts that do not, of whatever numbers. */
struct Part {
    Sequence *of;
    int n, n_drafts;
};

static void add_rows(const Part &part, bool wild, Random *random, std::vector<float> *inputs,
                     std::vector<float> *gates) {
    const Sequence &s = *part.of;
    const auto add = [&](const std::vector<float> &from, size_t stride, std::vector<float> *to) {
        const auto first = from.begin() + (ptrdiff_t)((size_t)s.position * stride);
        to->insert(to->end(), first, first + (ptrdiff_t)((size_t)part.n * stride));
        auto drafts = random_floats((size_t)part.n_drafts * stride, 0, 3, random);
        for (size_t i = 0; wild && i < drafts.size(); i += 3) drafts[i] = NAN;
        to->insert(to->end(), drafts.begin(), drafts.end());
    };
    add(s.inputs, s.c.input_stride, inputs);
    add(s.gates, s.c.out_stride, gates);
}

static DeviceRun run_of(const Part &part, int first) {
    const Sequence &s = *part.of;
    DeviceCache cache = {};
    cache.states = s.states.at, cache.kept = s.kept.at;
    return device_run(&cache, s.end, first, part.n + part.n_drafts, s.position);
}

/* The rows that stay leave their results with their sequences; nothing else is written. */
static void take_results(const std::vector<Part> &parts, const std::vector<float> &out) {
    size_t at = 0;
    for (const Part &part : parts) {
        Sequence &s = *part.of;
        const int n = part.n + part.n_drafts, n_kept = n < CACHE_KEPT_ROWS ? n : CACHE_KEPT_ROWS;
        memcpy(&s.out[(size_t)s.position * s.c.out_stride], &out[at], (size_t)part.n * s.c.out_stride * sizeof(float));
        at += (size_t)n * s.c.out_stride;
        s.end = {s.position + n - n_kept, n_kept};
        s.position += part.n;
    }
}

static void run_pass(const Case &c, const std::vector<Part> &parts, bool wild, Random *random) {
    std::vector<float> inputs, gates;
    std::vector<DeviceRun> runs;
    int n = 0;
    for (const Part &part : parts) {
        add_rows(part, wild, random, &inputs, &gates);
        runs.push_back(run_of(part, n));
        n += part.n + part.n_drafts;
    }
    const DeviceArray<DeviceRun> device_runs(runs);
    const DeviceArray<float> device_inputs(inputs), device_gates(gates), out((size_t)n * c.out_stride);
    if (c.r.n_heads)
        queue_recur(stream, &c.r, device_runs.at, (int)runs.size(), n, device_inputs.at, c.input_stride,
                    device_gates.at, out.at, c.out_stride);
    else
        queue_convolve(stream, &c.r, device_runs.at, (int)runs.size(), device_inputs.at, c.input_stride, out.at,
                       c.out_stride);
    take_results(parts, out.get());
}

/* ---- against double precision --------------------------------------------------------------------- */

typedef std::vector<Number> Numbers;

/* All columns of a row, mixed with those before it. */
static Numbers convolved(const Case &c, const Sequence &s, int row) {
    const Recurrence &r = c.host;
    Numbers out;
    for (int column = 0; column < r.channels; column++) {
        Sum sum;
        for (int t = 0; t < r.kernel; t++) {
            const int from = row - (r.kernel - 1) + t;
            if (from < 0) continue;
            const float *in = &s.inputs[(size_t)from * c.input_stride + (size_t)column];
            const Number x = r.n_heads ? Number(*in) : Number(*in) * Number(in[2 * r.channels]);
            sum.add(x, r.taps[t * r.channels + column]);
        }
        const Number total = r.tap_bias ? sum.total() + Number(r.tap_bias[column]) : sum.total();
        out.push_back(r.n_heads ? silu(total) : total);
    }
    return out;
}

static Numbers part_of(const Numbers &all, int at, int n) { return Numbers(all.begin() + at, all.begin() + at + n); }

static void unit_length(float eps, double length, Numbers *x) {
    Sum squares;
    for (Number y : *x) squares.add(y, y);
    const Number factor = Number(length, U * length) / root(squares.total() + Number(eps));
    for (Number &y : *x) y = y * factor;
}

/* A head's state [key][value] takes a row, and gives its results. */
static Numbers recur_exactly(const Case &c, int head, const Numbers &row, const float *inputs, Numbers *state) {
    const Recurrence &r = c.host;
    const int key_head = r.alternating ? head % r.n_key_heads : head / (r.n_heads / r.n_key_heads);
    Numbers query = part_of(row, r.query_at + key_head * r.key_size, r.key_size);
    Numbers key = part_of(row, r.key_at + key_head * r.key_size, r.key_size);
    const Numbers value = part_of(row, r.value_at + head * r.value_size, r.value_size);
    if (r.corrects) unit_length(r.eps, 1, &key), unit_length(r.eps, 1 / sqrt(r.key_size), &query);
    const Number in = Number(inputs[r.step_at + head]) + Number(r.step_bias[head]);
    const Number step = logarithm(exponential(in)), decay = exponential(Number(r.decay[head]) * step);
    const Number rate = r.corrects ? logistic(inputs[r.rate_at + head]) : step;
    Numbers out;
    for (int v = 0; v < r.value_size; v++) {
        Sum predicted, result;
        for (int k = 0; k < r.key_size; k++) predicted.add((*state)[(size_t)(k * r.value_size + v)], key[(size_t)k]);
        const Number wanted = r.corrects ? value[(size_t)v] - decay * predicted.total() : value[(size_t)v];
        for (int k = 0; k < r.key_size; k++) {
            Number &x = (*state)[(size_t)(k * r.value_size + v)];
            x = key[(size_t)k] * (rate * wanted) + decay * x;
            result.add(x, query[(size_t)k]);
        }
        out.push_back(r.skip ? value[(size_t)v] * Number(r.skip[head]) + result.total() : result.total());
    }
    return out;
}

static void norm_and_gate(const Case &c, const float *gates, Numbers *x) {
    const Recurrence &r = c.host;
    Sum squares;
    for (Number y : *x) squares.add(y, y);
    for (size_t v = 0; v < x->size(); v++) {
        if (r.gain) /* a factor first, and then a product */
            (*x)[v] = Number(r.gain[v]) *
                      ((*x)[v] * (Number(1) / root(squares.total() / Number(r.value_size) + Number(r.eps))));
        (*x)[v] = silu(gates[v]) * (*x)[v];
    }
}

/* Bounds grow from row to row, as if all errors pulled together: so this is for the first ones. */
static void check_results(const Case &c, const Sequence &s, int n) {
    const Recurrence &r = c.host;
    std::vector<Numbers> states((size_t)(r.n_heads ? r.n_heads : 1), Numbers((size_t)(r.key_size * r.value_size)));
    double worst = 0, size = 0;
    for (int row = 0; row < n; row++) {
        const Numbers columns = convolved(c, s, row);
        const float *in = &s.inputs[(size_t)row * c.input_stride], *out = &s.out[(size_t)row * c.out_stride];
        for (int head = 0; head < r.n_heads; head++) {
            Numbers results = recur_exactly(c, head, columns, in, &states[(size_t)head]);
            const int at = head * r.value_size;
            norm_and_gate(c, &s.gates[(size_t)row * c.out_stride + (size_t)at], &results);
            for (int v = 0; v < r.value_size; v++) {
                CHECK_NEAR(out[at + v], results[(size_t)v].x, results[(size_t)v].error);
                worst = fmax(worst, results[(size_t)v].error), size = fmax(size, fabs(results[(size_t)v].x));
            }
        }
        for (int i = 0; !r.n_heads && i < r.channels; i++) {
            const Number expected = columns[(size_t)i] * Number(in[r.channels + i]);
            CHECK_NEAR(out[i], expected.x, expected.error);
            worst = fmax(worst, expected.error), size = fmax(size, fabs(expected.x));
        }
    }
    CHECK(worst < 1e-2 * size); /* or the bounds say nothing */
}

/* ---- tests ---------------------------------------------------------------------------------------- */

static bool same_bits(const std::vector<float> &a, const std::vector<float> &b, size_t stride, int columns, int n) {
    bool same = true;
    for (size_t i = 0; i < (size_t)n; i++)
        same = same && !memcmp(&a[i * stride], &b[i * stride], (size_t)columns * sizeof(float));
    return same;
}

/* Rows that stay, up to the end, and drafts behind them, as many as can be rejected. */
static Part some_rows(Sequence *s, int most, Random *random) {
    const int left = s->n - s->position;
    Part part = {s, 1 + random_below(random, most), random_below(random, 3) ? random_below(random, 8) : 15};
    if (part.n > left) part.n = left;
    return part;
}

static void test_kind(const Kind &kind, int n_checked) {
    Random random = {(uint64_t)kind.key_size + 17};
    const Case c(kind, &random);
    const int n = 70;
    Sequence first(c, n, &random), second(c, n, &random);
    first.begin();
    while (first.position < n) run_pass(c, {{&first, 1, 0}}, false, &random);
    check_results(c, first, n_checked);
    const std::vector<float> expected = first.out;
    for (int round = 0; round < 3; round++) {
        set_order(round);
        first.begin(), second.begin();
        while (first.position < n) {
            std::vector<Part> parts = {some_rows(&first, round ? 12 : 40, &random)};
            if (second.position < n && random_below(&random, 2))
                parts.insert(parts.begin() + random_below(&random, 2), some_rows(&second, 9, &random));
            run_pass(c, parts, round == 1, &random);
        }
        if (!CHECK(same_bits(first.out, expected, c.out_stride, c.n_out, n))) printf("    %s\n", kind.name);
    }
    set_order(0);
    /* An idle run leaves everything as it is. */
    const auto states = first.states.get(), kept = first.kept.get();
    run_pass(c, {{&first, 0, 0}, {&second, 0, 1}}, false, &random);
    CHECK(!memcmp(states.data(), first.states.get().data(), states.size() * sizeof(float)));
    CHECK(!memcmp(kept.data(), first.kept.get().data(), kept.size() * sizeof(float)));
    for (size_t i = 0; i < 16; i++) { /* the layers around */
        CHECK(isnan(states[i]) && isnan(states[states.size() - 1 - i]));
        CHECK(isnan(kept[i]) && isnan(kept[kept.size() - 1 - i]));
    }
}

int main() {
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (const Kind &kind : kinds) test_kind(kind, kind.n_heads ? 6 : 70);
    MUST(cudaStreamDestroy(stream));
    return check_report();
}
