/* Tests of the CUDA backend's rows.cu, experts.cu and attention.cu, on the host's emulation or, compiled by nvcc, on a
 * device: against double precision within bounds that follow from the roundings, and against themselves bit for bit
 * where rows are computed in other company.
 *
 * Bounds. U = 2^-24 and U16 = 2^-11 are the largest relative errors of one rounding to float and to float16 (below
 * 2^-14 the latter is at most TINY16 absolute). The matrix instruction adds 16 products and a sum, which hardware may
 * align to the largest and cut off after 24 bits: MATRIX for each term, relative to the sum of magnitudes. */
#include "cuda/kernels.h"
#include "cuda/work_sizes.h"

#include <cstdio>
#include <cstdlib>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vector>

extern "C" {
#include "../check.h"
#include "../ggml_blocks.h"
#include "../random.h"
/* pack.h cannot be included: the CPU backend has names of its own for the same things. */
void dequantize_row(const Tensor *tensor, int64_t row, float *out);
}
#include "must.h"
#include "types/float16.h"

static const double U = 0x1p-24, U16 = 0x1p-11, TINY16 = 0x1p-25, MATRIX = 0x1.2p-23, SECOND_ORDER = 1.01;
/* CUDA's expf: 2 units in the last place. */
static const double EXP_ERROR = 0x1p-22;

static cudaStream_t stream;

static void wait() {
    MUST(cudaStreamSynchronize(stream));
    MUST(cudaGetLastError());
}

/* Device memory; fresh, it holds NaN. */
template <class T> struct Device {
    T *data = nullptr;
    size_t n;
    explicit Device(size_t count) : n(count) {
        void *memory = nullptr;
        MUST(cudaMalloc(&memory, (n ? n : 1) * sizeof(T)));
        data = (T *)memory;
        cudaMemsetAsync(data, 0xff, n * sizeof(T), stream);
        wait();
    }
    explicit Device(const std::vector<T> &from) : Device(from.size()) { write(from); }
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;
    ~Device() { cudaFree(data); }
    void write(const std::vector<T> &from) {
        if (from.empty()) return;
        cudaMemcpyAsync(data, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice, stream);
        wait();
    }
    std::vector<T> read() const {
        std::vector<T> out(n);
        if (!n) return out;
        cudaMemcpyAsync(out.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost, stream);
        wait();
        return out;
    }
};

template <class T> static bool same_bits(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(T));
}

/* NaN is equal to NaN, whatever its bits: processors differ there. */
static bool same_floats(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, 4) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

static std::vector<float> random_floats(size_t n, double spread, Random *random) {
    std::vector<float> out(n);
    for (float &x : out) x = (float)(spread * random_normal(random));
    return out;
}

static DeviceRow plain_row(int token, int position) {
    DeviceRow row = {};
    row.token = token;
    row.position = position;
    row.n_visible = 1;
    return row;
}

/* ---- operands ------------------------------------------------------------------------------------ */

enum { ALL_FORMATS = FORMAT_CODES | FORMAT_VALUES | FORMAT_F16 | FORMAT_BF16 };

struct Operand {
    int columns, n_groups, max_rows;
    Device<int8_t> codes;
    Device<float2> scales;
    Device<uint16_t> f16, bf16;
    Device<float> f16_factors, bf16_factors, values;
    Operand(int n_columns, int n)
        : columns(n_columns), n_groups((n_columns + 63) / 64 * 2), max_rows((n + 7) / 8 * 8),
          codes((size_t)(max_rows * n_groups * GROUP)), scales((size_t)(max_rows * n_groups)), f16(2 * codes.n),
          bf16(2 * codes.n), f16_factors(scales.n), bf16_factors(scales.n), values((size_t)(max_rows * columns)) {}
    DeviceOperand device() const {
        DeviceOperand o = {};
        o.columns = columns;
        o.n_groups = n_groups;
        o.max_rows = max_rows;
        o.formats = ALL_FORMATS;
        o.codes = codes.data;
        o.scales = scales.data;
        o.f16 = f16.data;
        o.bf16 = bf16.data;
        o.f16_factors = f16_factors.data;
        o.bf16_factors = bf16_factors.data;
        o.values = values.data;
        return o;
    }
};

/* One token's numbers in the order of its columns, all forms. */
struct Token {
    std::vector<int8_t> codes;
    std::vector<uint16_t> halves;       /* high and low, float16 then bfloat16 */
    std::vector<float> factors, values; /* factors: scale, scaled sum, float16's, bfloat16's */
};

static bool same_token(const Token &a, const Token &b) {
    return same_bits(a.codes, b.codes) && same_bits(a.halves, b.halves) &&
           same_floats(a.factors.data(), b.factors.data(), a.factors.size()) &&
           same_floats(a.values.data(), b.values.data(), a.values.size());
}

static void read_halves(const Operand &o, int token, const std::vector<uint16_t> &halves, Token *out) {
    for (int c = 0; c < o.n_groups * GROUP; c++) {
        const int group = c / 32, step = c % 32 / 16, i = c % 16, lane = 4 * (token % 8) + i % 8 / 2;
        const size_t at = ((size_t)(token / 8 * o.n_groups + group) * 2 + (size_t)step) * 32 + (size_t)lane;
        for (int part = 0; part < 2; part++)
            out->halves.push_back(halves[at * 8 + (size_t)(part * 4 + i / 8 * 2 + i % 2)]);
    }
}

static std::vector<Token> read_tokens(const Operand &o, int n) {
    const auto codes = o.codes.read();
    const auto scales = o.scales.read();
    const auto f16 = o.f16.read(), bf16 = o.bf16.read();
    const auto f16_factors = o.f16_factors.read(), bf16_factors = o.bf16_factors.read(), values = o.values.read();
    std::vector<Token> out((size_t)n);
    for (int token = 0; token < n; token++) {
        Token &t = out[(size_t)token];
        for (int c = 0; c < o.n_groups * GROUP; c++) {
            const int i = c % 32, lane = 4 * (token % 8) + i % 16 / 4;
            t.codes.push_back(codes[((size_t)(token / 8 * o.n_groups + c / 32) * 32 + (size_t)lane) * 8 +
                                    (size_t)(i / 16 * 4 + i % 4)]);
        }
        read_halves(o, token, f16, &t);
        read_halves(o, token, bf16, &t);
        for (int group = 0; group < o.n_groups; group++) {
            const size_t at = (size_t)(token / 8 * o.n_groups + group) * 8 + (size_t)(token % 8);
            for (float x : {scales[at].x, scales[at].y, f16_factors[at], bf16_factors[at]}) t.factors.push_back(x);
        }
        const auto row = values.begin() + token * o.columns;
        t.values.assign(row, row + o.columns);
    }
    return out;
}

/* Codes round to half a scale; two float16 keep 21 bits or more, two bfloat16 16, of the group's largest. All forms
 * stand for the same numbers, and beyond the columns for zero. */
static void check_forms(const Operand &o, const Token &t) {
    const size_t padded = (size_t)(o.n_groups * GROUP);
    for (size_t c = 0; c < padded; c++) {
        const size_t group = c / 32;
        const double x = c < (size_t)o.columns ? t.values[c] : 0;
        double largest = 0;
        for (size_t i = group * 32; i < group * 32 + 32 && i < (size_t)o.columns; i++)
            largest = fmax(largest, fabs(t.values[i]));
        const float *factors = &t.factors[4 * group];
        CHECK_NEAR(factors[0] * t.codes[c], x, largest / 127 * 0.5001);
        const double f16 = (double)float_from_f16(t.halves[2 * c]) + float_from_f16(t.halves[2 * c + 1]);
        const uint16_t *brain = &t.halves[2 * (padded + c)];
        const double bf16 = (double)float_from_bf16(brain[0]) + float_from_bf16(brain[1]);
        CHECK_NEAR(factors[2] * f16, x, largest * 0x1p-21);
        CHECK_NEAR(factors[3] * bf16, x, largest * 0x1p-16);
    }
}

/* ---- rows ---------------------------------------------------------------------------------------- */

static void test_embed() {
    Random random = {1};
    for (const BlockType &type : block_types) {
        const int columns = type.columns > 32 ? 768 : 352, n_rows = 7, n = 5;
        const size_t stride = (size_t)columns + 96;
        for (int finite = 0; finite < 2; finite++) {
            const Tensor tensor = random_tensor(&type, n_rows, columns, finite, &random);
            const Device<uint8_t> raw(std::vector<uint8_t>(tensor.data, tensor.data + tensor.size));
            std::vector<DeviceRow> rows;
            for (int i = 0; i < n; i++)
                rows.push_back(plain_row(i == 1 ? n_rows - 1 : random_below(&random, n_rows), i));
            const Device<DeviceRow> device_rows(rows);
            const Device<float> x((size_t)n * stride);
            const float scale = finite ? 33.4f : 1;
            queue_embed(stream, type.type, raw.data, tensor.size / n_rows, columns, device_rows.data, n, scale, x.data,
                        stride);
            const auto out = x.read();
            std::vector<float> expected(stride);
            for (int i = 0; i < n; i++) {
                dequantize_row(&tensor, rows[(size_t)i].token, expected.data());
                for (float &y : expected) y *= scale;
                if (!CHECK(same_floats(&out[(size_t)i * stride], expected.data(), stride)))
                    printf("    %s\n", type.name);
            }
            free((void *)tensor.data);
        }
    }
}

/* Norms of n_x rows on the host, and the errors of the device's. Numbers are summed by 1024 threads, each of which adds
 * columns / 1024 of them, then 32 lanes and 32 warps by halves: sums are off by that many roundings of the magnitudes
 * in them. The mean has one more, of its quotient; what it is taken from one of the difference. The root halves what
 * the squares are off by; then quotient, eps, root, inverse and two products. */
static void exact_norm(const DeviceNorm &norm, const float *x, const float *gain, int columns, double *out,
                       double *error) {
    double sum = 0, size = 0, squares = 0, spread = 0;
    const int roundings = columns / 1024 + 1 + 5 + 5;
    for (int c = 0; c < columns; c++) sum += x[c], size += fabs(x[c]);
    const double mean = norm.centred ? sum / columns : 0;
    const double mean_error = norm.centred ? (roundings + 1) * U * size / columns : 0;
    for (int c = 0; c < columns; c++) {
        const double difference = x[c] - mean, off = mean_error + (norm.centred ? U * fabs(difference) : 0);
        squares += difference * difference;
        spread += 2 * fabs(difference) * off + off * off;
    }
    const double factor = 1 / sqrt(squares / columns + norm.eps);
    const double relative = (roundings / 2.0 + 6) * U + (squares > 0 ? spread / squares / 2 : 0);
    for (int c = 0; c < columns; c++) {
        const double difference = x[c] - mean, weight = gain ? gain[c] : 1;
        out[c] = difference * factor * weight;
        error[c] =
            (relative * fabs(out[c]) + (mean_error + U * fabs(difference)) * factor * fabs(weight)) * SECOND_ORDER;
    }
}

static void check_norm(const DeviceNorm &norm, const float *x, const float *gain, int columns, const float *out) {
    std::vector<double> exact((size_t)columns), error((size_t)columns);
    exact_norm(norm, x, gain, columns, exact.data(), error.data());
    for (size_t c = 0; c < (size_t)columns; c++) CHECK_NEAR(out[c], exact[c], error[c]);
}

enum RowOperation { PLAIN, NORMED, NORMED_PLAIN, CENTRED, CENTRED_PLAIN, N_ROW_OPERATIONS };

static void test_rows_case(int columns) {
    Random random = {(uint64_t)columns};
    const int n = 11, n_x = 14;
    const size_t stride = (size_t)columns + 16;
    std::vector<float> x = random_floats(n_x * stride, 3, &random);
    for (size_t i = 0; i < x.size(); i++) x[i] += 2;
    const std::vector<float> gain = random_floats((size_t)columns, 1, &random);
    std::vector<int32_t> index;
    for (int i = 0; i < n; i++) index.push_back((5 * i + 2) % n_x);
    const Device<float> device_x(x), device_gain(gain);
    const Device<int32_t> device_index(index);
    for (int operation = 0; operation < N_ROW_OPERATIONS; operation++) {
        const bool plain = operation == NORMED_PLAIN || operation == CENTRED_PLAIN;
        const DeviceNorm norm = {plain ? nullptr : device_gain.data, 1e-5f, operation >= CENTRED};
        const auto compute = [&](const float *from, const int32_t *at, int rows) {
            const Operand out(columns, rows);
            const DeviceOperand o = out.device();
            if (operation == PLAIN)
                queue_to_operand(stream, from, stride, at, rows, &o);
            else
                queue_norm(stream, &norm, from, stride, at, columns, rows, &o);
            const auto tokens = read_tokens(out, rows);
            if (rows == n && from == device_x.data && at) check_forms(out, tokens[0]);
            return tokens;
        };
        Device<float> spoilt(x);
        const auto indexed = compute(device_x.data, device_index.data, n),
                   direct = compute(device_x.data, nullptr, n_x);
        for (int i = 0; i < n; i++) {
            const float *row = &x[(size_t)index[(size_t)i] * stride], *out = indexed[(size_t)i].values.data();
            if (operation == PLAIN) CHECK(same_floats(row, out, (size_t)columns));
            if (operation != PLAIN) check_norm(norm, row, plain ? nullptr : gain.data(), columns, out);
            CHECK(same_token(indexed[(size_t)i], direct[(size_t)index[(size_t)i]]));
        }
        for (int i = 0; i < n_x; i++)
            CHECK(same_token(compute(device_x.data + (size_t)i * stride, nullptr, 1)[0], direct[(size_t)i]));
        /* NaN stays in its row. */
        auto y = x;
        y[3 * stride + (size_t)columns - 1] = NAN;
        spoilt.write(y);
        const auto poisoned = compute(spoilt.data, nullptr, n_x);
        for (int i = 0; i < n_x; i++) CHECK(same_token(poisoned[(size_t)i], direct[(size_t)i]) == (i != 3));
        for (int c = 0; c < columns; c++)
            CHECK(isnan(poisoned[3].values[(size_t)c]) == (operation != PLAIN || c == columns - 1));
        CHECK(isnan(poisoned[3].factors[(size_t)(4 * ((columns - 1) / 32))]));
#if defined(BEE_EMULATE)
        for (emulated_order = 1; emulated_order < 3; emulated_order++) {
            const auto again = compute(device_x.data, nullptr, n_x);
            for (int i = 0; i < n_x; i++) CHECK(same_token(again[(size_t)i], direct[(size_t)i]));
        }
        emulated_order = 0;
#endif
    }
}

/* The same floats of a row in any company and order of threads: `compute` leaves n rows, from the first, as they come
 * out. */
template <class Compute> static void check_in_any_company(int n, size_t stride, Compute compute) {
    const std::vector<float> all = compute(0, n);
    for (int i = 0; i < n; i++) CHECK(same_floats(compute(i, 1).data(), &all[(size_t)i * stride], stride));
#if defined(BEE_EMULATE)
    for (emulated_order = 1; emulated_order < 3; emulated_order++)
        CHECK(same_floats(compute(0, n).data(), all.data(), all.size()));
    emulated_order = 0;
#endif
}

/* Slices side by side, each for itself; nothing else of a row changes. */
static void test_norm_in_place(int columns, int parts, bool with_gain, bool centred, bool apart) {
    Random random = {(uint64_t)(columns + parts)};
    const int n = 5;
    const size_t stride = (size_t)(columns * parts) + 7;
    const auto x = random_floats(n * stride, 3, &random), gain = random_floats((size_t)(columns * parts), 1, &random);
    const Device<float> device_gain(gain);
    const DeviceNorm norm = {with_gain ? device_gain.data : nullptr, 1e-6f, centred, apart};
    const auto compute = [&](int first, int rows) {
        const Device<float> y(std::vector<float>(x.begin() + (ptrdiff_t)((size_t)first * stride),
                                                 x.begin() + (ptrdiff_t)((size_t)(first + rows) * stride)));
        queue_norm_in_place(stream, &norm, y.data, stride, columns, parts, rows);
        return y.read();
    };
    const auto out = compute(0, n);
    for (size_t i = 0; i < (size_t)n; i++) {
        for (size_t part = 0; part < (size_t)parts; part++) {
            const size_t at = i * stride + part * (size_t)columns;
            check_norm(norm, &x[at], with_gain ? &gain[apart ? part * (size_t)columns : 0] : nullptr, columns,
                       &out[at]);
        }
        const size_t end = i * stride + (size_t)(columns * parts);
        CHECK(same_floats(&x[end], &out[end], 7));
    }
    check_in_any_company(n, stride, compute);
}

/* The products' rounding, the sum's and one more, on top of what a norm before is off by; the normed y stays in y. */
static void test_add(int columns, bool normed) {
    Random random = {(uint64_t)columns};
    const int n = 6;
    const size_t stride = (size_t)columns + 5, y_stride = (size_t)columns + 11;
    const float scale = 0.22f, whole = 1.7f;
    const auto x = random_floats(n * stride, 3, &random), y = random_floats(n * y_stride, 2, &random);
    const auto gain = random_floats((size_t)columns, 1, &random);
    const Device<float> device_gain(gain);
    const DeviceNorm norm = {device_gain.data, 1e-6f, false};
    std::vector<float> y_out;
    const auto compute = [&](int first, int rows) {
        const auto part = [&](const std::vector<float> &all, size_t width) {
            return std::vector<float>(all.begin() + (ptrdiff_t)((size_t)first * width),
                                      all.begin() + (ptrdiff_t)((size_t)(first + rows) * width));
        };
        const Device<float> device_x(part(x, stride)), device_y(part(y, y_stride));
        queue_add(stream, normed ? &norm : nullptr, device_y.data, y_stride, scale, whole, columns, rows, device_x.data,
                  stride);
        y_out = device_y.read();
        return device_x.read();
    };
    const auto out = compute(0, n);
    const auto added = y_out;
    for (size_t i = 0; i < (size_t)n; i++) {
        if (normed) check_norm(norm, &y[i * y_stride], gain.data(), columns, &added[i * y_stride]);
        if (!normed) CHECK(same_floats(&y[i * y_stride], &added[i * y_stride], y_stride));
        for (size_t c = 0; c < (size_t)columns; c++) {
            const double expected = ((double)x[i * stride + c] + (double)scale * added[i * y_stride + c]) * whole;
            CHECK_NEAR(out[i * stride + c], expected, 2 * U * SECOND_ORDER * fabs(expected));
        }
        CHECK(same_floats(&out[i * stride + (size_t)columns], &x[i * stride + (size_t)columns], 5));
    }
    check_in_any_company(n, stride, compute);
}

/* A share's exponential and three roundings, and those of the sum. */
static void test_add_gated() {
    Random random = {31};
    const int n = 5, columns = 300;
    const size_t stride = 303, y_stride = 310, gate_stride = 7;
    const auto x = random_floats(n * stride, 3, &random), y = random_floats(n * y_stride, 2, &random);
    const auto gates = random_floats(n * gate_stride, 4, &random);
    const Device<float> device_y(y), device_gates(gates);
    const auto compute = [&](int first, int rows) {
        const auto begin = x.begin() + (ptrdiff_t)((size_t)first * stride);
        const Device<float> out(std::vector<float>(begin, begin + (ptrdiff_t)((size_t)rows * stride)));
        queue_add_gated(stream, device_gates.data + (size_t)first * gate_stride, gate_stride,
                        device_y.data + (size_t)first * y_stride, y_stride, columns, rows, out.data, stride);
        return out.read();
    };
    const auto out = compute(0, n);
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < columns; c++) {
            const double before = x[i * stride + c],
                         more = y[i * y_stride + c] / (1 + exp(-(double)gates[i * gate_stride]));
            CHECK_NEAR(out[i * stride + c], before + more,
                       SECOND_ORDER * ((EXP_ERROR + 3 * U) * fabs(more) + U * fabs(before + more)));
        }
        CHECK(same_floats(&out[i * stride + columns], &x[i * stride + columns], stride - columns));
    }
    check_in_any_company(n, stride, compute);
}

/* ---- mixtures of experts --------------------------------------------------------------------------- */

struct Routes {
    std::vector<int32_t> ids, places;
    std::vector<float> weights;
    std::vector<ExpertTile> tiles;
};

static Routes route(const Routing &r, const Device<float> &logits, size_t stride, int first, int n) {
    const size_t all = (size_t)(n * r.n_used);
    const Device<int32_t> ids(all), of(all), n_tiles(1);
    const Device<float> weights(all);
    const Device<ExpertTile> tiles((size_t)expert_tiles(n, r.n_experts, r.n_used));
    const DevicePlaces places = {n_tiles.data, tiles.data, of.data};
    queue_route(stream, &r, logits.data + (size_t)first * stride, stride, n, ids.data, weights.data, &places);
    Routes out = {ids.read(), of.read(), weights.read(), tiles.read()};
    const size_t found = (size_t)n_tiles.read()[0];
    if (CHECK(found <= tiles.n)) out.tiles.resize(found);
    return out;
}

/* Every row's every expert has a place of its own, in a tile of that expert; tiles begin at whole tiles. */
static void check_places(const Routing &r, const Routes &found) {
    std::vector<int> expert_at((size_t)(found.tiles.size() * EXPERT_ALIGNMENT), -1);
    size_t rows = 0;
    for (const ExpertTile &tile : found.tiles) {
        CHECK(tile.n > 0 && tile.n <= EXPERT_ALIGNMENT && tile.first % EXPERT_ALIGNMENT == 0 &&
              tile.expert < r.n_experts);
        for (int i = 0; i < tile.n; i++) {
            int &at = expert_at.at((size_t)(tile.first + i));
            CHECK_EQ(at, -1);
            at = tile.expert;
        }
        rows += (size_t)tile.n;
    }
    CHECK_EQ(rows, found.ids.size());
    for (size_t i = 0; i < found.ids.size(); i++) {
        int &at = expert_at.at((size_t)found.places[i]);
        CHECK_EQ(at, found.ids[i]);
        at = -2;
    }
}

static double probability(const Routing &r, const float *logits, int e) {
    double top = logits[0], sum = 0;
    for (int i = 0; i < r.n_experts; i++) top = fmax(top, logits[i]);
    for (int i = 0; i < r.n_experts; i++) sum += exp(logits[i] - top);
    if (r.probability == ROUTE_SIGMOID) return 1 / (1 + exp(-(double)logits[e]));
    return r.probability == ROUTE_SOFTMAX ? exp(logits[e] - top) / sum : logits[e];
}

/* The largest first, up to what roundings may exchange; weights are those of the chosen ones. */
static void check_route(const Routing &r, const float *logits, const float *bias, const int32_t *ids,
                        const float *weights) {
    const double error = 1e-5;
    std::vector<bool> taken((size_t)r.n_experts);
    double sum = 0, of_chosen[MAX_USED_EXPERTS];
    for (int k = 0; k < r.n_used; k++) {
        if (!CHECK(ids[k] >= 0 && ids[k] < r.n_experts && !taken[(size_t)ids[k]])) return;
        const double value = probability(r, logits, ids[k]) + (bias ? bias[ids[k]] : 0);
        for (int e = 0; e < r.n_experts; e++)
            if (!taken[(size_t)e])
                CHECK(probability(r, logits, e) + (bias ? bias[e] : 0) <= value + error * fabs(value));
        taken[(size_t)ids[k]] = true;
        of_chosen[k] = r.probability == ROUTE_SOFTMAX_OF_CHOSEN ? exp((double)logits[ids[k]] - logits[ids[0]])
                                                                : probability(r, logits, ids[k]);
        sum += of_chosen[k];
    }
    const bool normed = r.normed || r.probability == ROUTE_SOFTMAX_OF_CHOSEN;
    for (int k = 0; k < r.n_used; k++) {
        const double expected = of_chosen[k] * r.scale / (normed ? fmax(sum, 6.103515625e-5) : 1);
        CHECK_NEAR(weights[k], expected, error * fabs(expected));
    }
}

static void test_route(Routing r, int n, bool biased, Random *random) {
    const size_t stride = (size_t)r.n_experts + 5, used = (size_t)r.n_used;
    const auto logits = random_floats((size_t)n * stride, 2, random),
               bias = random_floats((size_t)r.n_experts, .3, random);
    const Device<float> device_logits(logits), device_bias(bias);
    r.bias = biased ? device_bias.data : nullptr;
    const Routes all = route(r, device_logits, stride, 0, n);
    check_places(r, all);
    for (size_t i = 0; i < (size_t)n; i++) {
        check_route(r, &logits[i * stride], biased ? bias.data() : nullptr, &all.ids[i * used], &all.weights[i * used]);
        if (i % 7) continue;
        const Routes alone = route(r, device_logits, stride, (int)i, 1);
        CHECK(!memcmp(alone.ids.data(), &all.ids[i * used], used * sizeof(int32_t)));
        CHECK(!memcmp(alone.weights.data(), &all.weights[i * used], used * sizeof(float)));
    }
}

/* Of equal ones the lower; and rows that are no numbers go to experts, too. */
static void test_odd_routes() {
    const Routing r = {ROUTE_SOFTMAX, 70, 8, nullptr, true, 1};
    std::vector<float> logits(3 * 70, 1.5f);
    for (size_t i = 70; i < 140; i++) logits[i] = NAN;
    for (size_t i = 140; i < 210; i++) logits[i] = i % 2 ? NAN : -INFINITY;
    const Routes found = route(r, Device<float>(logits), 70, 0, 3);
    check_places(r, found);
    for (int k = 0; k < 8; k++) CHECK_EQ(found.ids[(size_t)k], k);
    for (size_t i = 8; i < 24; i++) CHECK(found.ids[i] >= 0 && found.ids[i] < 70);
}

static void test_routes() {
    Random random = {32};
    test_route({ROUTE_SOFTMAX, 6, 3, nullptr, true, 1}, 9, false, &random);
    test_route({ROUTE_SOFTMAX, 128, 8, nullptr, false, 1}, 128, false, &random);
    test_route({ROUTE_SIGMOID, 160, 8, nullptr, true, 2.5f}, 16, true, &random);
    test_route({ROUTE_SOFTMAX_OF_CHOSEN, 32, 4, nullptr, false, 1}, 40, false, &random);
    test_route({ROUTE_SIGMOID, MAX_EXPERTS, MAX_USED_EXPERTS, nullptr, false, 1}, 3, true, &random);
    test_route({ROUTE_SOFTMAX, 1, 1, nullptr, true, 1}, 37, false, &random);
    test_odd_routes();
}

/* Copies are what the rows themselves are, in every form, wherever they go. */
static void test_gather(int columns) {
    Random random = {(uint64_t)columns};
    const int n = 11, n_used = 3, n_places = 40;
    const auto x = random_floats((size_t)(n * columns), 2, &random);
    const Device<float> device_x(x);
    std::vector<int32_t> of;
    for (int i = 0; i < n * n_used; i++) of.push_back(i * 7 % n_places);
    const Device<int32_t> device_of(of);
    const Operand in(columns, n), out(columns, n_places);
    const DeviceOperand from = in.device(), to = out.device();
    const DevicePlaces places = {nullptr, nullptr, device_of.data};
    queue_to_operand(stream, device_x.data, (size_t)columns, nullptr, n, &from);
    queue_gather(stream, &from, n, n_used, &places, &to);
    const auto rows = read_tokens(in, n), copies = read_tokens(out, n_places);
    for (int i = 0; i < n * n_used; i++) CHECK(same_token(copies[(size_t)of[(size_t)i]], rows[(size_t)(i / n_used)]));
}

static void test_sum_answers() {
    Random random = {33};
    const int n = 4, n_used = 5, columns = 300;
    const size_t stride = 301, each_stride = 320, n_places = 23;
    const auto each = random_floats(n_places * each_stride, 2, &random),
               weights = random_floats(n * n_used, 1, &random);
    std::vector<int32_t> of;
    for (int i = 0; i < n * n_used; i++) of.push_back(i * 5 % (int)n_places);
    const Device<float> device_each(each), device_weights(weights);
    const Device<int32_t> device_of(of);
    const auto compute = [&](int first, int rows) {
        const Device<float> out((size_t)rows * stride);
        const DevicePlaces places = {nullptr, nullptr, device_of.data + first * n_used};
        queue_sum_answers(stream, device_each.data, each_stride, device_weights.data + first * n_used, &places, n_used,
                          columns, rows, out.data, stride);
        return out.read();
    };
    const auto out = compute(0, n);
    for (int i = 0; i < n; i++) {
        for (size_t c = 0; c < columns; c++) {
            double sum = 0, magnitude = 0;
            for (int k = i * n_used; k < (i + 1) * n_used; k++) {
                const double term = (double)weights[(size_t)k] * each[(size_t)of[(size_t)k] * each_stride + c];
                sum += term;
                magnitude += fabs(term);
            }
            CHECK_NEAR(out[(size_t)i * stride + c], sum, n_used * U * SECOND_ORDER * magnitude);
        }
        CHECK(isnan(out[(size_t)i * stride + columns]));
    }
    check_in_any_company(n, stride, compute);
}

/* As expected_gated in test_cuda_products.cpp: roundings and the exponential, t's roundings as the quotient follows. */
static void test_gate_values(Activation activation, int columns) {
    Random random = {(uint64_t)columns};
    const int n = 5;
    const size_t stride = (size_t)columns + 9, up_stride = (size_t)columns + 3;
    const auto gate = random_floats(n * stride, 4, &random), up = random_floats(n * up_stride, 4, &random);
    const Device<float> device_gate(gate), device_up(up);
    const auto compute = [&](int first, int rows) {
        const Operand out(columns + 40, rows); /* wider than what comes */
        const DeviceOperand o = out.device();
        queue_gate_values(stream, activation, device_gate.data + (size_t)first * stride, stride,
                          device_up.data + (size_t)first * up_stride, up_stride, columns, rows, &o);
        return read_tokens(out, rows);
    };
    const auto out = compute(0, n);
    for (size_t i = 0; i < (size_t)n; i++) {
        for (size_t c = 0; c < (size_t)columns; c++) {
            const double g = gate[i * stride + c];
            const double clamped = fmin(g, 7), u = up[i * up_stride + c];
            const bool clamps = activation == ACTIVATION_CLAMPED, squares = activation == ACTIVATION_RELU_SQUARED;
            const double numerator = activation == ACTIVATION_LOGISTIC ? 1 : clamps ? clamped : g;
            const double t = activation == ACTIVATION_GELU ? 2 * sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)
                             : clamps                      ? 1.702 * clamped
                                                           : g;
            const double factor = clamps ? fmax(-7, fmin(u, 7)) + 1 : u;
            const double expected = squares ? fmax(g, 0) * g * factor : numerator / (1 + exp(-t)) * factor;
            const double relative = EXP_ERROR + 5 * U + 6 * U * fabs(t) / (1 + exp(t));
            CHECK_NEAR(out[i].values[c], expected, relative * SECOND_ORDER * fabs(expected) + 1e-36);
        }
        for (size_t c = (size_t)columns; c < out[i].values.size(); c++) CHECK(out[i].values[c] == 0);
        CHECK(same_token(compute((int)i, 1)[0], out[i]));
    }
}

/* tanh is off by 2 units in the last place, its argument by two roundings, which count as tanh follows it, x (1 -
 * tanh^2) / tanh <= 1, and there is one product. */
static const double TANH_ERROR = 4 * U;

static void test_cap() {
    Random random = {12};
    const int n = 3, columns = 333;
    const size_t stride = 340;
    for (float softcap : {0.0f, 30.0f}) {
        const float scale = 0.0625f;
        auto x = random_floats(n * stride, softcap ? 900 : 10, &random);
        x[1] = INFINITY, x[2] = -INFINITY;
        const auto compute = [&](int first, int rows) {
            const Device<float> y(std::vector<float>(x.begin() + (ptrdiff_t)((size_t)first * stride),
                                                     x.begin() + (ptrdiff_t)((size_t)(first + rows) * stride)));
            queue_cap(stream, scale, softcap, y.data, stride, columns, rows);
            return y.read();
        };
        const auto out = compute(0, n);
        for (size_t i = 0; i < n; i++) {
            for (size_t c = 0; c < columns; c++) {
                const double scaled = (double)scale * x[i * stride + c];
                const double expected = softcap ? softcap * tanh(scaled / softcap) : scaled;
                if (isinf(expected)) CHECK(out[i * stride + c] == (float)expected);
                if (isinf(expected)) continue;
                CHECK_NEAR(out[i * stride + c], expected, (TANH_ERROR + 3 * U) * SECOND_ORDER * fabs(expected));
            }
            CHECK(same_floats(&out[i * stride + columns], &x[i * stride + columns], 7));
        }
        x[stride + 5] = NAN;
        const auto spoilt = compute(0, n);
        for (size_t i = 0; i < spoilt.size(); i++)
            CHECK(i == stride + 5 ? (bool)isnan(spoilt[i]) : same_floats(&spoilt[i], &out[i], 1));
        check_in_any_company(n, stride, compute);
    }
}

/* The frequencies that a row takes follow from its cache alone: more positions than long_beyond, to the position. */
static void test_angles() {
    Random random = {4};
    const int n_rotated = 144, n = 6, beyond = 4096;
    std::vector<double> frequencies, longer;
    for (int d = 0; d < n_rotated / 2; d++) frequencies.push_back(pow(10000, -2.0 * d / n_rotated));
    for (int d = 0; d < n_rotated / 2; d++) longer.push_back(frequencies[(size_t)d] / (1 + d));
    const Device<double> device_frequencies(frequencies), device_longer(longer);
    std::vector<DeviceRow> rows;
    for (int i = 0; i < n; i++) rows.push_back(plain_row(0, i == 0 ? 0 : i == 1 ? -1 : random_below(&random, 131072)));
    for (int i = 0; i < n; i++) rows[(size_t)i].cache.n_ctx = beyond + i % 2;
    const Device<DeviceRow> device_rows(rows);
    for (int with_longer = 0; with_longer < 2; with_longer++) {
        const float magnitude = with_longer ? 1.19f : 1;
        const DeviceRope rope = {n_rotated, magnitude, device_frequencies.data,
                                 with_longer ? device_longer.data : nullptr, beyond};
        const Device<float> angles((size_t)(n * n_rotated));
        queue_rope_angles(stream, &rope, device_rows.data, n, angles.data);
        const auto out = angles.read();
        for (int i = 0; i < n; i++)
            for (int d = 0; d < n_rotated / 2; d++) {
                const auto &of = with_longer && i % 2 ? longer : frequencies;
                const double angle = rows[(size_t)i].position * of[(size_t)d];
                const double c = magnitude * cos(angle), s = magnitude * sin(angle);
                CHECK_NEAR(out[(size_t)(i * n_rotated + 2 * d)], c, 2 * U * SECOND_ORDER * fabs(c) + 1e-15);
                CHECK_NEAR(out[(size_t)(i * n_rotated + 2 * d + 1)], s, 2 * U * SECOND_ORDER * fabs(s) + 1e-15);
            }
    }
}

static void test_copy() {
    Random random = {5};
    const auto from = random_floats(3 * 400, 1, &random);
    const Device<float> device_from(from), to(3 * 350);
    queue_copy(stream, device_from.data, 400, to.data, 350, 300, 3);
    const auto out = to.read();
    for (size_t i = 0; i < 3; i++) {
        CHECK(!memcmp(&out[i * 350], &from[i * 400], 300 * sizeof(float)));
        for (size_t c = 300; c < 350; c++) CHECK(isnan(out[i * 350 + c]));
    }
}

/* ---- attention ----------------------------------------------------------------------------------- */

enum { N_CACHES = 2, N_LAYER = 2, LAYER = 1, CONTEXT = 384 };

/* Keys and values of one region of a cache; where the other one should be is nothing. */
struct Sequence {
    Device<uint8_t> keys, values;
    int n_positions;
    Sequence(int n, size_t position_bytes)
        : keys((size_t)N_LAYER * (size_t)n * position_bytes), values(keys.n), n_positions(n) {}
};

struct Shape {
    int head_size, n_head_kv, group, n_rotated;
    bool neox, gains;
    double spread; /* of the queries: flat and sharp distributions */
    int window = 0;
    float softcap = 0;
    bool sinks = false, norm_rotated = false, norm_values = false, without_v = false;
    double growth = 0;
    int period = 0;
    bee_kv_type kv_type = BEE_KV_F16;
    /* Keys of one position, in a layer. */
    size_t bytes() const { return (size_t)n_head_kv * cache_head_bytes(kv_type, head_size); }
};

/* A model's heads, two sequences, and what the rows of a pass need. */
struct Attention {
    Shape shape;
    DeviceHeads heads;
    size_t q_stride, kv_stride;
    const float *gates = nullptr; /* the device's */
    size_t gate_stride = 0;
    std::vector<double> frequencies;
    std::vector<float> q_gain, k_gain;
    std::vector<float> sinks;
    Device<double> device_frequencies;
    Device<float> device_q_gain, device_k_gain, device_sinks;
    Sequence caches[N_CACHES];
    Random random;

    static std::vector<double> made_frequencies(const Shape &s) {
        std::vector<double> out;
        for (int d = 0; d < s.n_rotated / 2; d++) out.push_back(pow(500, -2.0 * d / s.n_rotated));
        return out;
    }
    /* With a window a ring of a few chunks. */
    static int positions(const Shape &s, int cache) {
        return s.window ? cache_chunks(s.window + BEE_MAX_PASS_ROWS) * CACHE_CHUNK + cache * 128
                        : CONTEXT + cache * 128;
    }
    Attention(const Shape &s, uint64_t seed)
        : shape(s), heads(), q_stride((size_t)(s.group * s.n_head_kv * s.head_size) + 16),
          kv_stride((size_t)(s.n_head_kv * s.head_size) + 16), frequencies(made_frequencies(s)),
          device_frequencies(frequencies), device_q_gain((size_t)s.head_size), device_k_gain((size_t)s.head_size),
          device_sinks((size_t)(s.group * s.n_head_kv)),
          caches{Sequence(positions(s, 0), s.bytes()), Sequence(positions(s, 1), s.bytes())}, random{seed} {
        q_gain = random_floats((size_t)s.head_size, 1, &random);
        k_gain = random_floats((size_t)s.head_size, 1, &random);
        device_q_gain.write(q_gain);
        device_k_gain.write(k_gain);
        heads.n_head = s.group * s.n_head_kv;
        heads.n_head_kv = s.n_head_kv;
        heads.head_size = s.head_size;
        heads.n_rotated = s.n_rotated;
        heads.neox = s.neox;
        heads.eps = 1e-5f;
        heads.kv_type = s.kv_type;
        heads.first_byte = LAYER * s.bytes();
        heads.head_bytes = cache_head_bytes(s.kv_type, s.head_size);
        heads.scale = 1 / sqrtf((float)s.head_size);
        heads.region = s.window > 0;
        heads.window = s.window;
        heads.softcap = s.softcap;
        heads.norm_rotated = s.norm_rotated;
        heads.norm_values = s.norm_values;
        heads.growth = s.growth;
        heads.period = s.period;
        sinks = random_floats((size_t)heads.n_head, 2, &random);
        device_sinks.write(sinks);
        if (s.sinks) heads.sinks = device_sinks.data;
    }
    DeviceRow row(int cache, int position, int n_visible) const {
        DeviceRow r = plain_row(0, position);
        r.cache.keys[heads.region] = caches[cache].keys.data;
        r.cache.values[heads.region] = caches[cache].values.data;
        r.cache.n_positions[heads.region] = caches[cache].n_positions;
        r.cache.position_bytes[heads.region] = (size_t)(N_LAYER * heads.n_head_kv) * heads.head_bytes;
        r.n_visible = n_visible;
        return r;
    }
    const Sequence &sequence(const DeviceRow &row) const {
        return caches[row.cache.keys[heads.region] == caches[1].keys.data];
    }
    int first_visible(const DeviceRow &row) const {
        return shape.window && row.position >= shape.window ? row.position - shape.window + 1 : 0;
    }
    int first_chunk(const DeviceRow &row) const { return first_visible(row) / CACHE_CHUNK; }
    int chunks_seen(const DeviceRow &row) const { return cache_chunks(row.n_visible) - first_chunk(row); }
    /* That any row of these tests may see, and one for which there is no need. */
    int n_chunks() const { return shape.window ? chunks_at_once(64, shape.window) : 3; }
    double query_scale(int position) const {
        const double plain = 1 / sqrt(shape.head_size);
        if (!shape.growth) return plain;
        return plain * (1 + shape.growth * log(1 + floor((double)position / shape.period)));
    }
    size_t columns() const { return (size_t)(heads.n_head * heads.head_size); }
};

static std::vector<float> angles_of(const Attention &a, const std::vector<DeviceRow> &rows) {
    std::vector<float> out;
    for (const DeviceRow &row : rows)
        for (double frequency : a.frequencies) {
            out.push_back((float)cos(row.position * frequency));
            out.push_back((float)sin(row.position * frequency));
        }
    return out;
}

/* Returns the queries. */
static std::vector<float> rotate_and_store(const Attention &a, const std::vector<DeviceRow> &rows,
                                           const std::vector<float> &q, const std::vector<float> &k,
                                           const std::vector<float> &v) {
    const Device<DeviceRow> device_rows(rows);
    const Device<float> angles(angles_of(a, rows)), device_q(q), device_k(k), device_v(v);
    queue_rotate_and_store(stream, &a.heads, device_rows.data, (int)rows.size(), angles.data,
                           a.shape.gains ? a.device_q_gain.data : nullptr,
                           a.shape.gains ? a.device_k_gain.data : nullptr, q.empty() ? nullptr : device_q.data,
                           a.q_stride, k.empty() ? nullptr : device_k.data, a.shape.without_v ? nullptr : device_v.data,
                           a.kv_stride);
    return device_q.read();
}

static std::vector<Token> attend(const Attention &a, const std::vector<DeviceRow> &rows, const std::vector<float> &q,
                                 int n_chunks) {
    const int n = (int)rows.size();
    const Device<DeviceRow> device_rows(rows);
    const size_t row_bytes = attention_row_bytes(a.heads.n_head, (int)a.columns(), n_chunks);
    const Device<float> device_q(q), scratch((size_t)n * row_bytes / sizeof(float));
    const Operand out((int)a.columns(), n);
    const DeviceOperand o = out.device();
    queue_attend(stream, &a.heads, device_rows.data, n, n_chunks, device_q.data, a.q_stride, a.gates, a.gate_stride,
                 scratch.data, &o);
    return read_tokens(out, n);
}

/* Of the norms of heads: sums have size / 32 roundings of a lane and 5 of the warp. */
static double head_error(int size, int more) { return (size / 32 + 1 + 5 + more) * U * SECOND_ORDER; }

static double norm_factor(const std::vector<double> &x, float eps) {
    double squares = 0;
    for (double y : x) squares += y * y;
    return 1 / sqrt(squares / (double)x.size() + eps);
}

/* A head normed and rotated in double precision, by the same angles; `error`: of the float computation. Beside the
 * norm's sum there are at most 13 roundings; 7 more where what is normed has been rotated, and 3 of a scale that grows.
 */
static void exact_head(const Attention &a, const float *x, const std::vector<float> *gain, const float *turn,
                       double scale, std::vector<double> *out, std::vector<double> *error) {
    const int size = a.shape.head_size, half = a.shape.n_rotated / 2;
    const bool early = gain && !a.shape.norm_rotated, late = gain && a.shape.norm_rotated;
    std::vector<double> y(x, x + size);
    const double factor = early ? norm_factor(y, a.heads.eps) : 1;
    for (size_t d = 0; d < (size_t)size; d++) y[d] *= (early ? factor * (*gain)[d] : 1) * scale;
    std::vector<double> magnitude(y);
    *out = y;
    for (int i = 0; i < half; i++) {
        const size_t first = (size_t)(a.shape.neox ? i : 2 * i),
                     second = a.shape.neox ? first + (size_t)half : first + 1;
        const double c = turn[2 * i], s = turn[2 * i + 1];
        (*out)[first] = y[first] * c - y[second] * s;
        (*out)[second] = y[first] * s + y[second] * c;
        magnitude[first] = fabs(y[first] * c) + fabs(y[second] * s);
        magnitude[second] = fabs(y[first] * s) + fabs(y[second] * c);
    }
    if (late) { /* the scale is in `out` already: it does not change what the norm makes of it but by eps */
        const double after = norm_factor(*out, (float)(a.heads.eps * scale * scale)) * scale;
        for (size_t d = 0; d < (size_t)size; d++) (*out)[d] *= after * (*gain)[d], magnitude[d] *= after * (*gain)[d];
    }
    error->clear();
    for (double m : magnitude)
        error->push_back(head_error(size, 13 + (late ? 7 : 0) + (a.shape.growth ? 3 : 0)) * fabs(m));
}

/* Where a number of a cache lies, in bytes, and in 8 bits its scale. */
struct Cell {
    size_t number, scale;
};

static Cell cell_of(const Attention &a, bool key, int n_positions, int head, int position, int d) {
    const int size = a.shape.head_size, p = position % CACHE_CHUNK;
    const size_t chunk = cache_chunk_at(n_positions, (size_t)(N_LAYER * a.heads.n_head_kv) * a.heads.head_bytes,
                                        a.heads.first_byte, a.heads.head_bytes, head, position / CACHE_CHUNK);
    if (a.shape.kv_type == BEE_KV_F16) return {chunk + 2 * (key ? key_place(size, p, d) : value_place(size, p, d)), 0};
    return {chunk + (key ? key_code_place(size, p, d) : value_code_place(size, p, d)),
            chunk + (size_t)(CACHE_CHUNK * size) + 2 * (key ? key_scale_place(p, d) : value_scale_place(p, d))};
}

static uint16_t half_at(const std::vector<uint8_t> &all, size_t at) { return (uint16_t)(all[at] | all[at + 1] << 8); }

static void set_half(std::vector<uint8_t> *all, size_t at, uint16_t half) {
    (*all)[at] = (uint8_t)half, (*all)[at + 1] = (uint8_t)(half >> 8);
}

/* As the kernel has it: in 8 bits the product's float16. */
static float cached(const Attention &a, const std::vector<uint8_t> &all, bool key, const DeviceRow &row, int head,
                    int position, int d) {
    const Cell cell = cell_of(a, key, row.cache.n_positions[a.heads.region], head, position, d);
    if (!cell.scale) return float_from_f16(half_at(all, cell.number));
    return float_from_f16(f16_from_float((float)(int8_t)all[cell.number] * float_from_f16(half_at(all, cell.scale))));
}

/* How far a number is from what was stored of it: of 8 bits half a step, the scale's rounding, and the product's. */
static double stored_error(const Attention &a, const std::vector<uint8_t> &all, bool key, const DeviceRow &row,
                           int head, int d, double x) {
    if (a.shape.kv_type == BEE_KV_F16) return U16 * fabs(x) + TINY16;
    const Cell cell = cell_of(a, key, row.cache.n_positions[a.heads.region], head, row.position, d);
    const double scale = float_from_f16(half_at(all, cell.scale));
    return scale / 2 + 127 * (U16 * scale + TINY16) + U16 * (fabs(x) + scale) + TINY16;
}

/* What rotate_and_store left of a row: queries are float, keys and values float16 of what they should be. */
static void check_stored(const Attention &a, const DeviceRow &row, const float *turn, const float *q, const float *k,
                         const float *v, const float *q_out, const std::vector<uint8_t> &keys,
                         const std::vector<uint8_t> &values) {
    const int size = a.shape.head_size;
    std::vector<double> exact, error;
    for (int head = 0; q && head < a.heads.n_head; head++) {
        exact_head(a, q + head * size, a.shape.gains ? &a.q_gain : nullptr, turn, a.query_scale(row.position), &exact,
                   &error);
        for (size_t d = 0; d < (size_t)size; d++) CHECK_NEAR(q_out[head * size + (int)d], exact[d], error[d]);
    }
    for (int head = 0; head < a.heads.n_head_kv; head++) {
        exact_head(a, k + head * size, a.shape.gains ? &a.k_gain : nullptr, turn, 1, &exact, &error);
        for (int d = 0; d < size; d++) {
            const double x = exact[(size_t)d];
            CHECK_NEAR(cached(a, keys, true, row, head, row.position, d), x,
                       (stored_error(a, keys, true, row, head, d, x) + error[(size_t)d]) * SECOND_ORDER);
        }
        const float *value = (a.shape.without_v ? k : v) + head * size;
        const double factor =
            a.shape.norm_values ? norm_factor(std::vector<double>(value, value + size), a.heads.eps) : 1;
        for (int d = 0; d < size; d++) {
            const double x = value[d] * factor;
            const float stored = cached(a, values, false, row, head, row.position, d);
            if (!a.shape.norm_values && a.shape.kv_type == BEE_KV_F16)
                CHECK_EQ(f16_from_float(stored), f16_from_float(value[d]));
            CHECK_NEAR(stored, x,
                       (stored_error(a, values, false, row, head, d, x) + head_error(size, 6) * fabs(x)) *
                           SECOND_ORDER);
        }
    }
}

/* Positions [0, n) of a sequence, in passes; of a ring, those that it still has and some that were there before. */
static void fill_cache(Attention &a, int cache, int n) {
    const int kept = a.caches[cache].n_positions + 50, first = n > kept ? n - kept : 0;
    for (int begin = first; begin < n; begin += BEE_MAX_PASS_ROWS) {
        const int end = n - begin < BEE_MAX_PASS_ROWS ? n : begin + BEE_MAX_PASS_ROWS, count = end - begin;
        std::vector<DeviceRow> rows;
        for (int position = begin; position < end; position++) rows.push_back(a.row(cache, position, position + 1));
        const auto k = random_floats((size_t)count * a.kv_stride, 1, &a.random);
        const auto v = random_floats((size_t)count * a.kv_stride, 1, &a.random);
        rotate_and_store(a, rows, {}, k, v);
        const auto keys = a.caches[cache].keys.read(), values = a.caches[cache].values.read();
        const auto turns = angles_of(a, rows);
        for (int i = 0; i < count; i += count > 4 ? count / 4 : 1)
            check_stored(a, rows[(size_t)i], turns.data() + i * a.shape.n_rotated, nullptr, &k[(size_t)i * a.kv_stride],
                         &v[(size_t)i * a.kv_stride], nullptr, keys, values);
    }
}

/* Against the cache's and the rounded queries' exact attention. With scores off by at most e, weights are off by 2 e,
 * by the exponential, whose argument is rounded, and by their rounding to float16, r in all, relative, or by TINY16;
 * the folds multiply by an exponential more. As numerator and denominator have the same weights, the result is off by r
 * times the mean distance of the values from it. On top come the roundings of both sums: in a warp's matrix
 * instructions 32 positions, of four warps and the folds one each, and three of the quotient. A sink is a position more
 * whose value is zero. A score's cap follows it at most, and has errors of its own. */
static void check_attended(const Attention &a, const DeviceRow &row, int head, const float *q, const float *out,
                           const std::vector<uint8_t> &keys, const std::vector<uint8_t> &values) {
    const int size = a.shape.head_size, kv = head / a.shape.group, begin = a.first_visible(row);
    const int n_folds = a.chunks_seen(row);
    std::vector<double> score;
    double top = -INFINITY, e = 0, sum = 0, lowest = INFINITY;
    for (int p = begin; p < row.n_visible; p++) {
        double x = 0, magnitude = 0;
        for (int d = 0; d < size; d++) {
            const double product = (double)float_from_f16(f16_from_float(q[d])) * cached(a, keys, true, row, kv, p, d);
            x += product;
            magnitude += fabs(product);
        }
        if (a.shape.softcap) x = a.shape.softcap * tanh(x / a.shape.softcap);
        score.push_back(x);
        e = fmax(e, MATRIX * size * magnitude + (a.shape.softcap ? TANH_ERROR * fabs(x) : 0));
    }
    if (a.shape.sinks) score.push_back(a.sinks[(size_t)head]);
    for (double x : score) top = fmax(top, x), lowest = fmin(lowest, x);
    const double r = (2 * e + 2 * (U * (top - lowest) + EXP_ERROR) + U16) * SECOND_ORDER;
    for (double x : score) sum += exp(x - top);
    for (int d = 0; d < size; d++) {
        double value = 0, distance = 0, floor = 0, magnitude = 0;
        const auto v = [&](size_t i) {
            const int p = begin + (int)i;
            return p < row.n_visible ? (double)cached(a, values, false, row, kv, p, d) : 0.0;
        };
        for (size_t i = 0; i < score.size(); i++) value += exp(score[i] - top) / sum * v(i);
        for (size_t i = 0; i < score.size(); i++) {
            distance += exp(score[i] - top) / sum * fabs(v(i) - value);
            magnitude += exp(score[i] - top) / sum * fabs(v(i));
            floor += TINY16 / sum * fabs(v(i) - value);
        }
        const double sums = (32 * MATRIX + (4 + n_folds) * U) + (13 + n_folds) * U + 3 * U;
        CHECK_NEAR(out[d], value, SECOND_ORDER * (r * distance + floor + sums * magnitude));
    }
}

/* Rows of a pass with what they bring. */
struct Pass {
    std::vector<DeviceRow> rows;
    std::vector<float> q, k, v;
};

static void add_row(Attention &a, Pass *pass, const DeviceRow &row) {
    pass->rows.push_back(row);
    const auto q = random_floats(a.q_stride, a.shape.spread, &a.random);
    const auto k = random_floats(a.kv_stride, 1, &a.random), v = random_floats(a.kv_stride, 1, &a.random);
    pass->q.insert(pass->q.end(), q.begin(), q.end());
    pass->k.insert(pass->k.end(), k.begin(), k.end());
    pass->v.insert(pass->v.end(), v.begin(), v.end());
}

static bool is_idle(const DeviceRow &row) { return row.position < 0; }

/* Up to three rows of sequence 0, which end at position `length`; an idle one; two rows of sequence 1, and an idle one.
 * Not causal: each row sees its sequence's last. */
static Pass make_pass(Attention &a, int length, int other, bool causal) {
    Pass pass;
    for (int p = length > 3 ? length - 3 : 0; p < length; p++) add_row(a, &pass, a.row(0, p, causal ? p + 1 : length));
    add_row(a, &pass, a.row(0, -1, 1));
    for (int p = other - 2; p < other; p++) add_row(a, &pass, a.row(1, p, causal ? p + 1 : other));
    add_row(a, &pass, a.row(1, -1, 1));
    return pass;
}

static std::vector<float> row_of(const std::vector<float> &all, size_t stride, size_t row) {
    return std::vector<float>(all.begin() + (ptrdiff_t)(row * stride), all.begin() + (ptrdiff_t)((row + 1) * stride));
}

static void check_pass(const Attention &a, const Pass &pass, const std::vector<float> &q,
                       const std::vector<Token> &out) {
    const auto turns = angles_of(a, pass.rows);
    for (size_t i = 0; i < pass.rows.size(); i++) {
        const DeviceRow &row = pass.rows[i];
        if (is_idle(row)) continue;
        const auto keys = a.sequence(row).keys.read(), values = a.sequence(row).values.read();
        check_stored(a, row, turns.data() + i * (size_t)a.shape.n_rotated, &pass.q[i * a.q_stride],
                     &pass.k[i * a.kv_stride], &pass.v[i * a.kv_stride], &q[i * a.q_stride], keys, values);
        for (int head = 0; head < a.heads.n_head; head++) {
            const int at = head * a.shape.head_size;
            check_attended(a, row, head, &q[i * a.q_stride + (size_t)at], &out[i].values[(size_t)at], keys, values);
        }
        for (size_t c = a.columns(); c < out[i].codes.size(); c++) CHECK_EQ(out[i].codes[c], 0);
    }
}

/* A row alone, with more chunks than it needs, gives the same bits. */
static void check_company(const Attention &a, const Pass &pass, const std::vector<float> &q,
                          const std::vector<Token> &out) {
    for (size_t i = 0; i < pass.rows.size(); i++) {
        if (is_idle(pass.rows[i])) continue;
        const int n_chunks = a.chunks_seen(pass.rows[i]) + (int)(i % 2);
        const auto alone_q = rotate_and_store(a, {pass.rows[i]}, row_of(pass.q, a.q_stride, i),
                                              row_of(pass.k, a.kv_stride, i), row_of(pass.v, a.kv_stride, i));
        CHECK(same_bits(alone_q, row_of(q, a.q_stride, i)));
        CHECK(same_token(attend(a, {pass.rows[i]}, alone_q, n_chunks)[0], out[i]));
    }
#if defined(BEE_EMULATE)
    for (emulated_order = 1; emulated_order < 3; emulated_order++) {
        CHECK(same_bits(rotate_and_store(a, pass.rows, pass.q, pass.k, pass.v), q));
        const auto again = attend(a, pass.rows, q, a.n_chunks());
        for (size_t i = 0; i < out.size(); i++) CHECK(is_idle(pass.rows[i]) || same_token(again[i], out[i]));
    }
    emulated_order = 0;
#endif
}

/* A position that a row does not see may hold anything. Of both sequences all that the row, or some row of the pass,
 * does not see becomes NaN, and back again. */
static void check_unseen(const Attention &a, const Pass &pass, const std::vector<float> &q,
                         const std::vector<Token> &out) {
    for (size_t alone = 0; alone <= pass.rows.size(); alone++) { /* at last: all rows */
        const bool all = alone == pass.rows.size();
        if (!all && is_idle(pass.rows[alone])) continue;
        std::vector<uint8_t> before[N_CACHES][2];
        for (int c = 0; c < N_CACHES; c++) {
            const Sequence &s = a.caches[c];
            std::vector<bool> seen((size_t)s.n_positions);
            for (size_t i = 0; i < pass.rows.size(); i++) {
                const DeviceRow &row = pass.rows[i];
                if ((!all && i != alone) || is_idle(row) || &a.sequence(row) != &s) continue;
                for (int p = a.first_visible(row); p < row.n_visible; p++) seen[(size_t)(p % s.n_positions)] = true;
            }
            before[c][0] = s.keys.read(), before[c][1] = s.values.read();
            auto keys = before[c][0], values = before[c][1];
            for (int p = 0; p < s.n_positions; p++)
                for (int head = 0; head < a.heads.n_head_kv && !seen[(size_t)p]; head++)
                    for (int d = 0; d < a.shape.head_size; d++) {
                        const Cell key = cell_of(a, true, s.n_positions, head, p, d);
                        const Cell value = cell_of(a, false, s.n_positions, head, p, d);
                        set_half(&keys, key.scale ? key.scale : key.number, 0x7e00);
                        set_half(&values, value.scale ? value.scale : value.number, d % 2 ? 0x7e00 : 0x7c00);
                        if (value.scale) values[value.number] = 0x80;
                    }
            cudaMemcpyAsync(s.keys.data, keys.data(), keys.size(), cudaMemcpyHostToDevice, stream);
            cudaMemcpyAsync(s.values.data, values.data(), values.size(), cudaMemcpyHostToDevice, stream);
            wait();
        }
        const auto again = all ? attend(a, pass.rows, q, a.n_chunks())
                               : attend(a, {pass.rows[alone]}, row_of(q, a.q_stride, alone), a.n_chunks());
        for (size_t i = 0; i < pass.rows.size(); i++)
            if (!is_idle(pass.rows[i]) && (all || i == alone)) CHECK(same_token(again[all ? i : 0], out[i]));
        for (int c = 0; c < N_CACHES; c++) {
            const Sequence &s = a.caches[c];
            cudaMemcpyAsync(s.keys.data, before[c][0].data(), s.keys.n, cudaMemcpyHostToDevice, stream);
            cudaMemcpyAsync(s.values.data, before[c][1].data(), s.values.n, cudaMemcpyHostToDevice, stream);
            wait();
        }
    }
}

/* Queries without keys: of a layer that attends to what another one stored. */
static void check_queries_alone(const Attention &a, const Pass &pass, const std::vector<float> &q) {
    const auto keys = a.caches[0].keys.read(), values = a.caches[0].values.read();
    CHECK(same_bits(rotate_and_store(a, pass.rows, pass.q, {}, {}), q));
    CHECK(same_bits(a.caches[0].keys.read(), keys) && same_bits(a.caches[0].values.read(), values));
}

/* The last row of sequence 0 gets a value that is not finite: its own result is NaN, others' stay what they are. */
static void check_poison(const Attention &a, const Pass &pass, const std::vector<float> &q,
                         const std::vector<Token> &out, size_t last) {
    auto k = pass.k, v = pass.v;
    const bool normed = a.shape.norm_values || a.shape.norm_rotated;
    (a.shape.without_v ? k : v)[last * a.kv_stride + 1] = a.shape.neox || normed ? NAN : 1e6f;
    rotate_and_store(a, pass.rows, pass.q, k, v);
    const auto spoilt = attend(a, pass.rows, q, a.n_chunks());
    for (size_t i = 0; i < out.size(); i++) {
        if (is_idle(pass.rows[i])) continue;
        CHECK(same_token(spoilt[i], out[i]) == (i != last));
    }
    for (int d = 0; d < a.shape.group * a.shape.head_size; d++) CHECK(isnan(spoilt[last].values[(size_t)d]));
}

/* Of the keys of sequence 0 only the rows' own positions of the layer have changed: idle rows store nothing. */
static void check_changes(const Attention &a, const Pass &pass, const std::vector<uint8_t> &before,
                          const std::vector<uint8_t> &after) {
    std::vector<bool> may(before.size());
    for (const DeviceRow &row : pass.rows)
        for (int i = 0; i < a.shape.n_head_kv * a.shape.head_size; i++) {
            if (is_idle(row) || &a.sequence(row) != &a.caches[0]) continue;
            const Cell cell =
                cell_of(a, true, a.caches[0].n_positions, i / a.shape.head_size, row.position, i % a.shape.head_size);
            may[cell.number] = true;
            if (!cell.scale) may[cell.number + 1] = true;
            if (cell.scale) may[cell.scale] = may[cell.scale + 1] = true;
        }
    size_t changed = 0;
    for (size_t i = 0; i < after.size(); i++) {
        if (!may[i]) CHECK_EQ(after[i], before[i]);
        changed += after[i] != before[i];
    }
    CHECK(changed > 0);
}

static void test_attention_case(const Shape &shape, int length, bool causal) {
    const int other = shape.window ? shape.window + 140 : 130;
    Attention a(shape, (uint64_t)(shape.head_size * 1000 + shape.group * 10 + length));
    fill_cache(a, 0, length > 3 ? length - 3 : 0);
    fill_cache(a, 1, other - 2);
    const Pass pass = make_pass(a, length, other, causal);
    const auto before = a.caches[0].keys.read();
    const auto q = rotate_and_store(a, pass.rows, pass.q, pass.k, pass.v);
    check_changes(a, pass, before, a.caches[0].keys.read());
    const auto out = attend(a, pass.rows, q, a.n_chunks());
    check_pass(a, pass, q, out);
    check_company(a, pass, q, out);
    check_queries_alone(a, pass, q);
    check_unseen(a, pass, q, out);
    if (causal) check_poison(a, pass, q, out, (size_t)(length < 3 ? length : 3) - 1);
}

static void test_attention() {
    static const int head_sizes[] = {16, 64, 80, 128}, groups[] = {1, 3, 4, 20}, lengths[] = {1, 2, 127, 128, 129, 300};
    for (int h = 0; h < 4; h++)
        for (int g = 0; g < 4; g++)
            for (int l = (2 * h + g) % 3; l < 6; l += 3) {
                const int size = head_sizes[h];
                const bool neox = (h + g) % 2;
                const Shape shape = {size,       g == 3 ? 1 : 2,       groups[g], (g + l) % 2 ? size : size / 2, neox,
                                     l % 2 == 0, l % 4 < 2 ? 1.0 : 4.0};
                test_attention_case(shape, lengths[l], (h + g + l / 3) % 2 == 0);
            }
    /* The largest head, and a group that does not fill its second tile. */
    test_attention_case({1024, 1, 2, 1024, true, true, 1}, 20, true);
    test_attention_case({32, 1, 17, 32, false, false, 1}, 5, true);
}

/* What other families' heads add, alone and together. */
static void test_variants() {
    const Shape plain = {32, 2, 3, 32, true, true, 2};
    const auto with = [&](auto change) {
        Shape s = plain;
        change(s);
        return s;
    };
    const Shape shapes[] = {
        with([](Shape &s) { s.softcap = 5; }),
        with([](Shape &s) { s.sinks = true, s.gains = false; }),
        with([](Shape &s) { s.norm_rotated = true, s.n_rotated = 16; }),
        with([](Shape &s) { s.norm_values = true; }),
        with([](Shape &s) { s.norm_values = s.without_v = true, s.neox = false; }),
        with([](Shape &s) { s.without_v = true, s.n_rotated = 0, s.gains = false; }),
        with([](Shape &s) { s.growth = 0.1, s.period = 64, s.neox = false; }),
        with([](Shape &s) { s.n_rotated = 0; }),
        with([](Shape &s) {
            s.softcap = 2, s.sinks = s.norm_rotated = s.norm_values = true, s.growth = 0.2, s.period = 7;
        }),
    };
    for (const Shape &s : shapes)
        for (int length : {3, 200}) test_attention_case(s, length, true);
}

/* Gates multiply what the heads give, row by row. */
static void test_gated_heads() {
    Attention a({48, 1, 3, 48, true, false, 2}, 77);
    fill_cache(a, 0, 137);
    fill_cache(a, 1, 128);
    const Pass pass = make_pass(a, 140, 130, true);
    const auto q = rotate_and_store(a, pass.rows, pass.q, pass.k, pass.v);
    const auto plain = attend(a, pass.rows, q, a.n_chunks());
    const size_t stride = a.columns() + 20;
    const auto gates = random_floats(pass.rows.size() * stride, 4, &a.random);
    const Device<float> device_gates(gates);
    a.gate_stride = stride;
    a.gates = device_gates.data;
    const auto out = attend(a, pass.rows, q, a.n_chunks());
    for (size_t i = 0; i < pass.rows.size(); i++) {
        if (is_idle(pass.rows[i])) continue;
        for (size_t c = 0; c < a.columns(); c++) {
            const double expected = plain[i].values[c] / (1 + exp(-(double)gates[i * stride + c]));
            CHECK_NEAR(out[i].values[c], expected, (EXP_ERROR + 4 * U) * SECOND_ORDER * fabs(expected));
        }
        a.gates = device_gates.data + i * stride;
        CHECK(same_token(attend(a, {pass.rows[i]}, row_of(q, a.q_stride, i), a.n_chunks())[0], out[i]));
    }
}

/* A ring of chunks, which has come round or has not; windows of one position, less and more than a chunk. */
static void test_windows() {
    for (int window : {1, 7, 127, 128, 129, 300})
        for (int length : {window < 3 ? 3 : window, window + 2, window + 129, 900}) {
            const bool odd = (window + length) % 2;
            test_attention_case({16, 2, 2, 16, odd, false, 2, window}, length, length % 3 != 0);
        }
    test_attention_case({64, 1, 20, 64, true, true, 4, 100, 30, true}, 700, true);
}

/* A prompt's rows, and the end of another's, in one call and in several: the same bits. */
static void test_many_rows(const Shape &shape, int n) {
    Attention a(shape, (uint64_t)n);
    const int first = shape.window ? 700 : 90, other = n / 4;
    fill_cache(a, 0, first);
    fill_cache(a, 1, 200);
    Pass pass;
    for (int i = 0; i < n - other; i++) add_row(a, &pass, a.row(0, first + i, first + i + 1));
    for (int i = 0; i < other; i++) add_row(a, &pass, a.row(1, 200 + i, 200 + other));
    const auto q = rotate_and_store(a, pass.rows, pass.q, pass.k, pass.v);
    const auto out = attend(a, pass.rows, q, a.n_chunks());
    if (shape.window)
        for (size_t i = 0; i < (size_t)n; i += 9) {
            const DeviceRow &row = pass.rows[i];
            const auto keys = a.sequence(row).keys.read(), values = a.sequence(row).values.read();
            for (int head = 0; head < a.heads.n_head; head++) {
                const size_t at = (size_t)(head * shape.head_size);
                check_attended(a, row, head, &q[i * a.q_stride + at], &out[i].values[at], keys, values);
            }
        }
    for (size_t together : {1, 16, 48}) {
        for (size_t i = 0; i < (size_t)n; i += together) {
            const size_t end = i + together < (size_t)n ? i + together : (size_t)n;
            const std::vector<DeviceRow> rows(&pass.rows[i], pass.rows.data() + end);
            const std::vector<float> queries(&q[i * a.q_stride], q.data() + end * a.q_stride);
            int needed = 1;
            for (const DeviceRow &row : rows) needed = a.chunks_seen(row) > needed ? a.chunks_seen(row) : needed;
            const auto part = attend(a, rows, queries, needed + (int)(i / together) % 2);
            for (size_t j = i; j < end; j++) CHECK(same_token(part[j - i], out[j]));
        }
    }
}

/* Keys and values in 8 bits: heads of all kinds, whose last block of dimensions may be a half one, and all variants. */
static void test_codes() {
    const auto with = [](Shape s, auto change) {
        change(s);
        s.kv_type = BEE_KV_Q8_0;
        return s;
    };
    const auto none = [](Shape &) {};
    test_attention_case(with({16, 2, 4, 8, false, true, 1}, none), 1, true);
    test_attention_case(with({64, 2, 3, 64, true, true, 4}, none), 129, true);
    test_attention_case(with({80, 1, 20, 80, true, false, 1}, none), 300, false);
    test_attention_case(with({128, 2, 1, 64, true, true, 4}, none), 128, true);
    test_attention_case(with({576, 1, 2, 0, true, false, 1}, [](Shape &s) { s.without_v = true; }), 200, true);
    for (int window : {1, 129}) test_attention_case(with({48, 2, 2, 48, true, false, 2, window}, none), 900, true);
    const Shape plain = {32, 2, 3, 32, true, true, 2};
    test_attention_case(with(plain, [](Shape &s) { s.norm_values = s.without_v = true, s.neox = false; }), 200, true);
    test_attention_case(with(plain,
                             [](Shape &s) {
                                 s.softcap = 2, s.sinks = s.norm_rotated = s.norm_values = true;
                                 s.growth = 0.2, s.period = 7;
                             }),
                        200, true);
    test_many_rows(with({48, 1, 3, 32, true, true, 1}, none), 128);
    test_many_rows(with({32, 1, 3, 16, true, false, 2, 140}, none), 40);
}

/* What is reserved holds the rows that are taken together, whatever they see. */
static void test_rows_together() {
    for (int n_head : {1, 14, 64})
        for (int context : {1, 4096, 5000, 131072}) {
            const size_t bytes = attention_bytes(n_head, 128, chunk_bucket(context));
            for (int chunks = 1; chunks <= chunk_bucket(context); chunks *= 2) {
                const size_t row_bytes = attention_row_bytes(n_head, 128, chunks);
                const int together = attention_rows_together(bytes, row_bytes);
                CHECK(together >= ATTENTION_ROWS && together <= BEE_MAX_PASS_ROWS && together % ATTENTION_ROWS == 0);
                CHECK((size_t)together * row_bytes <= bytes);
                CHECK(together == BEE_MAX_PASS_ROWS || (size_t)(together + ATTENTION_ROWS) * row_bytes > bytes);
            }
        }
}

/* Wherever a window stands, and whatever a row sees of its pass. */
static void test_chunks_at_once() {
    for (int window : {1, 2, 100, 128, 129, 512, 1024}) {
        int most = 0;
        for (int position = window; position < window + 300; position++)
            for (int visible : {position + 1, position + BEE_MAX_PASS_ROWS}) {
                const int seen = cache_chunks(visible) - (position - window + 1) / CACHE_CHUNK;
                most = seen > most ? seen : most;
            }
        CHECK_EQ(chunks_at_once(1 << 20, window), most);
        CHECK_EQ(chunks_at_once(2, window), 2);
    }
    CHECK_EQ(chunks_at_once(64, 0), 64);
    CacheShape shape = {};
    shape.position_bytes[1] = 64, shape.window = 100;
    CHECK_EQ(attention_chunks(&shape, 100000), chunks_at_once(1024, 100));
    shape.position_bytes[0] = 64;
    CHECK_EQ(attention_chunks(&shape, 100000), 1024);
}

/* Small weights on eight positions and none on the eight behind, which hold zeros or `unseen`. */
static __global__ void multiply_small(unsigned seed, float unseen, float *out) {
    const int t = lane_of() % 4;
    unsigned a[4] = {0, 0, 0, 0}, b[2];
    for (int i = 0; i < 2; i++)
        a[i] = (unsigned)half_from_float(0x1p-20f * (float)(1 + (seed + (unsigned)t) % 7)) << 16 | 1;
    b[0] = (unsigned)half_from_float((float)((seed >> t) % 9) - 4.0f) << 16 | half_from_float(1.0f / (float)(1 + t));
    b[1] = (unsigned)half_from_float(unseen) * 0x10001u;
    const float none[4] = {0, 0, 0, 0};
    float d[4];
    mma_f16_k16(d, a, b, none);
    for (int i = 0; i < 4; i++) out[4 * lane_of() + i] = d[i];
}

/* Attention counts on it: a position that a row does not see takes no bit from those that it sees, whatever lies there,
 * though a tensor core aligns all products of a step to the largest. */
static void test_unseen_products() {
    for (unsigned seed = 0; seed < 200; seed++) {
        const Device<float> zero(4 * WARP_SIZE), large(4 * WARP_SIZE);
        launch(stream, dim3(1), dim3(WARP_SIZE), 0, multiply_small, seed * 2654435761u, 0.0f, zero.data);
        launch(stream, dim3(1), dim3(WARP_SIZE), 0, multiply_small, seed * 2654435761u, 60000.0f, large.data);
        CHECK(same_bits(zero.read(), large.read()));
    }
}

int main() {
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return 77; /* no device: skipped */
    test_embed();
    for (int columns : {32, 48, 64, 352, 1088}) test_rows_case(columns);
    for (int columns : {16, 72, 1500})
        test_norm_in_place(columns, columns < 100 ? 5 : 2, columns != 16, columns > 100, columns == 72);
    for (int columns : {48, 1088, 2500})
        for (int normed = 0; normed < 2; normed++) test_add(columns, normed);
    for (int columns : {31, 96, 300})
        for (Activation activation :
             {ACTIVATION_SILU, ACTIVATION_GELU, ACTIVATION_CLAMPED, ACTIVATION_LOGISTIC, ACTIVATION_RELU_SQUARED})
            test_gate_values(activation, columns);
    test_add_gated();
    test_routes();
    for (int columns : {32, 70, 352}) test_gather(columns);
    test_sum_answers();
    test_cap();
    test_angles();
    test_copy();
    test_attention();
    test_gated_heads();
    test_many_rows({32, 1, 3, 32, true, true, 1}, 128);
    test_many_rows({16, 2, 20, 8, false, false, 4}, 40);
    test_many_rows({16, 1, 3, 16, true, false, 2, 140}, 128);
    test_variants();
    test_windows();
    test_codes();
    test_rows_together();
    test_chunks_at_once();
    test_unseen_products();
    CHECK_EQ(cudaGetLastError(), cudaSuccess);
    cudaStreamDestroy(stream);
    return check_report();
}
