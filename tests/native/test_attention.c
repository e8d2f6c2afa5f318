/* Tests of attention and of keys and values in 8 bits, for every instruction set that this machine can run: against
 * double precision within bounds that follow from the roundings (rounding.h), and against themselves bit for bit where
 * queries are computed in other company. */
#include "check.h"
#include "compiled_kernels.h"
#include "random.h"
#include "rounding.h"
#include "types/float16.h"

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

/* All but the portable kernels fuse products with sums and add across lanes in the same order: the same bits. */
static void test_same_bits(const Kernels *a, const Kernels *b) {
    Random random = {15};
    for (bee_kv_type kv = BEE_KV_F16; kv <= BEE_KV_Q8_0; kv++) {
        AttentionCase c = new_attention(kv, 80, 7, 300, &random);
        float attended[7 * 80];
        run_attention(a, &c, 0, 7);
        memcpy(attended, c.out, sizeof attended);
        run_attention(b, &c, 0, 7);
        CHECK(!memcmp(attended, c.out, sizeof attended));
        free_attention(&c);
    }
}

int main(void) {
    const char *const *names = bee_instruction_sets();
    CHECK(names[0] != NULL);
    for (int i = 0; names[i]; i++) {
        const Kernels *kernels = kernels_named(names[i]);
        if (!CHECK(kernels != NULL)) continue;
        for (bee_kv_type type = BEE_KV_F16; type <= BEE_KV_Q8_0; type++) {
            test_attention(kernels, type);
            test_attention_not_finite(kernels, type);
            test_windows(kernels, type);
        }
        test_codes(kernels);
        if (i && strcmp(kernels->name, "portable")) test_same_bits(kernels_named(names[0]), kernels);
        printf("%s: done\n", kernels->name);
    }
    return check_report();
}
