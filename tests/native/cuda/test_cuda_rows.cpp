/* Tests of the CUDA backend's rows.cu and attention.cu, on the host's emulation or, compiled by nvcc, on a device:
 * against double precision within bounds that follow from the roundings, and against themselves bit for bit where rows
 * are computed in other company.
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
        const int columns = type.columns == 256 ? 768 : 352, n_rows = 7, n = 5;
        const size_t stride = (size_t)columns + 96;
        for (int finite = 0; finite < 2; finite++) {
            const Tensor tensor = random_tensor(&type, n_rows, columns, finite, &random);
            const Device<uint8_t> raw(std::vector<uint8_t>(tensor.data, tensor.data + tensor.size));
            std::vector<DeviceRow> rows;
            for (int i = 0; i < n; i++)
                rows.push_back(plain_row(i == 1 ? n_rows - 1 : random_below(&random, n_rows), i));
            const Device<DeviceRow> device_rows(rows);
            const Device<float> x((size_t)n * stride);
            queue_embed(stream, type.type, raw.data, tensor.size / n_rows, columns, device_rows.data, n, x.data,
                        stride);
            const auto out = x.read();
            std::vector<float> expected(stride);
            for (int i = 0; i < n; i++) {
                dequantize_row(&tensor, rows[(size_t)i].token, expected.data());
                CHECK(same_floats(&out[(size_t)i * stride], expected.data(), stride));
            }
            free((void *)tensor.data);
        }
    }
}

/* Squares are summed by 1024 threads, each of which adds columns / 1024 of them, then 32 lanes and 32 warps by halves:
 * the sum is off by that many roundings, relative; the root halves that. Then quotient, eps, root, inverse and two
 * products. */
static void check_norm(const float *x, const float *gain, float eps, int columns, const Token &token) {
    double squares = 0;
    for (int c = 0; c < columns; c++) squares += (double)x[c] * x[c];
    const double factor = 1 / sqrt(squares / columns + eps), relative = ((columns / 1024 + 1 + 5 + 5) / 2.0 + 6) * U;
    for (int c = 0; c < columns; c++) {
        const double expected = x[c] * factor * gain[c];
        CHECK_NEAR(token.values[(size_t)c], expected, relative * SECOND_ORDER * fabs(expected));
    }
}

static void test_rows_case(int columns) {
    Random random = {(uint64_t)columns};
    const int n = 11, n_x = 14;
    const size_t stride = (size_t)columns + 16;
    const float eps = 1e-5f;
    std::vector<float> x = random_floats(n_x * stride, 3, &random);
    const std::vector<float> gain = random_floats((size_t)columns, 1, &random);
    std::vector<int32_t> index;
    for (int i = 0; i < n; i++) index.push_back((5 * i + 2) % n_x);
    const Device<float> device_x(x), device_gain(gain);
    const Device<int32_t> device_index(index);
    for (int norm = 0; norm < 2; norm++) {
        const auto compute = [&](const float *from, const int32_t *at, int rows) {
            const Operand out(columns, rows);
            const DeviceOperand o = out.device();
            if (norm)
                queue_rms_norm(stream, from, stride, at, device_gain.data, eps, columns, rows, &o);
            else
                queue_to_operand(stream, from, stride, at, rows, &o);
            const auto tokens = read_tokens(out, rows);
            if (rows == n && from == device_x.data && at) check_forms(out, tokens[0]);
            return tokens;
        };
        Device<float> spoilt(x);
        const auto indexed = compute(device_x.data, device_index.data, n),
                   direct = compute(device_x.data, nullptr, n_x);
        for (int i = 0; i < n; i++) {
            const float *row = &x[(size_t)index[(size_t)i] * stride];
            if (norm) check_norm(row, gain.data(), eps, columns, indexed[(size_t)i]);
            if (!norm) CHECK(same_floats(row, indexed[(size_t)i].values.data(), (size_t)columns));
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
        for (int c = 0; c < columns; c++) CHECK(isnan(poisoned[3].values[(size_t)c]) == (norm || c == columns - 1));
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

static void test_angles() {
    Random random = {4};
    const int n_rotated = 144, n = 6;
    std::vector<double> frequencies;
    for (int d = 0; d < n_rotated / 2; d++) frequencies.push_back(pow(10000, -2.0 * d / n_rotated));
    const Device<double> device_frequencies(frequencies);
    std::vector<DeviceRow> rows;
    for (int i = 0; i < n; i++) rows.push_back(plain_row(0, i == 0 ? 0 : i == 1 ? -1 : random_below(&random, 131072)));
    const Device<DeviceRow> device_rows(rows);
    const Device<float> angles((size_t)(n * n_rotated));
    queue_rope_angles(stream, n_rotated, device_frequencies.data, device_rows.data, n, angles.data);
    const auto out = angles.read();
    for (int i = 0; i < n; i++)
        for (int d = 0; d < n_rotated / 2; d++) {
            const double angle = rows[(size_t)i].position * frequencies[(size_t)d];
            CHECK_NEAR(out[(size_t)(i * n_rotated + 2 * d)], cos(angle), U * fabs(cos(angle)) + 1e-15);
            CHECK_NEAR(out[(size_t)(i * n_rotated + 2 * d + 1)], sin(angle), U * fabs(sin(angle)) + 1e-15);
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

struct DeviceCache {
    Device<uint16_t> keys, values;
    int n_ctx;
    DeviceCache(int ctx, int n_head_kv, int head_size)
        : keys((size_t)(N_LAYER * n_head_kv * ctx * head_size)), values(keys.n), n_ctx(ctx) {}
};

struct Shape {
    int head_size, n_head_kv, group, n_rotated;
    bool neox, gains;
    double spread; /* of the queries: flat and sharp distributions */
};

/* A model's heads, two sequences, and what the rows of a pass need. */
struct Attention {
    Shape shape;
    DeviceHeads heads;
    size_t q_stride, kv_stride;
    std::vector<double> frequencies;
    std::vector<float> q_gain, k_gain;
    Device<double> device_frequencies;
    Device<float> device_q_gain, device_k_gain;
    DeviceCache caches[N_CACHES];
    Random random;

    static std::vector<double> made_frequencies(const Shape &s) {
        std::vector<double> out;
        for (int d = 0; d < s.n_rotated / 2; d++) out.push_back(pow(500, -2.0 * d / s.n_rotated));
        return out;
    }
    Attention(const Shape &s, uint64_t seed)
        : shape(s), heads(), q_stride((size_t)(s.group * s.n_head_kv * s.head_size) + 16),
          kv_stride((size_t)(s.n_head_kv * s.head_size) + 16), frequencies(made_frequencies(s)),
          device_frequencies(frequencies), device_q_gain((size_t)s.head_size), device_k_gain((size_t)s.head_size),
          caches{DeviceCache(CONTEXT, s.n_head_kv, s.head_size), DeviceCache(CONTEXT + 128, s.n_head_kv, s.head_size)},
          random{seed} {
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
        heads.first_column = LAYER * s.n_head_kv * s.head_size;
        heads.scale = 1 / sqrtf((float)s.head_size);
    }
    DeviceRow row(int cache, int position, int n_visible) const {
        DeviceRow r = plain_row(0, position);
        r.keys = caches[cache].keys.data;
        r.values = caches[cache].values.data;
        r.n_ctx = caches[cache].n_ctx;
        r.n_visible = n_visible;
        return r;
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
                           a.q_stride, device_k.data, device_v.data, a.kv_stride);
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
    queue_attend(stream, &a.heads, device_rows.data, n, n_chunks, device_q.data, a.q_stride, scratch.data, &o);
    return read_tokens(out, n);
}

/* A head normed and rotated in double precision, by the same angles; `error`: of the float computation. The norm's sum
 * has size / 32 roundings of a lane and 5 of the warp; the rest is at most 13 roundings more. */
static void exact_head(const Attention &a, const float *x, const std::vector<float> *gain, const float *turn,
                       double scale, std::vector<double> *out, std::vector<double> *error) {
    const int size = a.shape.head_size, half = a.shape.n_rotated / 2;
    double squares = 0;
    for (int d = 0; d < size; d++) squares += (double)x[d] * x[d];
    std::vector<double> y((size_t)size);
    for (int d = 0; d < size; d++)
        y[(size_t)d] = x[d] * (gain ? 1 / sqrt(squares / size + a.heads.eps) * (*gain)[(size_t)d] : 1) * scale;
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
    error->clear();
    for (double m : magnitude) error->push_back((size / 32 + 1 + 5 + 13) * U * SECOND_ORDER * fabs(m));
}

static float cached(const Attention &a, const std::vector<uint16_t> &all, bool key, const DeviceRow &row, int head,
                    int position, int d) {
    const int size = a.shape.head_size;
    const size_t chunk = cache_chunk_at(row.n_ctx, a.heads.first_column, size, head, position / CACHE_CHUNK);
    const int p = position % CACHE_CHUNK;
    return float_from_f16(all[chunk + (key ? key_place(size, p, d) : value_place(size, p, d))]);
}

/* What rotate_and_store left of a row: queries are float, keys and values float16 of what they should be. */
static void check_stored(const Attention &a, const DeviceRow &row, const float *turn, const float *q, const float *k,
                         const float *v, const float *q_out, const std::vector<uint16_t> &keys,
                         const std::vector<uint16_t> &values) {
    const int size = a.shape.head_size;
    std::vector<double> exact, error;
    for (int head = 0; q && head < a.heads.n_head; head++) {
        exact_head(a, q + head * size, a.shape.gains ? &a.q_gain : nullptr, turn, 1 / sqrt(size), &exact, &error);
        for (size_t d = 0; d < (size_t)size; d++) CHECK_NEAR(q_out[head * size + (int)d], exact[d], error[d]);
    }
    for (int head = 0; head < a.heads.n_head_kv; head++) {
        exact_head(a, k + head * size, a.shape.gains ? &a.k_gain : nullptr, turn, 1, &exact, &error);
        for (int d = 0; d < size; d++) {
            const double x = exact[(size_t)d];
            CHECK_NEAR(cached(a, keys, true, row, head, row.position, d), x,
                       (U16 * fabs(x) + TINY16 + error[(size_t)d]) * SECOND_ORDER);
            CHECK_EQ(f16_from_float(cached(a, values, false, row, head, row.position, d)),
                     f16_from_float(v[head * size + d]));
        }
    }
}

/* Positions [0, n) of a sequence. */
static void fill_cache(Attention &a, int cache, int n) {
    std::vector<DeviceRow> rows;
    for (int position = 0; position < n; position++) rows.push_back(a.row(cache, position, position + 1));
    if (!n) return;
    const auto k = random_floats((size_t)n * a.kv_stride, 1, &a.random);
    const auto v = random_floats((size_t)n * a.kv_stride, 1, &a.random);
    rotate_and_store(a, rows, {}, k, v);
    const auto keys = a.caches[cache].keys.read(), values = a.caches[cache].values.read();
    const auto turns = angles_of(a, rows);
    for (int i = 0; i < n; i += n > 4 ? n / 4 : 1)
        check_stored(a, rows[(size_t)i], &turns[(size_t)(i * a.shape.n_rotated)], nullptr, &k[(size_t)i * a.kv_stride],
                     &v[(size_t)i * a.kv_stride], nullptr, keys, values);
}

/* Against the cache's and the rounded queries' exact attention. With scores off by at most e, weights are off by 2 e,
 * by the exponential, whose argument is rounded, and by their rounding to float16, r in all, relative, or by TINY16;
 * the folds multiply by an exponential more. As numerator and denominator have the same weights, the result is off by r
 * times the mean distance of the values from it. On top come the roundings of both sums: in a warp's matrix
 * instructions 32 positions, of four warps and the folds one each, and three of the quotient. */
static void check_attended(const Attention &a, const DeviceRow &row, int head, const float *q, const float *out,
                           const std::vector<uint16_t> &keys, const std::vector<uint16_t> &values) {
    const int size = a.shape.head_size, kv = head / a.shape.group, n = row.n_visible;
    const int n_folds = (n - 1) / CACHE_CHUNK + 1;
    std::vector<double> score((size_t)n);
    double top = -INFINITY, e = 0, sum = 0, lowest = INFINITY;
    for (int p = 0; p < n; p++) {
        double x = 0, magnitude = 0;
        for (int d = 0; d < size; d++) {
            const double product = (double)float_from_f16(f16_from_float(q[d])) * cached(a, keys, true, row, kv, p, d);
            x += product;
            magnitude += fabs(product);
        }
        score[(size_t)p] = x;
        e = fmax(e, MATRIX * size * magnitude);
        top = fmax(top, x);
        lowest = fmin(lowest, x);
    }
    const double r = (2 * e + 2 * (U * (top - lowest) + EXP_ERROR) + U16) * SECOND_ORDER;
    for (int p = 0; p < n; p++) sum += exp(score[(size_t)p] - top);
    for (int d = 0; d < size; d++) {
        double value = 0, distance = 0, floor = 0, magnitude = 0;
        const auto v = [&](int p) { return (double)cached(a, values, false, row, kv, p, d); };
        for (int p = 0; p < n; p++) value += exp(score[(size_t)p] - top) / sum * v(p);
        for (int p = 0; p < n; p++) {
            distance += exp(score[(size_t)p] - top) / sum * fabs(v(p) - value);
            magnitude += exp(score[(size_t)p] - top) / sum * fabs(v(p));
            floor += TINY16 / sum * fabs(v(p) - value);
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
        const DeviceCache &cache = a.caches[row.keys == a.caches[1].keys.data];
        const auto keys = cache.keys.read(), values = cache.values.read();
        check_stored(a, row, &turns[i * (size_t)a.shape.n_rotated], &pass.q[i * a.q_stride], &pass.k[i * a.kv_stride],
                     &pass.v[i * a.kv_stride], &q[i * a.q_stride], keys, values);
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
        const int needed = (pass.rows[i].n_visible + CACHE_CHUNK - 1) / CACHE_CHUNK;
        const int n_chunks = i % 2 && needed < 3 ? needed + 1 : needed;
        const auto alone_q = rotate_and_store(a, {pass.rows[i]}, row_of(pass.q, a.q_stride, i),
                                              row_of(pass.k, a.kv_stride, i), row_of(pass.v, a.kv_stride, i));
        CHECK(same_bits(alone_q, row_of(q, a.q_stride, i)));
        CHECK(same_token(attend(a, {pass.rows[i]}, alone_q, n_chunks)[0], out[i]));
    }
#if defined(BEE_EMULATE)
    for (emulated_order = 1; emulated_order < 3; emulated_order++) {
        CHECK(same_bits(rotate_and_store(a, pass.rows, pass.q, pass.k, pass.v), q));
        const auto again = attend(a, pass.rows, q, 3);
        for (size_t i = 0; i < out.size(); i++) CHECK(is_idle(pass.rows[i]) || same_token(again[i], out[i]));
    }
    emulated_order = 0;
#endif
}

/* The last row of sequence 0 gets a value that is not finite: its own result is NaN, others' stay what they are. */
static void check_poison(const Attention &a, const Pass &pass, const std::vector<float> &q,
                         const std::vector<Token> &out, size_t last) {
    auto v = pass.v;
    v[last * a.kv_stride + 1] = a.shape.neox ? NAN : 1e6f;
    rotate_and_store(a, pass.rows, pass.q, pass.k, v);
    const auto spoilt = attend(a, pass.rows, q, 3);
    for (size_t i = 0; i < out.size(); i++) {
        if (is_idle(pass.rows[i])) continue;
        CHECK(same_token(spoilt[i], out[i]) == (i != last));
    }
    for (int d = 0; d < a.shape.group * a.shape.head_size; d++) CHECK(isnan(spoilt[last].values[(size_t)d]));
}

static void test_attention_case(const Shape &shape, int length, bool causal) {
    const int other = 130;
    Attention a(shape, (uint64_t)(shape.head_size * 1000 + shape.group * 10 + length));
    fill_cache(a, 0, length > 3 ? length - 3 : 0);
    fill_cache(a, 1, other - 2);
    const Pass pass = make_pass(a, length, other, causal);
    const auto before = a.caches[0].keys.read();
    const auto q = rotate_and_store(a, pass.rows, pass.q, pass.k, pass.v);
    /* Only the rows' own positions of the layer have changed: idle rows store nothing. */
    size_t changed = 0, n_stored = 0;
    const auto after = a.caches[0].keys.read();
    for (size_t i = 0; i < after.size(); i++) changed += after[i] != before[i];
    for (const DeviceRow &row : pass.rows) n_stored += !is_idle(row) && row.keys == a.caches[0].keys.data;
    CHECK_EQ(changed, n_stored * (size_t)(shape.n_head_kv * shape.head_size));
    const auto out = attend(a, pass.rows, q, 3);
    check_pass(a, pass, q, out);
    check_company(a, pass, q, out);
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

/* A prompt's rows, and the end of another's, in one call and in several: the same bits. */
static void test_many_rows(const Shape &shape, int n) {
    Attention a(shape, (uint64_t)n);
    const int first = 90, other = n / 4;
    fill_cache(a, 0, first);
    fill_cache(a, 1, 200);
    Pass pass;
    for (int i = 0; i < n - other; i++) add_row(a, &pass, a.row(0, first + i, first + i + 1));
    for (int i = 0; i < other; i++) add_row(a, &pass, a.row(1, 200 + i, 200 + other));
    const auto q = rotate_and_store(a, pass.rows, pass.q, pass.k, pass.v);
    const auto out = attend(a, pass.rows, q, 3);
    for (size_t together : {1, 16, 48}) {
        for (size_t i = 0; i < (size_t)n; i += together) {
            const size_t end = i + together < (size_t)n ? i + together : (size_t)n;
            const std::vector<DeviceRow> rows(&pass.rows[i], pass.rows.data() + end);
            const std::vector<float> queries(&q[i * a.q_stride], q.data() + end * a.q_stride);
            const auto part = attend(a, rows, queries, 2 + (int)(i / together) % 2);
            for (size_t j = i; j < end; j++) CHECK(same_token(part[j - i], out[j]));
        }
    }
}

/* What is reserved holds the rows that are taken together, whatever they see. */
static void test_rows_together() {
    for (int n_head : {1, 14, 64})
        for (int context : {1, 4096, 5000, 131072}) {
            const size_t bytes = attention_bytes(n_head, 128, context);
            for (int chunks = 1; chunks <= chunk_bucket(context); chunks *= 2) {
                const size_t row_bytes = attention_row_bytes(n_head, 128, chunks);
                const int together = attention_rows_together(bytes, row_bytes);
                CHECK(together >= ATTENTION_ROWS && together <= BEE_MAX_PASS_ROWS && together % ATTENTION_ROWS == 0);
                CHECK((size_t)together * row_bytes <= bytes);
                CHECK(together == BEE_MAX_PASS_ROWS || (size_t)(together + ATTENTION_ROWS) * row_bytes > bytes);
            }
        }
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
    test_angles();
    test_copy();
    test_attention();
    test_many_rows({32, 1, 3, 32, true, true, 1}, 128);
    test_many_rows({16, 2, 20, 8, false, false, 4}, 40);
    test_rows_together();
    test_unseen_products();
    CHECK_EQ(cudaGetLastError(), cudaSuccess);
    cudaStreamDestroy(stream);
    return check_report();
}
