/* Tests of the CUDA backend's packing and products, on a device or in the emulation (-DBEE_EMULATE): against double
 * precision from the operand's exact codes, within bounds that follow from the roundings, and against themselves bit
 * for bit where tokens are computed in other company.
 *
 * Bounds. u = 2^-24 is the largest relative error of one rounding to float. A sum of k terms that is accumulated in any
 * fixed order, every partial sum rounded, is off by at most k u (the sum of the terms' magnitudes); a rounding of each
 * term adds u of the same sum. The matrix instructions' sums of 16-bit numbers may cut each summand off at 2^-23 of the
 * largest, and there are 64 of a group (two parts of 32 columns) in 4 instructions, each with the sum so far: at most
 * 4 (16 + 1) 2 u = 136 u of the group's magnitudes, taken twice for what is not documented. */
#include "cuda/kernels.h"

#include "../check.h"
#include "must.h"

extern "C" {
#include "../ggml_blocks.h"
}

#include <cstdlib>

static const double U = 0x1p-24, SECOND_ORDER = 1.001;
static const double HARDWARE_SUM = 272;
/* The device's exponential is off by 2 units in the last place at most, of which each is at most 2 u. */
static const double EXP_ERROR = 4 * U;

static cudaStream_t stream;

/* ---- memory ----------------------------------------------------------------------------------------- */

static void *allocate(size_t bytes) {
    void *const memory = calloc(1, bytes ? bytes : 1);
    if (!memory) abort();
    return memory;
}

static float *new_floats(size_t count) { return (float *)allocate(count * sizeof(float)); }

static bool finished() {
    MUST(cudaStreamSynchronize(stream));
    MUST(cudaGetLastError());
    return true;
}

/* Device memory, all NaN. */
static void *device_memory(size_t bytes) {
    void *memory = nullptr;
    MUST(cudaMalloc(&memory, bytes ? bytes : 1));
    cudaMemsetAsync(memory, 0xff, bytes, stream);
    return memory;
}

static void upload(void *to, const void *from, size_t bytes) {
    cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream);
    finished();
}

static void download(void *to, const void *from, size_t bytes) {
    cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream);
    finished();
}

/* ---- operands --------------------------------------------------------------------------------------- */

static int operand_format(TensorType type) {
    return type == TYPE_F32    ? FORMAT_VALUES
           : type == TYPE_F16  ? FORMAT_F16
           : type == TYPE_BF16 ? FORMAT_BF16
                               : FORMAT_CODES;
}

static size_t n_operand_groups(const DeviceOperand *o) { return (size_t)(o->max_rows / 8) * (size_t)o->n_groups; }

static DeviceOperand new_operand(int columns, int max_rows, int formats) {
    DeviceOperand o = {};
    o.columns = columns;
    o.n_groups = (columns + 2 * GROUP - 1) / (2 * GROUP) * 2;
    o.max_rows = (max_rows + 7) / 8 * 8;
    o.formats = formats;
    const size_t groups = n_operand_groups(&o);
    if (formats & FORMAT_CODES) {
        o.codes = (int8_t *)device_memory(groups * 256);
        o.scales = (float2 *)device_memory(groups * 8 * sizeof(float2));
    }
    if (formats & FORMAT_F16) {
        o.f16 = (uint16_t *)device_memory(groups * 1024);
        o.f16_factors = (float *)device_memory(groups * 8 * sizeof(float));
    }
    if (formats & FORMAT_BF16) {
        o.bf16 = (uint16_t *)device_memory(groups * 1024);
        o.bf16_factors = (float *)device_memory(groups * 8 * sizeof(float));
    }
    if (formats & FORMAT_VALUES)
        o.values = (float *)device_memory((size_t)o.max_rows * (size_t)columns * sizeof(float));
    return o;
}

static void free_operand(DeviceOperand *o) {
    void *const memory[] = {o->codes, o->scales, o->f16, o->bf16, o->f16_factors, o->bf16_factors, o->values};
    for (void *one : memory) cudaFree(one);
}

static __global__ void fill_kernel(DeviceOperand o, const float *x) {
    const int group = (int)blockIdx.x, token = (int)blockIdx.y, column = group * GROUP + lane_of();
    store_group(&o, token, group, column < o.columns ? x[(size_t)token * (size_t)o.columns + (size_t)column] : 0.0f);
}

/* Tokens 0 to n - 1 of the operand become rows first to first + n - 1 of x. */
static void fill_operand(const DeviceOperand *o, const float *x, int first, int n) {
    const size_t bytes = (size_t)n * (size_t)o->columns * sizeof(float);
    float *const rows = (float *)device_memory(bytes);
    upload(rows, x + (size_t)first * (size_t)o->columns, bytes);
    launch(stream, dim3((unsigned)o->n_groups, (unsigned)n), dim3(WARP_SIZE), 0, fill_kernel, *o, (const float *)rows);
    finished();
    cudaFree(rows);
}

/* The numbers that an operand stands for, exact: its codes and their scales, or, of other formats, with scales 1. */
struct Decoded {
    double *values; /* [token][padded columns] */
    double *scales; /* [token][group] */
    int n_groups, stride;
};

static Decoded new_decoded(const DeviceOperand *o, int n) {
    Decoded d = {nullptr, nullptr, o->n_groups, o->n_groups * GROUP};
    d.values = (double *)allocate((size_t)n * (size_t)d.stride * sizeof(double));
    d.scales = (double *)allocate((size_t)n * (size_t)d.n_groups * sizeof(double));
    for (int i = 0; i < n * d.n_groups; i++) d.scales[i] = 1;
    return d;
}

static void free_decoded(Decoded *d) {
    free(d->values);
    free(d->scales);
}

static double half_value(uint16_t bits) {
    const int exponent = bits / 1024 % 32, fraction = bits % 1024;
    if (exponent == 31) return (double)NAN;
    return (bits & 0x8000 ? -1 : 1) * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
}

static double bfloat_value(uint16_t bits) {
    const uint32_t single = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &single, 4);
    return value;
}

static void *copy_back(const void *device, size_t bytes) {
    void *const memory = allocate(bytes);
    download(memory, device, bytes);
    return memory;
}

static void decode_codes(const DeviceOperand *o, int n, Decoded *out) {
    int8_t *const codes = (int8_t *)copy_back(o->codes, n_operand_groups(o) * 256);
    float2 *const scales = (float2 *)copy_back(o->scales, n_operand_groups(o) * 8 * sizeof(float2));
    int wrong = 0;
    for (int t = 0; t < n; t++)
        for (int g = 0; g < o->n_groups; g++) {
            const size_t at = operand_group(o, t, g);
            const float2 scale = scales[at * 8 + (size_t)(t % 8)];
            int total = 0;
            for (int i = 0; i < GROUP; i++) {
                const int lane = 4 * (t % 8) + i % 16 / 4;
                const int code = codes[(at * WARP_SIZE + (size_t)lane) * 8 + (size_t)(i / 16 * 4 + i % 4)];
                total += code;
                out->values[(size_t)t * (size_t)out->stride + (size_t)(g * GROUP + i)] = code;
            }
            out->scales[t * o->n_groups + g] = scale.x;
            wrong += scale.y != scale.x * (float)total;
        }
    CHECK_EQ(wrong, 0);
    free(codes);
    free(scales);
}

static void decode_halves(const DeviceOperand *o, bool bfloat, int n, Decoded *out) {
    uint16_t *const halves = (uint16_t *)copy_back(bfloat ? o->bf16 : o->f16, n_operand_groups(o) * 1024);
    float *const factors =
        (float *)copy_back(bfloat ? o->bf16_factors : o->f16_factors, n_operand_groups(o) * 8 * sizeof(float));
    for (int t = 0; t < n; t++)
        for (int c = 0; c < out->stride; c++) {
            const size_t at = operand_group(o, t, c / GROUP);
            const int step = c % GROUP / 16, i = c % 16, lane = 4 * (t % 8) + i % 8 / 2;
            const uint16_t *const place =
                halves + ((at * 2 + (size_t)step) * WARP_SIZE + (size_t)lane) * 8 + i / 8 * 2 + i % 2;
            const double sum =
                bfloat ? bfloat_value(place[0]) + bfloat_value(place[4]) : half_value(place[0]) + half_value(place[4]);
            out->values[(size_t)t * (size_t)out->stride + (size_t)c] = factors[at * 8 + (size_t)(t % 8)] * sum;
        }
    free(halves);
    free(factors);
}

/* What the type's products read of the first n tokens. `x` are the rows it was made of: 16-bit parts must hold them to
 * 2^-15 of the group's largest. */
static Decoded decode(const DeviceOperand *o, TensorType type, const float *x, int n) {
    Decoded d = new_decoded(o, n);
    if (type == TYPE_F16 || type == TYPE_BF16) {
        decode_halves(o, type == TYPE_BF16, n, &d);
        int wrong = 0;
        for (int t = 0; t < n; t++)
            for (int c = 0; c < o->columns; c++) {
                const float *const row = x + (size_t)t * (size_t)o->columns;
                double largest = 0;
                for (int i = c / GROUP * GROUP; i < (c / GROUP + 1) * GROUP && i < o->columns; i++)
                    largest = fmax(largest, fabs((double)row[i]));
                wrong += !(fabs(d.values[(size_t)t * (size_t)d.stride + (size_t)c] - row[c]) <= 0x1p-15 * largest);
            }
        CHECK_EQ(wrong, 0);
    } else if (type == TYPE_F32) {
        for (int t = 0; t < n; t++)
            for (int c = 0; c < o->columns; c++)
                d.values[(size_t)t * (size_t)d.stride + (size_t)c] = x[(size_t)t * (size_t)o->columns + (size_t)c];
    } else {
        decode_codes(o, n, &d);
    }
    return d;
}

/* Activations of widely differing size: each group of 32 has its own power of two, some are zero, some have one large
 * value among small ones. */
static void random_row(float *x, int columns, Random *random) {
    for (int c = 0; c < columns; c += 32) {
        const double scale = ldexp(1, random_below(random, 30) - 20);
        const int kind = random_below(random, 8), width = columns - c < 32 ? columns - c : 32;
        for (int i = c; i < c + width; i++) x[i] = kind ? (float)(scale * random_normal(random)) : 0;
        if (kind == 1) x[c + random_below(random, width)] *= 1000;
    }
}

static float *random_rows(int columns, int n, Random *random) {
    float *const x = new_floats((size_t)n * (size_t)columns);
    for (int t = 0; t < n; t++) random_row(x + (size_t)t * (size_t)columns, columns, random);
    return x;
}

/* ---- weights ---------------------------------------------------------------------------------------- */

struct Matrix {
    const BlockType *type;
    Tensor tensor;
    DeviceWeight weight;
};

/* Packed in two pieces where it has rows for that. */
static void pack(Matrix *m) {
    const Tensor *const t = &m->tensor;
    const size_t row_bytes = t->size / (uint64_t)t->rows;
    const int rows = (int)t->rows, first = rows > 48 ? 32 : rows;
    uint8_t *const raw = (uint8_t *)device_memory(t->size);
    upload(raw, t->data, t->size);
    queue_pack(stream, &m->weight, t->type, raw, row_bytes, 0, first);
    if (rows > first)
        queue_pack(stream, &m->weight, t->type, raw + (size_t)first * row_bytes, row_bytes, first, rows - first);
    CHECK(finished());
    cudaFree(raw);
}

static Matrix new_matrix(const BlockType *type, int rows, int columns, Random *random) {
    Matrix m = {type, random_tensor(type, rows, columns, true, random),
                device_weight_layout(type->type, rows, columns)};
    m.weight.data = (uint8_t *)device_memory(device_weight_bytes(&m.weight));
    pack(&m);
    return m;
}

/* Weights as models have them, for what must not overflow: small ones. */
static Matrix new_small_matrix(const BlockType *type, int rows, int columns, Random *random) {
    Matrix m = new_matrix(type, rows, columns, random);
    make_small(&m.tensor);
    pack(&m);
    return m;
}

static void free_matrix(Matrix *m) {
    cudaFree(m->weight.data);
    free((void *)m->tensor.data);
}

/* ---- products --------------------------------------------------------------------------------------- */

struct Expected {
    double value, magnitude; /* the sum, and the sum of the terms' magnitudes */
    int n_terms;
};

/* Of quantised types: one term per scale, of the exact integer product, and one per minimum. */
static Expected expected_product(const Matrix *m, const ExactWeight *row, const Decoded *d, int token) {
    const int step = m->type->term;
    const double *const x = d->values + (size_t)token * (size_t)d->stride;
    Expected e = {0, 0, 0};
    for (int from = 0; from < m->weight.columns; from += step) {
        double scaled = 0, minimum = 0;
        for (int i = from; i < from + step; i++) {
            scaled += row[i].scaled * x[i];
            minimum += row[i].minimum * x[i];
        }
        const double scale = d->scales[token * d->n_groups + from / GROUP];
        e.value += (scaled + minimum) * scale;
        e.magnitude += (fabs(scaled) + fabs(minimum)) * scale;
        e.n_terms += 2;
    }
    return e;
}

/* Three roundings of a term: the product of the scales (or of scale and code sum), and that with the integer. The last
 * summand is for results below the normal range of floats. */
static double product_bound(const Matrix *m, Expected e) {
    const double sum = m->type->type == TYPE_F16 || m->type->type == TYPE_BF16 ? HARDWARE_SUM : 3;
    return (e.n_terms + sum) * U * SECOND_ORDER * e.magnitude + e.n_terms * 0x1p-120;
}

static ExactWeight *exact_row(const Matrix *m, int row) {
    ExactWeight *const out = (ExactWeight *)allocate((size_t)m->weight.columns * sizeof(ExactWeight));
    const uint8_t *const data = m->tensor.data + (size_t)row * (m->tensor.size / (uint64_t)m->tensor.rows);
    for (int c = 0; c < m->weight.columns; c++) out[c] = exact_weight(m->type, data, c);
    return out;
}

struct Scratch {
    ProductScratch device;
    int n_tickets;
};

static Scratch new_scratch(const DeviceWeight *weights, int n_weights, int max_rows) {
    Scratch s = {};
    product_scratch_size(weights, n_weights, max_rows, &s.device.partial_floats, &s.device.n_tickets);
    s.device.partials = (float *)device_memory(s.device.partial_floats * sizeof(float));
    s.device.tickets = (unsigned *)device_memory((size_t)s.device.n_tickets * sizeof(unsigned));
    cudaMemsetAsync(s.device.tickets, 0, (size_t)s.device.n_tickets * sizeof(unsigned), stream);
    return s;
}

/* Tickets must be zero again. */
static void free_scratch(Scratch *s) {
    const size_t bytes = (size_t)s->device.n_tickets * sizeof(unsigned);
    unsigned *const tickets = (unsigned *)copy_back(s->device.tickets, bytes);
    int wrong = 0;
    for (int i = 0; i < s->device.n_tickets; i++) wrong += tickets[i] != 0;
    CHECK_EQ(wrong, 0);
    free(tickets);
    cudaFree(s->device.partials);
    cudaFree(s->device.tickets);
}

enum { OUT_PADDING = 3 }; /* floats behind a row that must stay as they are */

static size_t out_stride(const Matrix *m) { return (size_t)m->weight.rows + OUT_PADDING; }

/* What belongs to a product; the bias lies on the device. */
struct Extra {
    const float *bias = nullptr;
    float scale = 1;
};

/* The product of n tokens, on the host: [n][rows + OUT_PADDING]. Begins from `before`, or, NULL, from NaN. A row more
 * than the n must stay as it is. */
static float *multiply(const Matrix *m, const DeviceOperand *in, int n, const float *before, const Extra &extra = {}) {
    const size_t count = (size_t)(n + 1) * out_stride(m);
    DeviceProduct product = {m->weight,     (float *)device_memory(count * sizeof(float)),
                             out_stride(m), before != nullptr,
                             extra.bias,    extra.scale};
    Scratch scratch = new_scratch(&m->weight, 1, in->max_rows);
    if (before) upload(product.out, before, count * sizeof(float));
    queue_multiply(stream, &product, 1, in, n, &scratch.device);
    CHECK(finished());
    float *const out = (float *)copy_back(product.out, count * sizeof(float));
    free_scratch(&scratch);
    cudaFree(product.out);
    return out;
}

static void check_values(const Matrix *m, const Decoded *x, const float *out, int n) {
    long wrong = 0, written = 0;
    for (int r = 0; r < m->weight.rows; r++) {
        ExactWeight *const row = exact_row(m, r);
        for (int t = 0; t < n; t++) {
            const Expected e = expected_product(m, row, x, t);
            wrong += !(fabs(out[(size_t)t * out_stride(m) + (size_t)r] - e.value) <= product_bound(m, e));
        }
        free(row);
    }
    for (int t = 0; t <= n; t++)
        for (size_t r = t < n ? (size_t)m->weight.rows : 0; r < out_stride(m); r++)
            written += !std::isnan(out[(size_t)t * out_stride(m) + r]);
    if (!CHECK_EQ(wrong, 0) || !CHECK_EQ(written, 0))
        printf("    %s, %d x %d, %d tokens\n", m->type->name, m->weight.rows, m->weight.columns, n);
}

static void check_add(const Matrix *m, const DeviceOperand *in, const float *out, int n) {
    const size_t count = (size_t)(n + 1) * out_stride(m);
    float *const before = new_floats(count);
    for (size_t i = 0; i < count; i++) before[i] = (float)((int)(i % 7) - 3);
    float *const sums = multiply(m, in, n, before);
    long wrong = 0;
    for (size_t i = 0; i < count; i++) {
        const bool inside = i % out_stride(m) < (size_t)m->weight.rows && i / out_stride(m) < (size_t)n;
        wrong += sums[i] != (inside ? before[i] + out[i] : before[i]);
    }
    if (!CHECK_EQ(wrong, 0)) printf("    %s, adding\n", m->type->name);
    free(before);
    free(sums);
}

/* Scale and bias, exactly as they stand: (before +) out * scale + bias, each rounded. */
static void check_extra(const Matrix *m, const DeviceOperand *in, const float *out, int n) {
    const size_t rows = (size_t)m->weight.rows, count = (size_t)(n + 1) * out_stride(m);
    float *const bias = new_floats(rows), *const before = new_floats(count);
    for (size_t r = 0; r < rows; r++) bias[r] = (float)((int)(r % 11) - 5) / 3;
    for (size_t i = 0; i < count; i++) before[i] = (float)((int)(i % 7) - 3);
    float *const device_bias = (float *)device_memory(rows * sizeof(float));
    upload(device_bias, bias, rows * sizeof(float));
    long wrong = 0;
    for (int kind = 0; kind < 4; kind++) {
        const Extra extra = {kind == 3 ? nullptr : device_bias, kind == 1 ? 1.0f : -0.3f};
        float *const got = multiply(m, in, n, kind == 2 ? before : nullptr, extra);
        for (size_t i = 0; i < count; i++) {
            const size_t r = i % out_stride(m);
            const bool inside = r < rows && i / out_stride(m) < (size_t)n;
            const float scaled = out[i] * extra.scale, biased = extra.bias ? scaled + bias[r < rows ? r : 0] : scaled;
            const float expected = kind == 2 ? before[i] + biased : biased;
            wrong += inside ? got[i] != expected : kind == 2 ? got[i] != before[i] : !std::isnan(got[i]);
        }
        free(got);
    }
    if (!CHECK_EQ(wrong, 0)) printf("    %s, with scale and bias\n", m->type->name);
    free(bias);
    free(before);
    cudaFree(device_bias);
}

/* Whether n tokens, from `first` on, come to the same bits as in `all`. */
static bool same_alone(const Matrix *m, const float *x, const float *all, int first, int n) {
    DeviceOperand in = new_operand(m->weight.columns, n, operand_format(m->type->type));
    fill_operand(&in, x, first, n);
    float *const out = multiply(m, &in, n, nullptr);
    bool same = true;
    for (int t = 0; t < n; t++)
        same = same && !memcmp(out + (size_t)t * out_stride(m), all + (size_t)(first + t) * out_stride(m),
                               (size_t)m->weight.rows * sizeof(float));
    free(out);
    free_operand(&in);
    return same;
}

/* All of the n_all tokens against double precision, and in runs of every kind of length against that. */
static void test_product(const BlockType *type, int rows, int columns, int n_all, Random *random) {
    static const int runs[] = {1, 3, 8, 9, 16, 17, 64, 70};
    Matrix m = new_matrix(type, rows, columns, random);
    float *const x = random_rows(columns, n_all, random);
    DeviceOperand in = new_operand(columns, n_all, operand_format(type->type));
    fill_operand(&in, x, 0, n_all);
    Decoded decoded = decode(&in, type->type, x, n_all);
    float *const all = multiply(&m, &in, n_all, nullptr);
    check_values(&m, &decoded, all, n_all);
    check_add(&m, &in, all, n_all);
    if (n_all < 64) check_extra(&m, &in, all, n_all);
    for (int n : runs) {
        if (n > n_all) break;
        if (!CHECK(same_alone(&m, x, all, random_below(random, n_all - n + 1), n)))
            printf("    %s, %d x %d, %d tokens of %d\n", type->name, rows, columns, n, n_all);
    }
#if defined(BEE_EMULATE)
    for (emulated_order = 1; emulated_order <= 2; emulated_order++)
        if (!CHECK(same_alone(&m, x, all, 0, n_all < 20 ? n_all : 20))) printf("    %s, another order\n", type->name);
    emulated_order = 0;
#endif
    free(all);
    free_decoded(&decoded);
    free_operand(&in);
    free(x);
    free_matrix(&m);
}

static void test_products() {
    static const int rows[] = {1, 16, 100, 130}, small[] = {32, 640, 96, 160}, large[] = {256, 512, 768, 256};
    static const int any[] = {1, 77, 333, 64}, tokens[] = {128, 17, 70, 9};
    Random random = {5};
    for (int t = 0; t < N_BLOCK_TYPES; t++)
        for (int i = 0; i < 4; i++) {
            const int width = block_types[t].columns;
            test_product(&block_types[t], rows[i],
                         (width == 1    ? any
                          : width == 32 ? small
                                        : large)[i],
                         tokens[i], &random);
        }
}

/* Few rows and many columns: the columns are computed in parts. */
static void test_parts() {
    Random random = {6};
    for (int t = 0; t < N_BLOCK_TYPES; t++) {
        const int width = block_types[t].columns, columns = 4096 + (width == 1 ? 77 : width == 32 ? 160 : 256);
        Scratch scratch = {};
        const DeviceWeight shape = device_weight_layout(block_types[t].type, 20, columns);
        product_scratch_size(&shape, 1, 8, &scratch.device.partial_floats, &scratch.device.n_tickets);
        CHECK(scratch.device.partial_floats > 0 && scratch.device.n_tickets > 0);
        test_product(&block_types[t], 20, columns, 20, &random);
        if (t % 3 == 0) test_product(&block_types[t], 70, columns, 70, &random);
    }
}

/* The largest codes times the largest activations, of equal and of changing sign: no sum on the way overflows. */
static void test_largest_codes() {
    static const uint8_t fills[] = {0xff, 0x80, 0x7f, 0x00};
    Random random = {14};
    for (int type = 3; type < N_BLOCK_TYPES; type++)
        for (uint8_t fill : fills) {
            Matrix m = new_matrix(&block_types[type], 16, 256, &random);
            int begin, end;
            code_bytes_of(m.type, &begin, &end);
            for (uint64_t block = 0; block < m.tensor.size; block += (uint64_t)m.type->bytes)
                memset((uint8_t *)m.tensor.data + block + begin, fill, (size_t)(end - begin));
            pack(&m);
            float x[4 * 256];
            for (int i = 0; i < 256; i++) {
                const float signs[] = {1, -1, i % 2 ? 1.0f : -1.0f, i / 16 % 2 ? 1.0f : -1.0f};
                for (int t = 0; t < 4; t++) x[t * 256 + i] = 3 * signs[t];
            }
            DeviceOperand in = new_operand(256, 4, FORMAT_CODES);
            fill_operand(&in, x, 0, 4);
            Decoded decoded = decode(&in, m.type->type, x, 4);
            float *const out = multiply(&m, &in, 4, nullptr);
            check_values(&m, &decoded, out, 4);
            free(out);
            free_decoded(&decoded);
            free_operand(&in);
            free_matrix(&m);
        }
}

/* Products at once, of the same and of different types, with and without parts, give what each gives alone. */
static void test_together(const int *types, const int *rows, int columns, int n, Random *random) {
    Matrix m[3];
    DeviceWeight weights[3];
    DeviceProduct products[3];
    int formats = 0;
    for (int i = 0; i < 3; i++) {
        m[i] = new_matrix(&block_types[types[i]], rows[i], columns, random);
        weights[i] = m[i].weight;
        formats |= operand_format(weights[i].type);
        const size_t bytes = (size_t)(n + 1) * out_stride(&m[i]) * sizeof(float);
        products[i] = {m[i].weight, (float *)device_memory(bytes), out_stride(&m[i]), i == 1};
        if (i == 1) cudaMemsetAsync(products[i].out, 0, bytes, stream);
    }
    float *const x = random_rows(columns, n, random);
    DeviceOperand in = new_operand(columns, n, formats);
    fill_operand(&in, x, 0, n);
    Scratch scratch = new_scratch(weights, 3, in.max_rows);
    queue_multiply(stream, products, 3, &in, n, &scratch.device);
    CHECK(finished());
    for (int i = 0; i < 3; i++) {
        const size_t count = (size_t)(n + 1) * out_stride(&m[i]);
        float *const together = (float *)copy_back(products[i].out, count * sizeof(float));
        float *const zeros = new_floats(count);
        float *const alone = multiply(&m[i], &in, n, i == 1 ? zeros : nullptr);
        if (!CHECK(!memcmp(together, alone, count * sizeof(float))))
            printf("    %s at place %d, %d columns\n", m[i].type->name, i, columns);
        free(together);
        free(zeros);
        free(alone);
        cudaFree(products[i].out);
        free_matrix(&m[i]);
    }
    free_scratch(&scratch);
    free_operand(&in);
    free(x);
}

static void test_products_together() {
    static const int types[][3] = {{8, 8, 10}, {3, 3, 3}, {10, 2, 10}, {0, 1, 7}, {0, 0, 0}, {9, 4, 5}};
    static const int rows[] = {130, 40, 17};
    Random random = {7};
    for (const int *three : types) {
        test_together(three, rows, 512, 3, &random);
        test_together(three, rows, 2048, 18, &random); /* in parts */
    }
}

/* ---- odd activations -------------------------------------------------------------------------------- */

/* What is not finite makes every product of its token not finite, and no other token's; values too small for a quotient
 * are zeros. */
static void test_odd_activations() {
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    enum { N = 11 };
    Random random = {8};
    for (int type = 0; type < N_BLOCK_TYPES; type++)
        for (int i = 0; i < 6; i++) {
            const int columns = 512, bad = i < 3 ? 1 : 9;
            Matrix m = new_matrix(&block_types[type], 16, columns, &random);
            float *const x = random_rows(columns, N, &random);
            x[bad * columns + random_below(&random, columns)] = odd[i % 3];
            for (int c = 0; c < columns; c++) x[2 * columns + c] = c % 2 ? 0x1p-149f : 0x1p-130f;
            DeviceOperand in = new_operand(columns, N, operand_format(m.type->type));
            fill_operand(&in, x, 0, N);
            float *const out = multiply(&m, &in, N, nullptr);
            int wrong = 0;
            for (int t = 0; t < N; t++)
                for (int r = 0; r < 16; r++) {
                    const float y = out[(size_t)t * out_stride(&m) + (size_t)r];
                    wrong += std::isfinite(y) != (t != bad) || (t == 2 && !(fabsf(y) < 1e-15f));
                }
            if (!CHECK_EQ(wrong, 0)) printf("    %s\n", m.type->name);
            free(out);
            free_operand(&in);
            free(x);
            free_matrix(&m);
        }
}

/* ---- gated products ---------------------------------------------------------------------------------- */

struct Gated {
    double value, error;
};

/* From what the products came to, g and u: activation(g) is g / (1 + exp(-t)). Relative EXP_ERROR of the exponential
 * and three roundings, each of at most u; t, where it is not g itself, comes from six roundings, which count as the
 * quotient follows it; below -87 the gate is all but shut. Then the code: half a scale, and the scale's own roundings.
 */
static Gated expected_gated(Activation activation, float g, float u) {
    if (activation == ACTIVATION_RELU_SQUARED) {
        const double squared = g > 0 ? (double)g * g * u : 0;
        return {squared, 2 * U * SECOND_ORDER * squared};
    }
    const double cubic = g + 0.044715 * g * g * g;
    const double t = activation == ACTIVATION_GELU ? 2 * sqrt(2 / M_PI) * cubic : (double)g;
    const double value = g / (1 + exp(-t)) * u, follows = fabs(t) / (1 + exp(t));
    const double relative = EXP_ERROR + 4 * U + (activation == ACTIVATION_GELU ? 6 * U * follows : 0);
    return {value, relative * SECOND_ORDER * fabs(value) + fabs((double)g * u) * 2 * exp(-87)};
}

/* The operand's values against those from the products alone. */
static void check_gated(Activation activation, const DeviceOperand *out, const float *gate, const float *up,
                        size_t stride, int rows, int n, const char *name) {
    Decoded d = new_decoded(out, n);
    decode_codes(out, n, &d);
    int wrong = 0;
    for (int t = 0; t < n; t++)
        for (int group = 0; group < (rows + 63) / 64 * 2; group++) {
            Gated expected[GROUP] = {};
            double largest = 0;
            for (int i = 0; i < GROUP; i++) {
                const int r = group * GROUP + i;
                const size_t at = (size_t)t * stride + (size_t)r;
                if (r < rows) expected[i] = expected_gated(activation, gate[at], up[at]);
                largest = fmax(largest, fabs(expected[i].value) + expected[i].error);
            }
            for (int i = 0; i < GROUP; i++) {
                const double value = d.values[(size_t)t * (size_t)d.stride + (size_t)(group * GROUP + i)] *
                                     d.scales[t * d.n_groups + group];
                const double bound = expected[i].error + largest / 127 * (0.5 + 127 * 4 * U) + 0x1p-118;
                wrong += !(fabs(value - expected[i].value) <= bound);
            }
        }
    if (!CHECK_EQ(wrong, 0)) printf("    %s\n", name);
    free_decoded(&d);
}

static bool same_operands(const DeviceOperand *a, const DeviceOperand *b, int n) {
    const size_t bytes = n_operand_groups(a) * 256, scale_bytes = n_operand_groups(a) * 8 * sizeof(float2);
    int8_t *const codes[] = {(int8_t *)copy_back(a->codes, bytes), (int8_t *)copy_back(b->codes, bytes)};
    float2 *const scales[] = {(float2 *)copy_back(a->scales, scale_bytes), (float2 *)copy_back(b->scales, scale_bytes)};
    bool same = true;
    for (int t = 0; t < n; t++)
        for (int g = 0; g < a->n_groups; g++) {
            const size_t at = operand_group(a, t, g), lanes = (at * WARP_SIZE + (size_t)(4 * (t % 8))) * 8;
            same = same && !memcmp(codes[0] + lanes, codes[1] + lanes, 32) &&
                   !memcmp(&scales[0][at * 8 + (size_t)(t % 8)], &scales[1][at * 8 + (size_t)(t % 8)], sizeof(float2));
        }
    for (int i = 0; i < 2; i++) {
        free(codes[i]);
        free(scales[i]);
    }
    return same;
}

/* A gate's two matrices, and what belongs to their products. */
struct Gate {
    Matrix gate, up;
    Activation activation;
    Extra gate_extra, up_extra;
    bool alone; /* the up without a gate */
};

static void run_gate(const Gate &g, const DeviceOperand *in, int n, const DeviceOperand *out) {
    const DeviceWeight weights[] = {g.gate.weight, g.up.weight};
    const size_t stride = out_stride(&g.gate), bytes = (size_t)in->max_rows * stride * sizeof(float);
    const DeviceProduct gate = {g.gate.weight,     (float *)device_memory(bytes), stride, false, g.gate_extra.bias,
                                g.gate_extra.scale};
    const DeviceProduct up = {g.up.weight,     (float *)device_memory(bytes), stride, false, g.up_extra.bias,
                              g.up_extra.scale};
    Scratch scratch = new_scratch(weights, 2, in->max_rows);
    queue_gate(stream, g.activation, g.alone ? nullptr : &gate, &up, in, n, out, &scratch.device);
    CHECK(finished());
    free_scratch(&scratch);
    cudaFree(gate.out);
    cudaFree(up.out);
}

/* `wider`: columns that the operand has beyond the matrices' rows. `alone`: an up without a gate. */
static void test_gate_case(int gate_type, int up_type, int rows, int columns, int n, bool extra, int wider,
                           Random *random, bool alone = false) {
    Gate g = {new_small_matrix(&block_types[gate_type], rows, columns, random),
              new_small_matrix(&block_types[up_type], rows, columns, random),
              alone   ? ACTIVATION_RELU_SQUARED
              : extra ? ACTIVATION_GELU
                      : ACTIVATION_SILU,
              {},
              {},
              alone};
    float *const x = new_floats((size_t)n * (size_t)columns), *const bias = new_floats(2 * (size_t)rows);
    for (int i = 0; i < n * columns; i++) x[i] = (float)random_normal(random);
    for (int i = 0; i < 2 * rows; i++) bias[i] = (float)random_normal(random);
    float *const device_bias = (float *)device_memory(2 * (size_t)rows * sizeof(float));
    upload(device_bias, bias, 2 * (size_t)rows * sizeof(float));
    if (extra) g.gate_extra = {device_bias, 0.7f}, g.up_extra = {device_bias + rows, -1.3f};
    const int formats = operand_format(g.gate.type->type) | operand_format(g.up.type->type);
    DeviceOperand in = new_operand(columns, n, formats), out = new_operand(rows + wider, n, FORMAT_CODES);
    fill_operand(&in, x, 0, n);
    if (wider) cudaMemsetAsync(out.codes, 0, n_operand_groups(&out) * 256, stream);
    if (wider) cudaMemsetAsync(out.scales, 0, n_operand_groups(&out) * 8 * sizeof(float2), stream);
    run_gate(g, &in, n, &out);
    float *const gates = multiply(&g.gate, &in, n, nullptr, g.gate_extra);
    float *const ups = multiply(&g.up, &in, n, nullptr, g.up_extra);
    if (alone) /* the activation of what the up came to, times 1 */
        for (size_t i = 0; i < (size_t)n * out_stride(&g.up); i++) gates[i] = ups[i], ups[i] = 1;
    check_gated(g.activation, &out, gates, ups, out_stride(&g.gate), rows, n, g.up.type->name);
    DeviceOperand one_in = new_operand(columns, 1, formats), one = new_operand(rows, 1, FORMAT_CODES);
    DeviceOperand rest_in = new_operand(columns, n, formats), rest = new_operand(rows, n, FORMAT_CODES);
    fill_operand(&one_in, x, 0, 1);
    run_gate(g, &one_in, 1, &one);
    CHECK(same_operands(&one, &out, 1));
    /* A token that is not finite makes its own groups so. */
    for (int i = 0; i < columns; i++) x[(size_t)(n - 1) * (size_t)columns + (size_t)i] = NAN;
    fill_operand(&rest_in, x, 0, n);
    run_gate(g, &rest_in, n, &rest);
    CHECK(same_operands(&rest, &out, n - 1));
    float2 *const scales = (float2 *)copy_back(rest.scales, n_operand_groups(&rest) * 8 * sizeof(float2));
    for (int group = 0; group < rest.n_groups; group++)
        CHECK(std::isnan(scales[operand_group(&rest, n - 1, group) * 8 + (size_t)((n - 1) % 8)].x) ==
              (group * GROUP < rows));
    free(scales);
    free(gates);
    free(ups);
    free(x);
    free(bias);
    cudaFree(device_bias);
    DeviceOperand *const all[] = {&in, &out, &one_in, &one, &rest_in, &rest};
    for (DeviceOperand *o : all) free_operand(o);
    free_matrix(&g.gate);
    free_matrix(&g.up);
}

static void test_gate() {
    Random random = {11};
    for (int type = 0; type < N_BLOCK_TYPES; type++) {
        test_gate_case(type, type, 96, 256, 3 + type, type % 2, 0, &random);
        test_gate_case(type, (type + 5) % N_BLOCK_TYPES, 70, 512, 18, type % 2, 0, &random);
        test_gate_case(type, type, 70, 256, 1 + 5 * type % 23, type % 2, 0, &random, true);
    }
    test_gate_case(8, 8, 200, 2048, 17, true, 0, &random, true); /* in parts */
    test_gate_case(8, 8, 40, 2048, 9, true, 2000, &random, true);
    test_gate_case(8, 8, 200, 2048, 17, false, 0, &random); /* in parts */
    test_gate_case(3, 3, 33, 4096, 5, true, 0, &random);
    test_gate_case(8, 10, 40, 2048, 9, true, 0, &random);
    test_gate_case(8, 8, 40, 2048, 9, true, 2000, &random); /* no more scratch memory than the matrices need */
    test_gate_case(8, 10, 40, 512, 9, false, 100, &random);
}

/* ---- experts ----------------------------------------------------------------------------------------- */

enum { N_EXPERTS = 5 };

/* As many matrices of a shape in one piece, with biases and scales. */
struct Stack {
    Matrix matrices[N_EXPERTS];
    DeviceExperts device;
    size_t rows;
};

static Stack new_stack(const BlockType *type, int rows, int columns, bool extra, Random *random) {
    Stack s = {};
    s.rows = (size_t)rows;
    s.device.weight = device_weight_layout(type->type, rows, columns);
    const size_t bytes = device_weight_bytes(&s.device.weight);
    s.device.weight.data = (uint8_t *)device_memory(N_EXPERTS * bytes);
    s.device.bias_stride = s.rows + 9;
    float *const biases = random_rows((int)s.device.bias_stride, N_EXPERTS, random),
                 scales[N_EXPERTS] = {1, 2, .3f, 4, 5};
    for (int e = 0; e < N_EXPERTS; e++) {
        s.matrices[e] = new_small_matrix(type, rows, columns, random);
        cudaMemcpyAsync(s.device.weight.data + (size_t)e * bytes, s.matrices[e].weight.data, bytes,
                        cudaMemcpyDeviceToDevice, stream);
    }
    if (extra) {
        float *const device_biases = (float *)device_memory(N_EXPERTS * s.device.bias_stride * sizeof(float));
        float *const device_scales = (float *)device_memory(sizeof scales);
        upload(device_biases, biases, N_EXPERTS * s.device.bias_stride * sizeof(float));
        upload(device_scales, scales, sizeof scales);
        s.device.bias = device_biases;
        s.device.scales = device_scales;
    }
    free(biases);
    return s;
}

static Extra extra_of(const Stack *s, int expert) {
    static const float scales[N_EXPERTS] = {1, 2, .3f, 4, 5};
    if (!s->device.bias) return {};
    return {s->device.bias + (size_t)expert * s->device.bias_stride, scales[expert]};
}

static void free_stack(Stack *s) {
    for (Matrix &m : s->matrices) free_matrix(&m);
    cudaFree(s->device.weight.data);
    cudaFree((void *)s->device.bias);
    cudaFree((void *)s->device.scales);
}

/* What an expert answers to a row that is alone. */
static float *answer_alone(const Stack *gate, const Stack *up, const Stack *down, Activation activation, int expert,
                           const float *x, int row, bool gated) {
    const TensorType type = gate->matrices[0].type->type;
    DeviceOperand in = new_operand(gate->device.weight.columns, 1, operand_format(type));
    DeviceOperand between = new_operand(down->device.weight.columns, 1, operand_format(type));
    fill_operand(&in, x, row, 1);
    run_gate({gate->matrices[expert], up->matrices[expert], activation, extra_of(gate, expert), extra_of(up, expert),
              !gated},
             &in, 1, &between);
    float *const out = multiply(&down->matrices[expert], &between, 1, nullptr, extra_of(down, expert));
    free_operand(&in);
    free_operand(&between);
    return out;
}

/* Tiles as queue_route makes them, but for the order of an expert's rows: row i goes to experts i % 2 (or, all of them,
 * to the first) and 2 + i % 3. */
static int make_tiles(int n, bool crowded, ExpertTile *tiles, int32_t *places) {
    int n_tiles = 0;
    for (int e = 0, at = 0; e < N_EXPERTS; e++) {
        const int first = at;
        for (int i = 0; i < 2 * n; i++)
            if ((i % 2 ? 2 + i / 2 % 3 : crowded ? 0 : i / 2 % 2) == e) places[i] = at++;
        for (int from = first; from < at; from += EXPERT_ALIGNMENT)
            tiles[n_tiles++] = {e, from, at - from < EXPERT_ALIGNMENT ? at - from : EXPERT_ALIGNMENT, 0};
        at = (at + EXPERT_ALIGNMENT - 1) / EXPERT_ALIGNMENT * EXPERT_ALIGNMENT;
    }
    return n_tiles;
}

/* Rows gathered by expert: of each the bits that it has alone, and nothing else is written. */
static void test_experts_case(const BlockType *type, int n, bool crowded, Activation activation, Random *random) {
    const bool gated = activation != ACTIVATION_RELU_SQUARED;
    enum { ROWS = 40, MOST = 64 };
    const int columns = type->columns > 32 ? 512 : 96, between_columns = type->columns > 32  ? 256
                                                                         : type->columns > 1 ? 160
                                                                                             : 77;
    Stack gate = new_stack(type, between_columns, columns, crowded, random),
          up = new_stack(type, between_columns, columns, crowded, random);
    Stack down = new_stack(type, ROWS, between_columns, crowded, random);
    float *const x = random_rows(columns, n, random);
    ExpertTile tiles[MOST];
    int32_t places[2 * MOST], n_tiles = make_tiles(n, crowded, tiles, places);
    const int most = expert_tiles(n, N_EXPERTS, 2), all_rows = expert_rows(n, N_EXPERTS, 2),
              stride = ROWS + OUT_PADDING;
    CHECK(n_tiles <= most);
    DevicePlaces device = {(int32_t *)device_memory(sizeof n_tiles), (ExpertTile *)device_memory(sizeof tiles),
                           (int32_t *)device_memory(sizeof places)};
    upload(device.n_tiles, &n_tiles, sizeof n_tiles);
    upload(device.tiles, tiles, sizeof tiles);
    upload(device.of, places, sizeof places);
    DeviceOperand in = new_operand(columns, n, operand_format(type->type)),
                  gathered = new_operand(columns, all_rows, in.formats);
    DeviceOperand between = new_operand(between_columns, all_rows, in.formats);
    float *const each = (float *)device_memory((size_t)(all_rows * stride) * sizeof(float));
    fill_operand(&in, x, 0, n);
    queue_gather(stream, &in, n, 2, &device, &gathered);
    queue_expert_gate(stream, activation, gated ? &gate.device : nullptr, &up.device, &device, most, &gathered, n,
                      &between);
    queue_expert_multiply(stream, &down.device, &device, most, &between, n, each, (size_t)stride);
    CHECK(finished());
    float *const out = (float *)copy_back(each, (size_t)(all_rows * stride) * sizeof(float));
    int wrong = 0, written = 0;
    for (int i = 0; i < 2 * n; i++) {
        const int expert = i % 2 ? 2 + i / 2 % 3 : crowded ? 0 : i / 2 % 2;
        float *const alone = answer_alone(&gate, &up, &down, activation, expert, x, i / 2, gated);
        wrong += memcmp(alone, out + places[i] * stride, ROWS * sizeof(float)) != 0;
        free(alone);
    }
    for (int i = 0; i < all_rows * stride; i++) written += !std::isnan(out[i]);
    if (!CHECK_EQ(wrong, 0) || !CHECK_EQ(written, 2 * n * ROWS)) printf("    %s, %d rows\n", type->name, n);
    free(out);
    free(x);
    for (Stack *s : {&gate, &up, &down}) free_stack(s);
    for (DeviceOperand *o : {&in, &gathered, &between}) free_operand(o);
    for (void *memory : {(void *)device.n_tiles, (void *)device.tiles, (void *)device.of, (void *)each})
        cudaFree(memory);
}

static void test_experts() {
    static const Activation activations[] = {ACTIVATION_SILU, ACTIVATION_GELU, ACTIVATION_CLAMPED};
    Random random = {21};
    for (int t = 0; t < N_BLOCK_TYPES; t++) {
        test_experts_case(&block_types[t], 1 + t % 8, t % 2, activations[t % 3], &random);
        test_experts_case(&block_types[t], 17 + t % 5, t % 2 == 0, activations[t % 3], &random);
        test_experts_case(&block_types[t], 1 + 7 * t % 20, t % 2, ACTIVATION_RELU_SQUARED, &random);
    }
}

/* ---- the emulation's own sums -------------------------------------------------------------------------- */

#if defined(BEE_EMULATE)
/* Every product of a row and a column is `product`, a power of two; to each sum comes 1. */
__global__ void add_to_one_kernel(unsigned a, unsigned b, float *out) {
    const unsigned as[4] = {a, a, a, a}, bs[2] = {b, b};
    const float one[4] = {1, 1, 1, 1};
    float d[4];
    mma_f16_k16(d, as, bs, one);
    out[lane_of()] = d[0];
}

static float added_to_one(int exponent, bool negative) {
    float *const out = (float *)device_memory(WARP_SIZE * sizeof(float)), result[WARP_SIZE];
    const unsigned half = (unsigned)(15 + exponent / 2) << 10, other = (unsigned)(15 + exponent - exponent / 2) << 10;
    const unsigned sign = negative ? 0x8000 : 0;
    launch(stream, dim3(1), dim3(WARP_SIZE), 0, add_to_one_kernel, (half | sign) * 0x10001u, other * 0x10001u, out);
    download(result, out, sizeof result);
    cudaFree(out);
    return result[0];
}

/* What the experiments show: sixteen terms that are each too small for a float beside 1 are lost one by one, or counted
 * together as far as the generation's grid goes. */
static void test_sums() {
    const char *const sums = getenv("BEE_EMULATED_SUMS");
    const bool ampere = sums && !strcmp(sums, "ampere"), hopper = sums && !strcmp(sums, "hopper");
    CHECK_EQ(added_to_one(-20, false) == 1 + 0x1p-16f, 1);
    CHECK_EQ(added_to_one(-24, false) == (ampere || hopper ? 1 + 0x1p-20f : 1), 1);
    CHECK_EQ(added_to_one(-25, false) == (hopper ? 1 + 0x1p-21f : 1), 1);
    CHECK_EQ(added_to_one(-26, false) == 1, 1);
    CHECK_EQ(added_to_one(-25, true) == (ampere ? 1 : hopper ? 1 - 0x1p-21f : 1), 1);
}
#endif

int main() {
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
#if defined(BEE_EMULATE)
    test_sums();
#endif
    test_products();
    test_parts();
    test_largest_codes();
    test_products_together();
    test_odd_activations();
    test_gate();
    test_experts();
    cudaStreamDestroy(stream);
    return check_report();
}
