/* Tests of the kernels, for every instruction set that this machine can run: against double precision within bounds
 * that follow from the roundings, and against themselves bit for bit where tokens are computed in other company.
 *
 * Bounds. u = 2^-24 is the largest relative error of one rounding to float. A sum of k terms that is accumulated in
 * order, every partial sum rounded, is off by at most k u (the sum of the terms' magnitudes); a rounding of each term
 * adds u of the same sum. Instruction sets without a fused multiply-add round each product as well; the bounds allow
 * for that everywhere. SECOND_ORDER covers the products of such errors. */
#include "check.h"
#include "compiled_kernels.h"
#include "cpu/pack.h"
#include "ggml_blocks.h"
#include "ops.h"
#include "types/float16.h"

#include <stdlib.h>

static const double U = 0x1p-24, SECOND_ORDER = 1.001;
/* What kernels.c promises of its exponential, relative. */
static const double EXP_ERROR = 2e-7;

static void *allocate(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!memory) abort();
    memset(memory, 0, (bytes + 64) / 64 * 64);
    return memory;
}

static int up_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

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
            Case c = new_case(kernels, t, 16, 256, 4, &random);
            uint8_t *data = (uint8_t *)c.tensor.data;
            int begin, end;
            code_bytes_of(t, &begin, &end);
            for (uint64_t block = 0; block < c.tensor.size; block += (uint64_t)t->bytes)
                memset(data + block + begin, fills[fill], (size_t)(end - begin));
            weight_fill(&c.weight, &c.tensor, NULL, 0, c.weight.n_blocks);
            for (int i = 0; i < 256; i++) {
                const float signs[] = {1, -1, i % 2 ? 1 : -1, i / 16 % 2 ? 1 : -1};
                for (int token = 0; token < 4; token++) c.x[(size_t)token * c.x_stride + (size_t)i] = 3 * signs[token];
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
            Case c = new_case(kernels, &block_types[type], 16, columns, 3, &random);
            c.x[c.x_stride + (size_t)place] = odd[place % 3];
            for (int i = 0; i < columns; i++) c.x[2 * c.x_stride + (size_t)i] = i % 2 ? 0x1p-149f : 0x1p-130f;
            Operand *in = load_operand(kernels, &c, 0, 3);
            float *out = allocate(3 * c.out_stride * sizeof(float));
            kernels->multiply(&c.weight, 0, 1, in, 3, out, c.out_stride, false);
            int wrong = 0;
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

/* ---- attention -------------------------------------------------------------------------------------- */

/* n_heads queries each of two successive tokens, the first of which sees one position less. */
typedef struct AttentionCase {
    bee_kv_type type;
    int head_size, n_queries, n_positions, n_blocks;
    int window;    /* positions that each sees; 0: all */
    float softcap; /* 0: none */
    bool has_sink;
    float sink;
    float *query, *out;
    uint8_t *keys, *values;
} AttentionCase;

static int visible_to(const AttentionCase *c, int query) {
    return query < c->n_queries / 2 && c->n_positions > 1 ? c->n_positions - 1 : c->n_positions;
}

static int hidden_from(const AttentionCase *c, int query) {
    const int hidden = visible_to(c, query) - c->window;
    return c->window && hidden > 0 ? hidden : 0;
}

/* Where a key or value lies: a float16, or a code and its scale. */
typedef struct Cell {
    uint8_t *number, *scale; /* scale: NULL for float16 */
} Cell;

static Cell key_cell(const AttentionCase *c, int position, int d) {
    const size_t lane = (size_t)position % 16;
    uint8_t *block = c->keys + (size_t)position / 16 * 16 * cache_head_bytes(c->type, c->head_size);
    if (c->type == BEE_KV_F16) return (Cell){block + 2 * (16 * (size_t)d + lane), NULL};
    return (Cell){block + key_code_at(d, (int)lane), block + key_scales_at(d) + 2 * lane};
}

static Cell value_cell(const AttentionCase *c, int position, int d) {
    const size_t place = (size_t)position % POSITION_CHUNK, size = (size_t)c->head_size;
    uint8_t *chunk = c->values + ((size_t)position - place) * cache_head_bytes(c->type, c->head_size);
    if (c->type == BEE_KV_F16) return (Cell){chunk + 2 * (place * size + (size_t)d), NULL};
    return (Cell){chunk + value_code_at(c->head_size, (int)place, d), chunk + value_scales_at(d) + 2 * place};
}

static double number_in(Cell cell) {
    uint16_t half;
    memcpy(&half, cell.scale ? cell.scale : cell.number, sizeof half);
    return cell.scale ? (double)float_from_f16(half) * (int8_t)*cell.number : (double)float_from_f16(half);
}

static void set_half(uint8_t *at, uint16_t half) { memcpy(at, &half, sizeof half); }

/* What is not finite, or as large as it may be. */
static void spoil(Cell cell, int kind) {
    static const uint16_t halves[] = {0x7e00, 0xfc00, 0x7bff};
    if (cell.scale) *cell.number = 0x80;
    set_half(cell.scale ? cell.scale : cell.number, halves[kind % 3]);
}

/* A number of deviation 1, about: in 8 bits any code, and a scale for every block. */
static void fill(Cell cell, int d, Random *random) {
    if (!cell.scale) {
        set_half(cell.number, f16_from_float((float)random_normal(random)));
        return;
    }
    *cell.number = (uint8_t)(random_below(random, 255) - 127);
    if (d % CACHE_BLOCK == 0) set_half(cell.scale, f16_from_float((float)(fabs(random_normal(random)) / 60)));
}

static size_t value_bytes(const AttentionCase *c) {
    const size_t rest = (size_t)(c->n_positions % POSITION_CHUNK), size = (size_t)c->head_size;
    const size_t chunks = ((size_t)c->n_positions - rest) * cache_head_bytes(c->type, c->head_size);
    if (c->type == BEE_KV_F16) return chunks + 2 * rest * size;
    return chunks + (rest ? value_scale_bytes(c->head_size) + (rest + rest % 2) * size : 0); /* whole pairs */
}

static AttentionCase new_attention(bee_kv_type type, int head_size, int n_queries, int n_positions, Random *random) {
    AttentionCase c = {.type = type,
                       .head_size = head_size,
                       .n_queries = n_queries,
                       .n_positions = n_positions,
                       .n_blocks = up_to(n_positions, 32) / 16};
    c.query = allocate((size_t)(n_queries * head_size) * sizeof(float));
    c.out = allocate((size_t)(n_queries * head_size) * sizeof(float));
    c.keys = malloc((size_t)c.n_blocks * 16 * cache_head_bytes(type, head_size)); /* exactly the positions' blocks */
    c.values = malloc(value_bytes(&c));
    const double spread = random_below(random, 2) ? 1 : 6; /* flat and sharp distributions */
    for (int i = 0; i < n_queries * head_size; i++)
        c.query[i] = (float)(spread * random_normal(random) / sqrt(head_size));
    for (int p = 0; p < c.n_blocks * 16; p++)
        for (int d = 0; d < head_size; d++) {
            fill(key_cell(&c, p, d), d, random);
            if (p < n_positions) fill(value_cell(&c, p, d), d, random);
        }
    return c;
}

static void free_attention(AttentionCase *c) {
    free(c->query);
    free(c->out);
    free(c->keys);
    free(c->values);
}

/* Queries [first, first + n): all chunks, each for all queries that see some of it, and their fold. */
static void run_attention(const Kernels *kernels, AttentionCase *c, int first, int n) {
    const size_t size = PARTIAL_HEAD + (size_t)c->head_size;
    const int n_chunks = (c->n_positions + POSITION_CHUNK - 1) / POSITION_CHUNK;
    float *partials = allocate((size_t)(n * n_chunks) * size * sizeof(float));
    for (int chunk = 0; chunk < n_chunks; chunk++) {
        const int begin = chunk * POSITION_CHUNK;
        const float *queries[64];
        float *out[64];
        int n_visible[64], n_hidden[64];
        const size_t before = (size_t)begin * cache_head_bytes(c->type, c->head_size);
        Attention a = {.type = c->type,
                       .keys = c->keys + before,
                       .values = c->values + before,
                       .next = c->keys,
                       .head_size = c->head_size,
                       .queries = queries,
                       .n_visible = n_visible,
                       .n_hidden = n_hidden,
                       .softcap = c->softcap,
                       .partials = out};
        for (int q = 0; q < n; q++) {
            const int visible = visible_to(c, first + q) - begin;
            const int hidden = hidden_from(c, first + q) - begin;
            if (visible <= 0 || hidden >= POSITION_CHUNK) continue;
            n_hidden[a.n_queries] = hidden > 0 ? hidden : 0;
            queries[a.n_queries] = c->query + (first + q) * c->head_size;
            out[a.n_queries] = partials + (size_t)(q * n_chunks + chunk) * size;
            n_visible[a.n_queries++] = visible < POSITION_CHUNK ? visible : POSITION_CHUNK;
        }
        if (a.n_queries) kernels->attend(&a);
    }
    for (int q = 0; q < n; q++) {
        const int first_read = hidden_from(c, first + q) / POSITION_CHUNK;
        const int read = (visible_to(c, first + q) + POSITION_CHUNK - 1) / POSITION_CHUNK - first_read;
        kernels->fold(partials + (size_t)(q * n_chunks + first_read) * size, size, read, c->head_size,
                      c->has_sink ? &c->sink : NULL, c->out + (first + q) * c->head_size);
    }
    free(partials);
}

/* In 8 bits queries and weights are rounded to multiples of a 32767th of the largest of their block: by half of that,
 * and what else is rounded on the way. */
#define HALF_WORD (0.501 / 32767)

/* What that makes of a product of a query's number. */
static double query_rounding(const AttentionCase *c, const float *q, int d) {
    if (c->type == BEE_KV_F16) return 0;
    float largest = 0;
    for (int i = d / CACHE_BLOCK * CACHE_BLOCK; i < c->head_size && i < (d / CACHE_BLOCK + 1) * CACHE_BLOCK; i++)
        largest = fmaxf(largest, fabsf(q[i]));
    return HALF_WORD * largest;
}

/* And of a dimension's weighted sum, where the largest weight is 1: in each chunk the weights are at most 1 there, and
 * their block is that times the largest scale. */
static double weight_rounding(const AttentionCase *c, const double *score, double top, int hidden, int n_positions,
                              int d) {
    double rounding = 0;
    for (int p = hidden; c->type != BEE_KV_F16 && p < n_positions;) {
        const int end = p / POSITION_CHUNK * POSITION_CHUNK + POSITION_CHUNK;
        double scale = 0, codes = 0, chunk_top = -INFINITY;
        for (; p < n_positions && p < end; p++) {
            const Cell cell = value_cell(c, p, d);
            uint16_t half;
            memcpy(&half, cell.scale, sizeof half);
            scale = fmax(scale, (double)float_from_f16(half));
            codes += abs((int8_t)*cell.number);
            chunk_top = fmax(chunk_top, score[p]);
        }
        rounding += exp(chunk_top - top) * HALF_WORD * scale * codes;
    }
    return rounding;
}

/* A score is a sum of head_size terms, off by at most e = (head_size + 1) u sum|q k|; in 8 bits the sums of 32 terms
 * are exact, and what is done with them has no more roundings; a weight has one more, with its scale. The weight of a
 * position is the exponential of a difference of two scores, itself rounded: relative error 2 e + u |difference| +
 * EXP_ERROR, or nothing below exp(-87). Weights enter numerator and denominator; either sum adds n roundings, and the
 * quotient three. A fold multiplies what was summed before it by another exponential, whose argument and value are
 * rounded, and adds.
 */
static void check_attention(const AttentionCase *c, int head) {
    const int n_positions = visible_to(c, head), hidden = hidden_from(c, head);
    const int n_folds = (n_positions - 1) / POSITION_CHUNK + c->has_sink;
    double *score = allocate((size_t)n_positions * sizeof *score), top = -INFINITY, error = 0, sum = 0;
    const float *q = c->query + head * c->head_size;
    for (int p = hidden; p < n_positions; p++) {
        double magnitude = 0, rounding = 0;
        for (int d = 0; d < c->head_size; d++) {
            const double key = number_in(key_cell(c, p, d)), product = q[d] * key;
            score[p] += product;
            magnitude += fabs(product);
            rounding += query_rounding(c, q, d) * fabs(key);
        }
        error = fmax(error, (c->head_size + 1) * U * SECOND_ORDER * magnitude + rounding);
        if (c->softcap)
            score[p] = c->softcap * tanh(score[p] / c->softcap); /* changes differences by less than they are */
        top = fmax(top, score[p]);
    }
    error += c->softcap * (EXP_ERROR + 6 * U);
    if (c->has_sink) top = fmax(top, c->sink);
    double relative = 0;
    if (c->has_sink) sum = exp(c->sink - top);
    for (int p = hidden; p < n_positions; p++) {
        relative = fmax(relative, 2 * error + U * fmin(top - score[p], 88) + EXP_ERROR);
        sum += exp(score[p] - top);
    }
    relative = 2 * ((1 + n_folds) * relative + (n_positions + 2 + 2 * n_folds) * U) + (3 + (c->type != BEE_KV_F16)) * U;
    for (int d = 0; d < c->head_size; d++) {
        double value = 0, magnitude = 0;
        for (int p = hidden; p < n_positions; p++) {
            const double v = number_in(value_cell(c, p, d));
            value += exp(score[p] - top) / sum * v;
            magnitude += exp(score[p] - top) / sum * fabs(v);
        }
        const double rounding = 2 * weight_rounding(c, score, top, hidden, n_positions, d) / sum;
        CHECK_NEAR(c->out[head * c->head_size + d], value,
                   relative * SECOND_ORDER * magnitude + rounding + n_positions * 1e-36);
    }
    free(score);
}

static void check_attention_case(const Kernels *kernels, AttentionCase c) {
    const int head_size = c.head_size, n_queries = c.n_queries, n_positions = c.n_positions;
    const size_t bytes = (size_t)(n_queries * head_size) * sizeof(float);
    run_attention(kernels, &c, 0, n_queries);
    for (int query = 0; query < n_queries; query++) check_attention(&c, query);
    float *before = allocate(bytes);
    memcpy(before, c.out, bytes);
    /* What lies beyond the positions seen, in the last blocks of keys, does not matter. */
    for (int p = n_positions; p < c.n_blocks * 16; p++)
        for (int d = 0; d < head_size; d++) spoil(key_cell(&c, p, d), d / (c.type == BEE_KV_F16 ? 1 : CACHE_BLOCK));
    run_attention(kernels, &c, 0, n_queries);
    CHECK(!memcmp(before, c.out, bytes));
    /* Nor does it matter which queries are computed together. */
    for (int together = 1; together < n_queries; together += together < 8 ? 1 : 7) {
        memset(c.out, 0, bytes);
        for (int query = 0; query < n_queries; query += together)
            run_attention(kernels, &c, query, query + together < n_queries ? together : n_queries - query);
        CHECK(!memcmp(before, c.out, bytes));
    }
    free(before);
    free_attention(&c);
}

static void test_attention_case(const Kernels *kernels, bee_kv_type type, int head_size, int n_queries, int n_positions,
                                Random *random) {
    check_attention_case(kernels, new_attention(type, head_size, n_queries, n_positions, random));
}

/* Windows that begin anywhere in a chunk, or chunks before; what lies before them may be anything, too. */
static void test_windows(const Kernels *kernels, bee_kv_type type) {
    Random random = {18};
    static const int windows[] = {1, 2, 8, 15, 16, 17, 31, 32, 33, 100, 127, 128, 129, 299};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++)
        for (int positions = windows[i]; positions < 420; positions += 1 + 41 * (positions > windows[i])) {
            AttentionCase c = new_attention(type, 32, 1 + (int)i % 7, positions, &random);
            c.window = windows[i];
            c.softcap = i % 3 == 1 ? 5 : 0;
            c.has_sink = i % 2;
            c.sink = (float)random_normal(&random);
            const int seen = hidden_from(&c, 0);
            for (int p = 0; p < seen; p++)
                for (int d = 0; d < 32; d++) {
                    spoil(key_cell(&c, p, d), 0);
                    spoil(value_cell(&c, p, d), 0);
                }
            check_attention_case(kernels, c);
        }
}

static void test_attention(const Kernels *kernels, bee_kv_type type) {
    Random random = {8};
    static const int head_sizes[] = {16, 32, 48, 64, 80, 128, 256};
    static const int positions[] = {1, 5, 16, 17, 31, 100, 128, 129, 300};
    for (size_t h = 0; h < sizeof head_sizes / sizeof *head_sizes; h++)
        for (size_t p = 0; p < sizeof positions / sizeof *positions; p++)
            test_attention_case(kernels, type, head_sizes[h], 1 + (int)(h + p) % 8, positions[p], &random);
    for (int queries = 1; queries <= 25; queries++) test_attention_case(kernels, type, 16, queries, 40, &random);
    test_attention_case(kernels, type, 64, 6, 1000, &random);
    for (int i = 0; i < 8; i++) {
        AttentionCase c = new_attention(type, 64, 4, 30 + 60 * i, &random);
        c.softcap = i % 2 ? 3 : 50;
        c.has_sink = i % 4 > 1;
        c.sink = (float)(4 * random_normal(&random));
        check_attention_case(kernels, c);
    }
}

/* NaN in what is seen shows in the result. */
static void test_attention_not_finite(const Kernels *kernels, bee_kv_type type) {
    Random random = {9};
    for (int position = 0; position < 37; position += 6) {
        AttentionCase c = new_attention(type, 32, 2, 37, &random);
        spoil(key_cell(&c, position, 7), 0);
        run_attention(kernels, &c, 0, 2);
        CHECK(isnan(c.out[0]) == (position < 36) && isnan(c.out[63])); /* the last position is the second token's */
        free_attention(&c);
    }
}

/* As cache.h has it, number by number. */
static void check_codes(const Kernels *kernels, const float *x, int n) {
    int8_t codes[80];
    uint16_t scales[3];
    kernels->to_codes(x, codes, scales, n);
    for (int first = 0; first < n; first += CACHE_BLOCK) {
        float largest = 0;
        bool finite = true;
        for (int i = first; i < n && i < first + CACHE_BLOCK; i++)
            largest = fmaxf(largest, fabsf(x[i])), finite = finite && isfinite(x[i]);
        const uint16_t half = f16_from_float(largest / 127);
        const float scale = float_from_f16(half);
        const bool fits = finite && 127 * scale <= 65504;
        CHECK_EQ(scales[first / CACHE_BLOCK], fits ? half : 0x7e00);
        for (int i = first; i < n && i < first + CACHE_BLOCK; i++) {
            const float nearest = fits && scale > 0 ? rintf(x[i] / scale) : 0;
            CHECK_EQ(codes[i], nearest > 127 ? 127 : nearest < -127 ? -127 : (int)nearest);
            /* Half a step, and what the scale lost where float16 has few bits left. */
            if (fits) CHECK_NEAR(scale * codes[i], x[i], scale * 0.5005 + 127 * fmax(0x1p-25, largest / 127 * 0x1p-11));
        }
    }
}

/* Heads of any size and magnitude; numbers that are all zero, too small, too large, or none. */
static void test_codes(const Kernels *kernels) {
    Random random = {19};
    static const float special[] = {0, -0.0f, 1e-9f, 3e-6f, 1e-42f, 65400, 65500, 65519, -65520, 1e9f, INFINITY, NAN};
    float x[80];
    for (int n = 16; n <= 80; n += 16)
        for (int exponent = -30; exponent < 18; exponent++) {
            for (int i = 0; i < n; i++) x[i] = (float)ldexp(random_normal(&random), exponent);
            check_codes(kernels, x, n);
        }
    for (size_t s = 0; s < sizeof special / sizeof *special; s++)
        for (int at = 0; at < 80; at += 13) {
            for (int i = 0; i < 80; i++) x[i] = s % 2 ? special[s] * 0.3f : 0;
            x[at] = special[s];
            check_codes(kernels, x, 80);
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

/* All but the portable kernels fuse products with sums and add across lanes in the same order: the same bits. */
static void test_same_bits(const Kernels *a, const Kernels *b) {
    Random random = {15};
    enum { N = 5, COLUMNS = 512 };
    for (int type = 0; type < N_BLOCK_TYPES; type++) {
        Case c = new_case(a, &block_types[type], 40, COLUMNS, N, &random);
        const size_t row_bytes = c.out_stride * sizeof(float);
        float *out[2] = {allocate(N * row_bytes), allocate(N * row_bytes)};
        Operand *in[2] = {load_operand(a, &c, 0, N), load_operand(b, &c, 0, N)};
        a->multiply(&c.weight, 0, c.weight.n_blocks, in[0], N, out[0], c.out_stride, false);
        pack_for(b, &c);
        b->multiply(&c.weight, 0, c.weight.n_blocks, in[1], N, out[1], c.out_stride, false);
        bool same = !memcmp(out[0], out[1], N * row_bytes);
        for (int t = 0; in[0]->pairs && t < N; t++)
            for (int g = 0; g < 2 * in[0]->n_pairs; g += 2)
                same = same && !memcmp(pair_of(in[0], t, g), pair_of(in[1], t, g), sizeof(OperandPair));
        if (!CHECK(same)) printf("    %s, %s, %s\n", a->name, b->name, block_types[type].name);
        for (int i = 0; i < 2; i++) {
            cpu_ops()->operand_free(NULL, in[i]);
            free(out[i]);
        }
        free_case(&c);
    }
    for (bee_kv_type kv = BEE_KV_F16; kv <= BEE_KV_Q8_0; kv++) {
        AttentionCase c = new_attention(kv, 80, 7, 300, &random);
        float attended[7 * 80];
        run_attention(a, &c, 0, 7);
        memcpy(attended, c.out, sizeof attended);
        run_attention(b, &c, 0, 7);
        CHECK(!memcmp(attended, c.out, sizeof attended));
        free_attention(&c);
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
        for (bee_kv_type type = BEE_KV_F16; type <= BEE_KV_Q8_0; type++) {
            test_attention(kernels, type);
            test_attention_not_finite(kernels, type);
            test_windows(kernels, type);
        }
        test_codes(kernels);
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
    return check_report();
}
