/* Tests of the kernels, for every instruction set that this machine can run: against double precision within bounds
 * that follow from the roundings (rounding.h), and against themselves bit for bit where tokens are computed in other
 * company. Attention has its own (test_attention.c). */
#include "check.h"
#include "compiled_kernels.h"
#include "cpu/amx.h"
#include "cpu/pack.h"
#include "ggml_blocks.h"
#include "ops.h"
#include "rounding.h"
#include "types/float16.h"

/* ---- products --------------------------------------------------------------------------------------- */

typedef struct Case {
    const BlockType *type;
    Tensor tensor;
    Weight weight;
    int n_tokens;
    float *x; /* [n_tokens][padded(columns)] */
    size_t x_stride, out_stride;
} Case;

/* Activations of widely differing size: each group of 32 has its own power of two, some are zero, some have one large
 * value among small ones. */
static void random_row(float *x, int columns, Random *random) {
    for (int c = 0; c < columns; c += 32) {
        const double scale = ldexp(1, random_below(random, 30) - 20);
        const int kind = random_below(random, 8);
        for (int i = c; i < c + 32 && i < columns; i++) x[i] = kind ? (float)(scale * random_normal(random)) : 0;
        if (kind == 1) x[c + random_below(random, columns - c < 32 ? columns - c : 32)] *= 1000;
    }
}

static void pack_for(const Kernels *kernels, Case *c) {
    free(c->weight.data);
    weight_layout(&c->weight, &c->tensor, c->weight.rows, kernels->planar_grids);
    c->weight.data = aligned_alloc(64, (c->weight.block_bytes * (size_t)c->weight.n_blocks + 63) / 64 * 64);
    weight_fill(&c->weight, &c->tensor, NULL, 0, c->weight.n_blocks);
}

static Case new_case(const Kernels *kernels, const BlockType *type, int rows, int columns, int n_tokens,
                     Random *random) {
    Case c = {.type = type, .tensor = random_tensor(type, rows, columns, true, random), .n_tokens = n_tokens};
    c.weight.rows = rows;
    pack_for(kernels, &c);
    c.x_stride = padded(columns);
    c.out_stride = (size_t)c.weight.n_blocks * BLOCK_ROWS;
    c.x = allocate((size_t)n_tokens * c.x_stride * sizeof(float));
    for (int t = 0; t < n_tokens; t++) random_row(c.x + (size_t)t * c.x_stride, columns, random);
    return c;
}

static void free_case(Case *c) {
    free(c->x);
    free(c->weight.data);
    free((void *)c->tensor.data);
}

/* Tokens [first, first + n) of the case become the operand's tokens 0 to n - 1. */
static Operand *load_operand(const Kernels *kernels, const Case *c, int first, int n) {
    Operand *in = cpu_ops()->operand_new(NULL, c->weight.columns, n, cpu_ops()->operand_format(&c->weight));
    if (!in) abort();
    for (int t = 0; t < n; t++)
        kernels->store_operand(c->x + (size_t)(first + t) * c->x_stride, in, t, 0, 2 * in->n_pairs);
    return in;
}

/* The record that holds a token's group: its half group % 2. */
static const OperandPair *pair_of(const Operand *in, int token, int group) {
    return &in->pairs[((size_t)(token / TILE) * (size_t)in->n_pairs + (size_t)(group / 2)) * TILE +
                      (size_t)(token % TILE)];
}

/* A code stands for its value to within half a scale. Beyond that: the inverse, its product with x (at most 127) and
 * the scale are rounded once each, and so is their use here. */
static void check_operand(const Operand *in, const Case *c) {
    for (int t = 0; t < c->n_tokens; t++)
        for (int g = 0; g < 2 * in->n_pairs; g++) {
            const float *x = c->x + (size_t)t * c->x_stride + 32 * g;
            const OperandPair *pair = pair_of(in, t, g);
            const float scale = pair->scale[g % 2];
            double largest = 0;
            int total[2] = {0, 0}, wrong = 0;
            for (int i = 0; i < 32; i++) largest = fmax(largest, fabs((double)x[i]));
            for (int i = 0; i < 32; i++) {
                const int code = pair->codes[32 * (g % 2) + i];
                const double bound = largest / 127 * (0.5 + 127 * 2 * U * SECOND_ORDER) + 2 * U * largest;
                total[i / 16] += code;
                wrong += code < -127 || code > 127 || !(fabs(x[i] - (double)scale * code) <= bound);
            }
            CHECK_EQ(wrong, 0);
            CHECK_EQ(pair->total[g % 2], total[0] + total[1]);
            for (int i = 0; i < 2; i++) {
                CHECK_EQ(pair->half[2 * (g % 2) + i], total[i]);
                CHECK_EQ(pair->biased[2 * (g % 2) + i], BIAS_BITS - 32 * total[i]);
            }
            CHECK(pair->sum[g % 2] == scale * (float)(total[0] + total[1]));
        }
}

typedef struct Expected {
    double value, magnitude; /* the sum, and the sum of the terms' magnitudes */
    int n_terms;
} Expected;

/* Of an integer form: one term per scale, of the exact integer product, and one per minimum. */
static Expected expected_codes(const Case *c, const Operand *in, int row, int token) {
    const uint8_t *data = c->tensor.data + (size_t)row * (c->tensor.size / (size_t)c->tensor.rows);
    const int step = c->type->term;
    Expected e = {0};
    for (int from = 0; from < c->weight.columns; from += step) {
        const OperandPair *pair = pair_of(in, token, from / 32);
        const float scale = pair->scale[from / 32 % 2];
        double scaled = 0, minimum = 0;
        for (int i = from; i < from + step; i++) {
            const ExactWeight w = exact_weight(c->type, data, i);
            const int code = pair->codes[i % 64];
            scaled += w.scaled * code;
            minimum += w.minimum * code;
        }
        e.value += (scaled + minimum) * scale;
        e.magnitude += (fabs(scaled) + fabs(minimum)) * scale;
        e.n_terms += 2;
    }
    return e;
}

static Expected expected_floats(const Case *c, int row, int token) {
    const uint8_t *data = c->tensor.data + (size_t)row * (c->tensor.size / (size_t)c->tensor.rows);
    Expected e = {.n_terms = c->weight.columns};
    for (int i = 0; i < c->weight.columns; i++) {
        const double term = exact_weight(c->type, data, i).scaled * c->x[(size_t)token * c->x_stride + (size_t)i];
        e.value += term;
        e.magnitude += fabs(term);
    }
    return e;
}

/* Three roundings of a term: the product of the scales (or of scale and code sum), and that with the integer. The last
 * summand is for results below the normal range of floats. */
static double product_bound(Expected e) {
    return (e.n_terms + 3) * U * SECOND_ORDER * e.magnitude + e.n_terms * 0x1p-128;
}

static void test_product(const Kernels *kernels, const Case *c) {
    Operand *in = load_operand(kernels, c, 0, c->n_tokens);
    if (in->pairs) check_operand(in, c);
    const size_t count = (size_t)c->n_tokens * c->out_stride;
    float *out = allocate(count * sizeof(float)), *sums = allocate(count * sizeof(float));
    for (size_t i = 0; i < count; i++) out[i] = NAN, sums[i] = (float)((int)(i % 7) - 3);
    kernels->multiply(&c->weight, 0, c->weight.n_blocks, in, c->n_tokens, out, c->out_stride, false);
    kernels->multiply(&c->weight, 0, c->weight.n_blocks, in, c->n_tokens, sums, c->out_stride, true);
    long wrong = 0, wrong_sums = 0, wrong_padding = 0;
    for (int t = 0; t < c->n_tokens; t++)
        for (int r = 0; r < (int)c->out_stride; r++) {
            const size_t i = (size_t)t * c->out_stride + (size_t)r;
            const float before = (float)((int)(i % 7) - 3);
            wrong_sums += sums[i] != before + out[i];
            if (r >= c->weight.rows) {
                wrong_padding += out[i] != 0;
                continue;
            }
            const Expected e = in->pairs ? expected_codes(c, in, r, t) : expected_floats(c, r, t);
            wrong += !(fabs(out[i] - e.value) <= product_bound(e));
        }
    if (!CHECK_EQ(wrong, 0) || !CHECK_EQ(wrong_sums, 0) || !CHECK_EQ(wrong_padding, 0))
        printf("    %s, %s, %d x %d\n", kernels->name, c->type->name, c->weight.rows, c->weight.columns);
    free(out);
    free(sums);
    cpu_ops()->operand_free(NULL, in);
}

static void test_products(const Kernels *kernels) {
    Random random = {5};
    for (int t = 0; t < N_BLOCK_TYPES; t++) {
        static const int small[] = {32, 64, 96, 160}, large[] = {256, 768}, any[] = {1, 7, 33, 100};
        const int width = block_types[t].columns;
        const int *columns = width == 1 ? any : width == 32 ? small : large;
        for (int i = 0; i < (width > 32 ? 2 : 4); i++) {
            Case c = new_case(kernels, &block_types[t],
                              i == 0   ? 1
                              : i == 1 ? 16
                                       : 16 * i - 9,
                              columns[i], i == 1 ? 21 : 3 + i, &random);
            test_product(kernels, &c);
            free_case(&c);
        }
    }
}

/* The largest codes times the largest activations, of equal and of changing sign: no sum on the way overflows. */
static void test_largest_codes(const Kernels *kernels) {
    static const uint8_t fills[] = {0xFF, 0x80, 0x7F, 0x00};
    Random random = {14};
    for (int type = 0; type < N_BLOCK_TYPES; type++)
        for (size_t fill = 0; fill < sizeof fills && block_types[type].columns > 1; fill++) {
            const BlockType *t = &block_types[type];
            Case c = new_case(kernels, t, 16, 256, TILE, &random);
            uint8_t *data = (uint8_t *)c.tensor.data;
            int begin, end;
            code_bytes_of(t, &begin, &end);
            for (uint64_t block = 0; block < c.tensor.size; block += (uint64_t)t->bytes)
                memset(data + block + begin, fills[fill], (size_t)(end - begin));
            weight_fill(&c.weight, &c.tensor, NULL, 0, c.weight.n_blocks);
            for (int i = 0; i < 256; i++) {
                const float signs[] = {1, -1, i % 2 ? 1 : -1, i / 16 % 2 ? 1 : -1};
                for (int token = 0; token < TILE; token++)
                    c.x[(size_t)token * c.x_stride + (size_t)i] = 3 * signs[token % 4];
            }
            test_product(kernels, &c);
            free_case(&c);
        }
}

/* ---- block invariance ------------------------------------------------------------------------------- */

/* Runs of successive tokens, every start and every length, give each token the same bits as all 16 together do; and so
 * do the blocks of rows one by one, and tokens beyond the first tile. */
static void test_block_invariance(const Kernels *kernels) {
    Random random = {6};
    enum { N = 16 };
    for (int type = 0; type < N_BLOCK_TYPES; type++) {
        const int width = block_types[type].columns;
        Case c = new_case(kernels, &block_types[type], 24, width == 1 ? 70 : width == 32 ? 96 : 256, N, &random);
        const size_t row_bytes = c.out_stride * sizeof(float);
        float *all = allocate(N * row_bytes), *part = allocate(2 * N * row_bytes);
        Operand *in = load_operand(kernels, &c, 0, N);
        kernels->multiply(&c.weight, 0, c.weight.n_blocks, in, N, all, c.out_stride, false);
        for (int block = 0; block < c.weight.n_blocks; block++)
            kernels->multiply(&c.weight, block, block + 1, in, N, part + block * BLOCK_ROWS, c.out_stride, false);
        CHECK(!memcmp(part, all, N * row_bytes));
        cpu_ops()->operand_free(NULL, in);
        int different = 0;
        for (int start = 0; start < N; start++)
            for (int n = 1; start + n <= N; n++) {
                in = load_operand(kernels, &c, start, n);
                kernels->multiply(&c.weight, 0, c.weight.n_blocks, in, n, part, c.out_stride, false);
                different += memcmp(part, all + (size_t)start * c.out_stride, (size_t)n * row_bytes) != 0;
                cpu_ops()->operand_free(NULL, in);
            }
        in = cpu_ops()->operand_new(NULL, c.weight.columns, 2 * N, cpu_ops()->operand_format(&c.weight));
        for (int t = 0; t < 2 * N; t++)
            kernels->store_operand(c.x + (size_t)(t * 5 % N) * c.x_stride, in, t, 0, 2 * in->n_pairs);
        kernels->multiply(&c.weight, 0, c.weight.n_blocks, in, 2 * N, part, c.out_stride, false);
        for (int t = 0; t < 2 * N; t++)
            different +=
                memcmp(part + (size_t)t * c.out_stride, all + (size_t)(t * 5 % N) * c.out_stride, row_bytes) != 0;
        cpu_ops()->operand_free(NULL, in);
        if (!CHECK_EQ(different, 0)) printf("    %s, %s\n", kernels->name, c.type->name);
        free(all);
        free(part);
        free_case(&c);
    }
}

/* ---- odd activations -------------------------------------------------------------------------------- */

/* Values too small for a quotient are zeros; what is not finite makes every product of its token not finite, and no
 * other token's. */
static void test_odd_activations(const Kernels *kernels) {
    Random random = {7};
    for (int type = 0; type < N_BLOCK_TYPES; type++) {
        const int width = block_types[type].columns, columns = width > 32 ? 512 : 128;
        const float odd[] = {NAN, INFINITY, -INFINITY};
        for (int place = 0; place < columns; place += 13) {
            Case c = new_case(kernels, &block_types[type], 16, columns, TILE, &random);
            c.x[c.x_stride + (size_t)place] = odd[place % 3];
            for (int i = 0; i < columns; i++) c.x[2 * c.x_stride + (size_t)i] = i % 2 ? 0x1p-149f : 0x1p-130f;
            Operand *in = load_operand(kernels, &c, 0, TILE);
            float *out = allocate(TILE * c.out_stride * sizeof(float));
            kernels->multiply(&c.weight, 0, 1, in, TILE, out, c.out_stride, false);
            int wrong = 0;
            for (size_t i = 3 * c.out_stride; i < TILE * c.out_stride; i++) wrong += !isfinite(out[i]);
            for (int r = 0; r < 16; r++) {
                wrong += !isfinite(out[r]) || isfinite(out[c.out_stride + (size_t)r]);
                wrong += !(fabs(out[2 * c.out_stride + (size_t)r]) < 1e-15); /* 512 weights below 2^41, times 2^-130 */
            }
            if (!CHECK_EQ(wrong, 0)) printf("    %s, %s, column %d\n", kernels->name, c.type->name, place);
            for (int i = 0; in->pairs && i < columns; i++) wrong += pair_of(in, 2, i / 32)->codes[i % 64] != 0;
            CHECK_EQ(wrong, 0);
            free(out);
            cpu_ops()->operand_free(NULL, in);
            free_case(&c);
        }
    }
}

/* ---- vectors ---------------------------------------------------------------------------------------- */

/* The squares' sum has n / 16 steps per lane and four across lanes; then mean, eps, root, reciprocal, two products. */
static void test_rms_norm(const Kernels *kernels) {
    Random random = {10};
    for (int n = 1; n <= 200; n += n < 40 ? 1 : 37) {
        float *x = allocate((size_t)up_to(n, 16) * sizeof(float)),
              *out = allocate((size_t)up_to(n, 16) * sizeof(float));
        float *gain = allocate((size_t)up_to(n, 16) * sizeof(float));
        const double scale = pow(10, random_below(&random, 13) - 6);
        double squares = 0;
        for (int i = 0; i < up_to(n, 16); i++) {
            x[i] = i < n ? (float)(scale * random_normal(&random)) : NAN; /* beyond n: anything */
            gain[i] = i < n ? (float)random_normal(&random) : NAN;
            if (i < n) squares += (double)x[i] * x[i];
        }
        const float eps = 1e-5f;
        kernels->norm(x, gain, false, eps, n, out);
        const double bound = (n / 16 + 5 + 8) * U * SECOND_ORDER;
        for (int i = 0; i < up_to(n, 16); i++) {
            const double expected = i < n ? x[i] / sqrt(squares / n + eps) * gain[i] : 0;
            CHECK_NEAR(out[i], expected, bound * fabs(expected));
        }
        kernels->norm(x, gain, false, eps, n, x); /* in place */
        CHECK(!memcmp(x, out, (size_t)up_to(n, 16) * sizeof(float)));
        free(x);
        free(out);
        free(gain);
    }
}

/* Relative EXP_ERROR and four roundings; below -87 the gate is all but shut: at most |gate| exp(-87). */
/* The mean has n / 16 additions per lane and four across them; taking it away leaves its error in every value. */
static void test_layer_norm(const Kernels *kernels) {
    Random random = {19};
    for (int n = 2; n <= 200; n += n < 40 ? 3 : 37) {
        float x[256], out[256];
        double mean = 0, squares = 0, largest = 0;
        for (int i = 0; i < 256; i++) x[i] = i < n ? (float)(3 + random_normal(&random)) : NAN;
        for (int i = 0; i < n; i++) mean += x[i] / (double)n, largest = fmax(largest, fabs(x[i]));
        for (int i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
        const double factor = 1 / sqrt(squares / n + 1e-5), error = (n / 16 + 8) * U * 2 * largest;
        kernels->norm(x, NULL, true, 1e-5f, n, out);
        for (int i = 0; i < n; i++)
            CHECK_NEAR(out[i], (x[i] - mean) * factor,
                       factor * error * (2 + fabs(x[i] - mean) * factor) + (n + 16) * U * fabs((x[i] - mean) * factor));
    }
}

static double exact_gelu(double x) { return x / (1 + exp(-2 * 0.7978845608 * (x + 0.044715 * x * x * x))); }

static double gelu_error(double x) {
    const double argument = fabs(1.6 * x * (1 + 0.045 * x * x));
    return fabs(exact_gelu(x)) * (EXP_ERROR + (8 + 6 * fmin(argument, 90)) * U) + 1e-30;
}

/* Of gelu the argument of exp is off by some roundings of itself; below -9 nothing is left of x. */
static void test_gelu_and_cap(const Kernels *kernels) {
    enum { N = 4000 };
    static float x[N], up[N], out[N];
    for (int i = 0; i < N; i++) x[i] = (float)(i - N / 2) * 0.01f, up[i] = 1 + (float)(i % 7);
    kernels->gate(ACTIVATION_GELU, x, up, N, out);
    for (int i = 0; i < N; i++) {
        CHECK_NEAR(out[i], exact_gelu(x[i]) * up[i], gelu_error(x[i]) * up[i]);
    }
    kernels->gate(ACTIVATION_GELU, NULL, x, N, out);
    for (int i = 0; i < N; i++) CHECK_NEAR(out[i], exact_gelu(x[i]), gelu_error(x[i]));
    for (int n = N - 20; n <= N; n++) {
        memcpy(out, x, sizeof x);
        kernels->cap(2, 5, n, out);
        for (int i = 0; i < N; i++)
            CHECK_NEAR(out[i], i < n ? 5 * tanh(2 * x[i] / 5.0) : x[i], i < n ? 5 * (EXP_ERROR + 6 * U) : 0);
        memcpy(out, x, sizeof x);
        kernels->cap(0.5f, 0, n, out);
        for (int i = 0; i < N; i++) CHECK(out[i] == (i < n ? 0.5f * x[i] : x[i]));
    }
    memcpy(out, x, sizeof x);
    kernels->add(up, 0.25f, 2, N, out);
    for (int i = 0; i < N; i++) CHECK_NEAR(out[i], (x[i] + 0.25 * up[i]) * 2, U * 2 * (fabs(x[i]) + up[i]));
}

static void test_logistic_and_relu_squared(const Kernels *kernels) {
    enum { N = 400 };
    static float x[N], up[N], out[N];
    for (int i = 0; i < N; i++) x[i] = (float)(i - N / 2) * 0.1f, up[i] = 1 + (float)(i % 7);
    kernels->gate(ACTIVATION_LOGISTIC, x, up, N, out);
    for (int i = 0; i < N; i++) {
        const double expected = up[i] / (1 + exp(-(double)x[i]));
        CHECK_NEAR(out[i], expected, (EXP_ERROR + 4 * U) * SECOND_ORDER * expected);
    }
    kernels->gate(ACTIVATION_RELU_SQUARED, NULL, x, N, out);
    for (int i = 0; i < N; i++) CHECK(out[i] == (x[i] > 0 ? x[i] * x[i] : 0));
}

static void test_swiglu(const Kernels *kernels) {
    enum { N = 4096 };
    static float gate[N], up[N], out[N];
    Random random = {11};
    for (int i = 0; i < N; i++) {
        gate[i] = (float)(i % 4 ? 240.0 * i / N - 120 : random_normal(&random));
        up[i] = (float)random_normal(&random);
    }
    gate[0] = INFINITY, gate[1] = -INFINITY, gate[2] = NAN, gate[3] = 3e38f, gate[4] = -3e38f, up[3] = up[4] = 1;
    kernels->gate(ACTIVATION_SILU, gate, up, N, out);
    CHECK(isinf(out[0]) && isnan(out[2]) && out[3] == 3e38f && fabs(out[4]) <= 2 * 3e38 * exp(-87));
    for (int i = 5; i < N; i++) {
        const double expected = gate[i] / (1 + exp(-(double)gate[i])) * up[i];
        CHECK_NEAR(out[i], expected,
                   (EXP_ERROR + 4 * U) * SECOND_ORDER * fabs(expected) + fabs((double)gate[i] * up[i]) * 2 * exp(-87));
    }
}

static void test_exp(const Kernels *kernels) {
    double worst = 0;
    for (int i = 0; i <= 40000; i++) {
        const float x = -87.0f * (float)i / 40000;
        worst = fmax(worst, fabs(kernels->sum_exp(&x, 1, 0) / exp(x) - 1));
    }
    CHECK(worst <= EXP_ERROR);
    CHECK(kernels->sum_exp(&(float){0}, 1, 0) == 1);
    CHECK_NEAR(kernels->sum_exp(&(float){-INFINITY}, 1, 0), 0, 2e-38);
    CHECK_NEAR(kernels->sum_exp(&(float){-1000}, 1, 0), 0, 2e-38);
}

/* As for a sum of n / 16 steps per lane and four across lanes, of positive terms; the shift rounds each argument. */
static void test_sum_exp(const Kernels *kernels) {
    Random random = {12};
    for (int n = 1; n <= 300; n += n < 40 ? 1 : 29) {
        float *x = malloc((size_t)n * sizeof(float));
        const float shift = (float)(10 * random_normal(&random));
        double sum = 0, relative = 0;
        for (int i = 0; i < n; i++) {
            x[i] = shift - (float)(20 * random_unit(&random));
            sum += exp((double)x[i] - shift);
            relative = fmax(relative, U * fabs((double)x[i] - shift));
        }
        relative += EXP_ERROR + (n / 16 + 5) * U;
        CHECK_NEAR(kernels->sum_exp(x, n, shift), sum, relative * SECOND_ORDER * sum);
        free(x);
    }
}

static void test_largest(const Kernels *kernels) {
    Random random = {13};
    for (int n = 1; n <= 70; n++) {
        float *x = malloc((size_t)n * sizeof(float));
        for (int place = 0; place < n; place++) {
            for (int i = 0; i < n; i++) x[i] = i % 5 == 4 ? -INFINITY : (float)(-1 - random_unit(&random) * 1e6);
            x[place] = place % 2 ? -1 : -0.5f;
            CHECK(kernels->largest(x, n) == x[place]);
            const float below = x[place];
            x[place] = NAN;
            CHECK(isnan(kernels->largest(x, n)));
            x[place] = INFINITY;
            CHECK(!isfinite(kernels->largest(x, n)));
            x[place] = below;
        }
        for (int i = 0; i < n; i++) x[i] = -INFINITY;
        CHECK(kernels->largest(x, n) == -INFINITY);
        free(x);
    }
}

/* ---- recurrences -------------------------------------------------------------------------------------- */

/* Sums of at most 5 products, a bias, and silu. */
static void test_convolution(const Kernels *kernels) {
    enum { N = 48, MOST = 5 };
    float x[MOST][N], taps[MOST][N], bias[N], out[N];
    const float *in[MOST], *of[MOST];
    Random random = {21};
    for (int t = 0; t < MOST; t++)
        for (int i = 0; i < N; i++)
            in[t] = x[t], of[t] = taps[t], x[t][i] = (float)random_normal(&random), bias[i] = (float)(i % 5),
            taps[t][i] = (float)random_normal(&random);
    for (int n = 1; n <= MOST; n++)
        for (int silu = 0; silu < 2; silu++) {
            kernels->convolve(in, of, n, n % 2 ? bias : NULL, silu, N, out);
            for (int i = 0; i < N; i++) {
                double sum = n % 2 ? bias[i] : 0, size = sum;
                for (int t = 0; t < n; t++) sum += (double)x[t][i] * taps[t][i], size += fabs(x[t][i] * taps[t][i]);
                CHECK_NEAR(out[i], silu ? sum / (1 + exp(-sum)) : sum, (EXP_ERROR + 2 * (n + 6) * U) * (size + 1));
            }
        }
}

/* The same in double precision. One step's error is some 40 roundings of the largest number that takes part. */
static void test_recurrence(const Kernels *kernels, int n_keys, bool corrects) {
    enum { MOST = 64, STEPS = 40 };
    float state[MOST * 16], key[MOST], query[MOST], value[16], out[16];
    double exact[MOST * 16];
    Random random = {22};
    for (int i = 0; i < 16 * n_keys; i++) exact[i] = state[i] = (float)random_normal(&random);
    for (int step = 0; step < STEPS; step++) {
        const float decay = (float)random_unit(&random), rate = (float)random_unit(&random);
        for (int i = 0; i < n_keys; i++) key[i] = (float)(random_normal(&random) / sqrt(n_keys));
        for (int i = 0; i < n_keys; i++) query[i] = (float)random_normal(&random);
        for (int c = 0; c < 16; c++) value[c] = (float)random_normal(&random);
        kernels->recur(state, n_keys, key, query, decay, rate, corrects, value, step % 3 ? out : NULL);
        for (int c = 0; c < 16; c++) {
            double known = 0, answer = 0, size = 0;
            for (int i = 0; i < n_keys; i++) known += decay * exact[16 * i + c] * key[i];
            const double change = rate * (corrects ? value[c] - known : value[c]);
            for (int i = 0; i < n_keys; i++) {
                exact[16 * i + c] = decay * exact[16 * i + c] + key[i] * change;
                answer += exact[16 * i + c] * query[i];
                size += 1 + fabs(exact[16 * i + c] * query[i]);
                CHECK_NEAR(state[16 * i + c], exact[16 * i + c], (step + 1) * 100 * U);
            }
            if (step % 3) CHECK_NEAR(out[c], answer, (step + 1) * 100 * U * size);
        }
    }
}

/* ---- one instruction set and another ----------------------------------------------------------------- */

static void test_same_products(const Kernels *a, const Kernels *b, const BlockType *type, int columns, int n,
                               Random *random) {
    Case c = new_case(a, type, 40, columns, n, random);
    const size_t bytes = (size_t)n * c.out_stride * sizeof(float);
    float *out[2] = {allocate(bytes), allocate(bytes)};
    Operand *in[2] = {load_operand(a, &c, 0, n), load_operand(b, &c, 0, n)};
    for (int add = 0; add < 2; add++) {
        pack_for(a, &c);
        a->multiply(&c.weight, 0, c.weight.n_blocks, in[0], n, out[0], c.out_stride, add);
        pack_for(b, &c);
        b->multiply(&c.weight, 0, c.weight.n_blocks, in[1], n, out[1], c.out_stride, add);
    }
    bool same = !memcmp(out[0], out[1], bytes);
    for (int t = 0; in[0]->pairs && t < n; t++)
        for (int g = 0; g < 2 * in[0]->n_pairs; g += 2)
            same = same && !memcmp(pair_of(in[0], t, g), pair_of(in[1], t, g), sizeof(OperandPair));
    if (!CHECK(same)) printf("    %s, %s, %s, %d columns, %d tokens\n", a->name, b->name, type->name, columns, n);
    for (int i = 0; i < 2; i++) {
        cpu_ops()->operand_free(NULL, in[i]);
        free(out[i]);
    }
    free_case(&c);
}

/* All but the portable kernels fuse products with sums and add across lanes in the same order: the same bits. */
static void test_same_bits(const Kernels *a, const Kernels *b) {
    Random random = {15};
    enum { COLUMNS = 512 };
    for (int type = 0; type < N_BLOCK_TYPES; type++)
        for (int n = 5; n < 64; n += 32) {
            const int blocks = random_below(&random, 9), columns = COLUMNS + blocks * block_types[type].columns;
            test_same_products(a, b, &block_types[type], columns, n, &random);
        }
    float x[COLUMNS], gain[COLUMNS], out[2][COLUMNS];
    uint16_t half[2][COLUMNS];
    for (int i = 0; i < COLUMNS; i++)
        x[i] = (float)(30 * random_normal(&random)), gain[i] = (float)random_normal(&random);
    a->norm(x, gain, false, 1e-5f, COLUMNS, out[0]);
    b->norm(x, gain, false, 1e-5f, COLUMNS, out[1]);
    CHECK(!memcmp(out[0], out[1], sizeof out[0]));
    a->gate(ACTIVATION_SILU, x, gain, COLUMNS, out[0]);
    b->gate(ACTIVATION_SILU, x, gain, COLUMNS, out[1]);
    CHECK(!memcmp(out[0], out[1], sizeof out[0]));
    const float *const in[] = {x, gain, x}, *const taps[] = {gain, x, x};
    a->convolve(in, taps, 3, gain, true, COLUMNS, out[0]);
    b->convolve(in, taps, 3, gain, true, COLUMNS, out[1]);
    CHECK(!memcmp(out[0], out[1], sizeof out[0]));
    float state[2][16 * 32];
    for (int i = 0; i < 16 * 32; i++) state[0][i] = state[1][i] = gain[i];
    a->recur(state[0], 32, gain, x, 0.9f, 0.3f, true, x + 32, out[0]);
    b->recur(state[1], 32, gain, x, 0.9f, 0.3f, true, x + 32, out[1]);
    CHECK(!memcmp(state[0], state[1], sizeof state[0]) && !memcmp(out[0], out[1], 16 * sizeof(float)));
    a->to_float16(x, half[0], COLUMNS);
    b->to_float16(x, half[1], COLUMNS);
    CHECK(!memcmp(half[0], half[1], sizeof half[0]));
    CHECK(a->sum_exp(x, 500, a->largest(x, 500)) == b->sum_exp(x, 500, b->largest(x, 500)));
}

/* ---- half precision --------------------------------------------------------------------------------- */

static bool same_half(uint16_t a, uint16_t b) {
    const bool nan_a = (a & 0x7fff) > 0x7c00, nan_b = (b & 0x7fff) > 0x7c00;
    return nan_a || nan_b ? nan_a && nan_b : a == b;
}

static uint16_t convert(const Kernels *kernels, float x) {
    float in[16];
    uint16_t out[16];
    for (int i = 0; i < 16; i++) in[i] = x;
    kernels->to_float16(in, out, 16);
    for (int i = 1; i < 16; i++)
        if (out[i] != out[0]) return 0xffff;
    return out[0];
}

/* Every half, the midpoint to its neighbour, and the floats on both sides of that: conversion is monotonic, so that
 * these decide all others. `kernels` NULL: the scalar conversion. */
static void test_half_conversion(const Kernels *kernels) {
    long wrong = 0;
    for (uint32_t h = 0; h < 0x8000; h++)
        for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
            const uint16_t bits = (uint16_t)(h | sign);
            const uint8_t bytes[2] = {(uint8_t)bits, (uint8_t)(bits >> 8)};
            const double exact = exact_weight(&block_types[1], bytes, 0).scaled;
            const float x = float_from_f16(bits);
            wrong += !(x == exact || (isnan(x) && isnan(exact))) || (!isnan(exact) && !signbit(x) != !signbit(exact));
            wrong += !same_half(kernels ? convert(kernels, x) : f16_from_float(x), bits);
            if (h >= 0x7c00) continue;
            /* The midpoint to the next half; from the largest one, to where 2^16 would be. */
            const double next = h == 0x7bff ? 65536 : fabs((double)float_from_f16((uint16_t)(h + 1)));
            const float middle = (float)copysign((fabs(exact) + next) / 2, sign ? -1.0 : 1.0);
            const float less = nextafterf(middle, 0), more = nextafterf(middle, sign ? -INFINITY : INFINITY);
            const uint16_t even = (uint16_t)((h + (h & 1)) | sign), above = (uint16_t)((h + 1) | sign);
            wrong += !same_half(kernels ? convert(kernels, middle) : f16_from_float(middle), even);
            wrong += !same_half(kernels ? convert(kernels, less) : f16_from_float(less), bits);
            wrong += !same_half(kernels ? convert(kernels, more) : f16_from_float(more), above);
        }
    wrong += f16_from_float(1e30f) != 0x7c00;
    CHECK_EQ(wrong, 0);
}

static void test_bf16(void) {
    for (uint32_t h = 0; h < 0x10000; h++) CHECK_EQ(bits_from_float(float_from_bf16((uint16_t)h)), h << 16);
}

#if defined(BEE_EMULATE_TILES)
/* What tiles leave to others. */
static void multiply_rest(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                          size_t out_stride, bool add) {
    CHECK(n_tokens < TILE || !traits_of(weight->type).bits);
    kernels_named("avx512_vbmi")->multiply(weight, first, last, in, n_tokens, out, out_stride, add);
}

static void multiply_emulated(const Weight *weight, int first, int last, const Operand *in, int n_tokens, float *out,
                              size_t out_stride, bool add) {
    bee_multiply_emulated_tiles(weight, first, last, in, n_tokens, out, out_stride, add, multiply_rest);
}

/* Products of many tokens by tile registers, emulated: what they share with AVX-512 is tested with that. */
static void test_emulated_tiles(void) {
    const Kernels *kernels = kernels_named("avx512_vbmi");
    if (!kernels) {
        printf("amx, emulated: not tested, this machine has no avx512_vbmi\n");
        return;
    }
    Kernels emulated = *kernels;
    emulated.name = "amx, emulated";
    emulated.multiply = multiply_emulated;
    test_products(&emulated);
    test_largest_codes(&emulated);
    test_block_invariance(&emulated);
    test_odd_activations(&emulated);
    test_same_bits(kernels, &emulated);
    printf("%s: done\n", emulated.name);
}
#endif

int main(void) {
    const char *const *names = bee_instruction_sets();
    CHECK(names[0] != NULL);
    test_half_conversion(NULL);
    test_bf16();
    for (int i = 0; names[i]; i++) {
        const Kernels *kernels = kernels_named(names[i]);
        if (!CHECK(kernels != NULL)) continue;
        test_products(kernels);
        test_largest_codes(kernels);
        test_block_invariance(kernels);
        test_odd_activations(kernels);
        test_rms_norm(kernels);
        test_layer_norm(kernels);
        test_gelu_and_cap(kernels);
        test_swiglu(kernels);
        test_logistic_and_relu_squared(kernels);
        test_exp(kernels);
        test_sum_exp(kernels);
        test_largest(kernels);
        test_half_conversion(kernels);
        test_convolution(kernels);
        test_recurrence(kernels, 16, true);
        test_recurrence(kernels, 64, true);
        test_recurrence(kernels, 64, false);
        if (i && strcmp(kernels->name, "portable")) test_same_bits(kernels_named(names[0]), kernels);
        printf("%s: done\n", kernels->name);
    }
#if defined(BEE_EMULATE_TILES)
    test_emulated_tiles();
#endif
    return check_report();
}
