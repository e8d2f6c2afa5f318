/* The CPU backend: each operation is split over the threads of the pool and ends in a barrier. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cache_chunks.h"
#include "devices.h"
#include "error.h"
#include "file/tensor.h"
#include "instruction_sets.h"
#include "kernels.h"
#include "pack.h"
#include "rates.h"
#include "sampling/sample.h"
#include "threads.h"
#include "worker.h"

/* Rows whose attention is computed between two barriers. */
enum { ATTENTION_ROWS = BEE_MAX_BLOCK };

/* Queries handed to the attention kernel in one call. */
enum { QUERIES_TOGETHER = 24 };

/* ---- memory ------------------------------------------------------------------------------------- */

static void *zeroed(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (memory) memset(memory, 0, (bytes + 63) / 64 * 64 + 64);
    return memory;
}

bool reserve_scratch(Backend *backend, size_t floats) {
    for (int i = 0; i < thread_pool_size(backend->pool); i++) {
        Worker *worker = &backend->workers[i];
        if (worker->scratch_floats >= floats) continue;
        float *scratch = zeroed(floats * sizeof(float));
        if (!scratch) return false;
        free(worker->scratch);
        worker->scratch = scratch;
        worker->scratch_floats = floats;
    }
    return true;
}

static void operand_free(Backend *backend, Operand *operand) {
    if (!operand) return;
    for (int i = 0; operand->own && i < thread_pool_size(backend->pool); i++) {
        free(operand->own[i].pairs);
        free(operand->own[i].values);
    }
    free(operand->own);
    free(operand->pairs);
    free(operand->values);
    free(operand);
}

static bool operand_allocate(Operand *o, int columns, int max_rows, int formats) {
    const size_t tiles = ((size_t)max_rows + TILE - 1) / TILE;
    *o = (Operand){.columns = columns, .n_pairs = (columns + PAIR - 1) / PAIR, .max_tokens = (int)tiles * TILE};
    if (formats & OPERAND_CODES) o->pairs = zeroed(tiles * TILE * o->n_pairs * sizeof *o->pairs);
    if (formats & OPERAND_VALUES) o->values = zeroed(tiles * TILE * columns * sizeof *o->values);
    return (o->pairs || !(formats & OPERAND_CODES)) && (o->values || !(formats & OPERAND_VALUES));
}

static Operand *operand_new(Backend *backend, int columns, int max_rows, int formats) {
    const int n_own = formats & OPERAND_OWN ? thread_pool_size(backend->pool) : 0;
    Operand *o = malloc(sizeof *o);
    if (!o) return NULL;
    bool ok = operand_allocate(o, columns, max_rows, formats);
    if (n_own) ok = (o->own = calloc((size_t)n_own, sizeof *o->own)) && ok;
    for (int i = 0; ok && i < n_own; i++) ok = operand_allocate(&o->own[i], columns, OWN_ROWS, formats);
    if (ok) return o;
    operand_free(backend, o);
    return NULL;
}

/* A buffer's size stands in the 64 bytes before it. Large ones are pages of their own: what a request never reaches
 * stays untouched, and closing an engine gives them back to the system. */
enum { BUFFER_HEAD = 64, LARGE_BUFFER = 1 << 20 };

float *buffer_new(Backend *backend, size_t count) {
    (void)backend;
    const size_t bytes = BUFFER_HEAD + count * sizeof(float) + 64;
    char *memory = bytes < LARGE_BUFFER ? zeroed(bytes) : pages_new(bytes);
    if (!memory) return NULL;
    memcpy(memory, &bytes, sizeof bytes);
    return (float *)(memory + BUFFER_HEAD);
}

void buffer_free(Backend *backend, void *buffer) {
    (void)backend;
    if (!buffer) return;
    char *memory = (char *)buffer - BUFFER_HEAD;
    size_t bytes;
    memcpy(&bytes, memory, sizeof bytes);
    if (bytes < LARGE_BUFFER)
        free(memory);
    else
        pages_free(memory, bytes);
}

static void buffer_copy(Backend *backend, void *to, const void *from, size_t bytes) {
    (void)backend;
    memcpy(to, from, bytes);
}

static size_t partial_size(const Heads *heads) { return PARTIAL_HEAD + (size_t)heads->head_size; }

static size_t partial_floats(const CacheShape *shape, int n_ctx) {
    const size_t row = (size_t)shape->n_head * PARTIAL_HEAD + (size_t)shape->query_columns;
    return ATTENTION_ROWS * row * (size_t)cache_chunks(n_ctx);
}

/* Memory of a long context that no request reaches stays untouched. */
static bool reserve_partials(Backend *backend, const CacheShape *shape, int n_ctx) {
    const size_t floats = partial_floats(shape, n_ctx);
    if (backend->partial_floats >= floats) return true;
    float *both[2] = {pages_new(floats * sizeof(float)), pages_new(floats * sizeof(float))};
    for (int i = 0; i < 2; i++) {
        float *unused = both[0] && both[1] ? backend->partials[i] : both[i];
        pages_free(unused, (unused == both[i] ? floats : backend->partial_floats) * sizeof(float));
    }
    if (!both[0] || !both[1]) return false;
    memcpy(backend->partials, both, sizeof both);
    backend->partial_floats = floats;
    return true;
}

static Cache *cache_new(Backend *backend, const CacheShape *shape, int n_ctx) {
    return reserve_partials(backend, shape, n_ctx) ? cache_allocate(backend, shape, n_ctx) : NULL;
}

/* ---- running ------------------------------------------------------------------------------------ */

typedef struct Job {
    Backend *backend;
    void (*body)(Worker *, void *);
    void *argument;
} Job;

static void run_worker(void *argument, int index) {
    Job *job = argument;
    job->body(&job->backend->workers[index], job->argument);
}

void run_all(Backend *backend, void (*body)(Worker *, void *), void *argument) {
    Job job = {backend, body, argument};
    thread_pool_run(backend->pool, run_worker, &job);
}

static void run(Backend *backend, void (*body)(Worker *, void *), void *argument, const RunInput *input) {
    (void)input; /* the operations read it where it is */
    run_all(backend, body, argument);
}

static int worker_index(const Worker *worker) { return worker->index; }

static void embed(Worker *w, const Table *table, const Row *rows, int n, float scale, float *x, size_t stride) {
    for (int i = w->index; i < n; i += w->count) {
        float *row = x + i * stride;
        const size_t columns = (size_t)table_row(table, rows[i].token, row);
        for (size_t c = 0; scale != 1 && c < columns; c++) row[c] *= scale;
        memset(row + columns, 0, (stride - columns) * sizeof(float));
    }
    barrier(w);
}

/* What a worker reads of an operand, or writes where it computes for itself. */
static Operand *operand_of(const Worker *w, const Operand *operand, int n) {
    return operand->own && n <= OWN_ROWS ? &operand->own[w->index] : (Operand *)operand;
}

/* The rows that a worker puts into an operand: all of them into its own. */
typedef struct Share {
    Operand *out;
    int first, last;
} Share;

static Share share_of(const Worker *w, Operand *operand, int n) {
    Operand *out = operand_of(w, operand, n);
    if (out != operand) return (Share){out, 0, n};
    return (Share){out, share_begin(w, n, w->index), share_begin(w, n, w->index + 1)};
}

static void end_share(const Worker *w, const Operand *operand, Share share) {
    if (share.out == operand) barrier(w);
}

static void norm(Worker *w, const Norm *norm, const float *x, size_t stride, const int32_t *index, int columns, int n,
                 Operand *out) {
    const Kernels *kernels = w->backend->kernels;
    const Share share = share_of(w, out, n);
    memset(w->scratch + columns, 0, (padded(columns) - (size_t)columns) * sizeof(float));
    for (int i = share.first; i < share.last; i++) {
        kernels->norm(x + (index ? index[i] : i) * stride, norm->gain, norm->centred, norm->eps, columns, w->scratch);
        kernels->store_operand(w->scratch, share.out, i, 0, 2 * out->n_pairs);
    }
    end_share(w, out, share);
}

static void norm_in_place(Worker *w, const Norm *norm, float *x, size_t stride, int columns, int parts, int n) {
    for (int unit = w->index; unit < n * parts; unit += w->count) {
        float *part = x + unit / parts * stride + (size_t)(unit % parts) * columns;
        const float *gain = norm->apart ? norm->gain + (size_t)(unit % parts) * columns : norm->gain;
        /* By way of the scratch memory, as the kernel writes whole vectors, and the next slice is another worker's. */
        w->backend->kernels->norm(part, gain, norm->centred, norm->eps, columns, w->scratch);
        memcpy(part, w->scratch, (size_t)columns * sizeof(float));
    }
    barrier(w);
}

static void add(Worker *w, const Norm *norm, float *y, size_t y_stride, float scale, float whole, int columns, int n,
                float *x, size_t x_stride) {
    const Kernels *kernels = w->backend->kernels;
    for (int i = w->index; i < n; i += w->count) {
        float *row = y + i * y_stride;
        if (norm) kernels->norm(row, norm->gain, norm->centred, norm->eps, columns, row);
        kernels->add(row, scale, whole, columns, x + i * x_stride);
    }
    barrier(w);
}

static void add_gated(Worker *w, const float *gates, size_t gate_stride, const float *y, size_t y_stride, int columns,
                      int n, float *x, size_t x_stride) {
    for (int i = w->index; i < n; i += w->count) {
        const float share = (float)(1 / (1 + exp(-(double)gates[i * gate_stride])));
        w->backend->kernels->add(y + i * y_stride, share, 1, columns, x + i * x_stride);
    }
    barrier(w);
}

static void to_operand(Worker *w, const float *x, size_t stride, const int32_t *index, int n, Operand *out) {
    const Share share = share_of(w, out, n);
    for (int i = share.first; i < share.last; i++)
        w->backend->kernels->store_operand(x + (index ? index[i] : i) * stride, share.out, i, 0, 2 * out->n_pairs);
    end_share(w, out, share);
}

/* What belongs to a product beside the weight, for rows [first, last) of the matrix, of which out[0] is the first. */
static void add_bias(const Matrix *m, int first, int last, int n, float *out, size_t stride) {
    last = last < m->weight->rows ? last : m->weight->rows;
    for (int i = 0; m->bias && i < n; i++)
        for (int r = first; r < last; r++) out[i * stride + (size_t)(r - first)] += m->bias[r];
}

/* A scale must come before what the product is added to: such products go by way of the scratch memory. */
void multiply_blocks(Worker *w, const Matrix *m, int first, int last, const Operand *in, int n, float *out,
                     size_t stride, bool add) {
    const Kernels *kernels = w->backend->kernels;
    if (m->scale == 1) {
        kernels->multiply(m->weight, first, last, in, n, out, stride, add);
        add_bias(m, first * BLOCK_ROWS, last * BLOCK_ROWS, n, out, stride);
        return;
    }
    for (int block = first; block < last; block++, out += BLOCK_ROWS) {
        kernels->multiply(m->weight, block, block + 1, in, n, w->scratch, BLOCK_ROWS, false);
        for (int i = 0; i < n; i++)
            for (int r = 0; r < BLOCK_ROWS && block * BLOCK_ROWS + r < m->weight->rows; r++) {
                const float scaled = m->scale * w->scratch[i * BLOCK_ROWS + r];
                out[i * stride + (size_t)r] = add ? out[i * stride + (size_t)r] + scaled : scaled;
            }
        add_bias(m, block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS, n, out, stride);
    }
}

/* Blocks [begin, end) of the list that those of all products form. */
static void multiply_some(Worker *w, const Product *products, int n_products, int begin, int end, const Operand *in,
                          int n) {
    for (int p = 0; p < n_products && end > 0; p++) {
        const int blocks = products[p].matrix->weight->n_blocks;
        const int first = begin < 0 ? 0 : begin, last = end < blocks ? end : blocks;
        if (first < last)
            multiply_blocks(w, products[p].matrix, first, last, in, n, products[p].out + first * BLOCK_ROWS,
                            products[p].stride, products[p].add);
        begin -= blocks;
        end -= blocks;
    }
}

static void multiply(Worker *w, const Product *products, int n_products, const Operand *in, int n) {
    int total = 0;
    size_t bytes = 0;
    for (int p = 0; p < n_products; p++) {
        total += products[p].matrix->weight->n_blocks;
        bytes += weight_bytes(products[p].matrix->weight);
    }
    const Operand *mine = operand_of(w, in, n);
    for (Sharing s = share_units(w, total, bytes / (size_t)total); sharing_take(&s);)
        multiply_some(w, products, n_products, s.first, s.end, mine, n);
    barrier(w);
}

static void rope_angles(Worker *w, const Rope *rope, const Row *rows, int n, float *angles) {
    for (int i = w->index; i < n; i += w->count) {
        const bool is_long = rope->long_frequencies && rows[i].cache->n_ctx > rope->long_beyond;
        const double *frequencies = is_long ? rope->long_frequencies : rope->frequencies;
        for (int d = 0; d < rope->n_rotated / 2; d++) {
            const double angle = rows[i].position * frequencies[d];
            angles[i * rope->n_rotated + 2 * d] = rope->magnitude * (float)cos(angle);
            angles[i * rope->n_rotated + 2 * d + 1] = rope->magnitude * (float)sin(angle);
        }
    }
    barrier(w);
}

/* Where a head begins in a chunk's keys, or values. */
static size_t head_at(const Heads *heads, int head) {
    return (heads->first_byte + (size_t)head * cache_head_bytes(heads->kv_type, heads->head_size)) * POSITION_CHUNK;
}

static const CacheChunk *chunk_of(const Cache *cache, const Heads *heads, int chunk) {
    return cache_chunk(cache, cache_region(heads), chunk);
}

/* Into the chunk, at a position of it: kernels.h draws where. */
static void store_key(const Kernels *kernels, const Heads *heads, uint8_t *chunk, int position, const float *key) {
    const int size = heads->head_size, block = position / POSITION_BLOCK, lane = position % POSITION_BLOCK;
    uint16_t halves[MAX_HEAD_SIZE];
    int8_t codes[MAX_HEAD_SIZE];
    if (heads->kv_type == BEE_KV_F16) {
        uint16_t *keys = (uint16_t *)chunk + (size_t)block * POSITION_BLOCK * (size_t)size + lane;
        kernels->to_float16(key, halves, size);
        for (int d = 0; d < size; d++) keys[d * POSITION_BLOCK] = halves[d];
        return;
    }
    uint8_t *keys = chunk + (size_t)block * key_block_bytes(size);
    kernels->to_codes(key, codes, halves, size);
    for (int d = 0; d < size; d++) {
        if (d % CACHE_BLOCK == 0) ((uint16_t *)(keys + key_scales_at(d)))[lane] = halves[d / CACHE_BLOCK];
        ((int8_t *)keys)[key_code_at(d, lane)] = codes[d];
    }
}

static void store_value(const Kernels *kernels, const Heads *heads, uint8_t *chunk, int position, const float *value) {
    const int size = heads->head_size;
    int8_t codes[MAX_HEAD_SIZE];
    uint16_t scales[MAX_HEAD_SIZE / CACHE_BLOCK];
    if (heads->kv_type == BEE_KV_F16) {
        kernels->to_float16(value, (uint16_t *)chunk + (size_t)position * (size_t)size, size);
        return;
    }
    kernels->to_codes(value, codes, scales, size);
    for (int d = 0; d < size; d++) {
        if (d % CACHE_BLOCK == 0) ((uint16_t *)(chunk + value_scales_at(d)))[position] = scales[d / CACHE_BLOCK];
        ((int8_t *)chunk)[value_code_at(size, position, d)] = codes[d];
    }
}

/* A query or key head in place. */
static void turn_head(const Kernels *kernels, const Heads *heads, const float *gain, const float *turn, float scale,
                      float *x) {
    const int size = heads->head_size, n_rotated = heads->rope ? heads->rope->n_rotated : 0;
    const bool neox = heads->rope && heads->rope->neox;
    if (gain && !heads->norm_rotated) kernels->norm(x, gain, false, heads->eps, size, x);
    kernels->rotate(x, size, turn, n_rotated, neox, gain && heads->norm_rotated ? 1 : scale);
    if (!gain || !heads->norm_rotated) return;
    kernels->norm(x, gain, false, heads->eps, size, x);
    kernels->rotate(x, size, turn, 0, neox, scale);
}

static void store_head(Worker *w, const Heads *heads, const Row *row, int head, const float *k_gain, const float *turn,
                       float *key, float *value) {
    const Kernels *kernels = w->backend->kernels;
    const CacheChunk *memory = chunk_of(row->cache, heads, row->position / POSITION_CHUNK);
    const int size = heads->head_size, place = row->position % POSITION_CHUNK;
    const float *v = value ? value : key;
    if (heads->norm_values) {
        kernels->norm(v, NULL, false, heads->eps, size, w->scratch);
        v = w->scratch;
    }
    store_value(kernels, heads, memory->values + head_at(heads, head), place, v);
    turn_head(kernels, heads, k_gain, turn, 1, key);
    store_key(kernels, heads, memory->keys + head_at(heads, head), place, key);
}

static float query_scale(const Heads *heads, int position) {
    if (!heads->growth) return heads->scale;
    return heads->scale * (float)(1 + heads->growth * log(1 + floor((double)position / heads->period)));
}

static void rotate_and_store(Worker *w, const Heads *heads, const Row *rows, int n, const float *angles,
                             const float *q_gain, const float *k_gain, float *q, size_t q_stride, float *k, float *v,
                             size_t kv_stride) {
    const int size = heads->head_size, group = q ? heads->n_head / heads->n_head_kv : 0;
    const int units = n * heads->n_head_kv * (1 + group), n_rotated = heads->rope ? heads->rope->n_rotated : 0;
    /* Each key head, then the query heads that share it; the rows of a head side by side, because their keys share
     * lines of the cache, which are then mostly one worker's. */
    for (int unit = share_begin(w, units, w->index); unit < share_begin(w, units, w->index + 1); unit++) {
        const int row = unit % n, head = unit / n / (1 + group), member = unit / n % (1 + group);
        const float *turn = angles + (size_t)row * n_rotated;
        const size_t at = row * kv_stride + (size_t)head * size;
        if (member)
            turn_head(w->backend->kernels, heads, q_gain, turn, query_scale(heads, rows[row].position),
                      q + row * q_stride + (size_t)(head * group + member - 1) * size);
        else if (k)
            store_head(w, heads, &rows[row], head, k_gain, turn, k + at, v ? v + at : NULL);
    }
    barrier(w);
}

static float *partial_at(const Worker *w, const Heads *heads, int buffer, int row, int head, int chunk, int n_chunks) {
    return w->backend->partials[buffer] +
           (((size_t)row * heads->n_head + head) * n_chunks + chunk) * partial_size(heads);
}

Run run_at(const Row *rows, int i, int n) {
    Run run = {rows + i, i, 0};
    while (i + run.n < n && run.rows[run.n].cache == run.rows->cache &&
           (!run.n || run.rows[run.n].n_visible >= run.rows[run.n - 1].n_visible))
        run.n++;
    return run;
}

static int visible_to(Run run) { return run.rows[run.n - 1].n_visible; }

static int first_chunk(const Heads *heads, const Row *row) { return first_visible(heads, row) / POSITION_CHUNK; }

/* What a pass's attention is about: some of its rows, their queries, and where partial results go. */
typedef struct Attending {
    const Heads *heads;
    const Row *rows;
    int n;
    const float *q;
    size_t q_stride;
    int buffer, n_chunks;
} Attending;

/* Whether all rows of the run see all of a chunk that its cache holds together with others. */
static bool sees_shared(const Attending *a, Run run, int chunk) {
    return chunk_of(run.rows->cache, a->heads, chunk)->n_holders > 1 &&
           run.rows->n_visible >= (chunk + 1) * POSITION_CHUNK &&
           first_visible(a->heads, &run.rows[run.n - 1]) <= chunk * POSITION_CHUNK;
}

/* The run that reads a chunk for this one and itself: of those that share it, the first. */
static Run reader_of(const Attending *a, Run run, int chunk) {
    if (!sees_shared(a, run, chunk)) return run;
    const CacheChunk *shared = chunk_of(run.rows->cache, a->heads, chunk);
    for (Run other = run_at(a->rows, 0, a->n); other.first < run.first;
         other = run_at(a->rows, other.first + other.n, a->n))
        if (chunk < cache_chunks(visible_to(other)) && chunk_of(other.rows->cache, a->heads, chunk) == shared &&
            sees_shared(a, other, chunk))
            return other;
    return run;
}

/* A chunk that is read once, by the rows of a run or of several that share it. */
typedef struct Reading {
    Run run;
    int chunk, n_rows;
    int32_t rows[ATTENTION_ROWS];
} Reading;

static void gather_rows(const Attending *a, Reading *r) {
    r->n_rows = 0;
    for (Run run = r->run; run.n; run = run_at(a->rows, run.first + run.n, a->n)) {
        const bool reads = run.first == r->run.first || (r->chunk < cache_chunks(visible_to(run)) &&
                                                         reader_of(a, run, r->chunk).first == r->run.first);
        for (int i = 0; reads && i < run.n; i++) r->rows[r->n_rows++] = run.first + i;
        if (!sees_shared(a, r->run, r->chunk)) return;
    }
}

static Reading no_reading(const Attending *a) {
    const Run run = run_at(a->rows, 0, a->n);
    return (Reading){.run = run, .chunk = first_chunk(a->heads, run.rows) - 1};
}

/* Goes on to the next chunk, in the order of the runs and as they lie in memory; false behind the last. */
static bool next_reading(const Attending *a, Reading *r) {
    do {
        r->chunk++;
        while (r->run.n && r->chunk >= cache_chunks(visible_to(r->run))) {
            r->run = run_at(a->rows, r->run.first + r->run.n, a->n);
            if (r->run.n) r->chunk = first_chunk(a->heads, r->run.rows);
        }
    } while (r->run.n && reader_of(a, r->run, r->chunk).first != r->run.first);
    if (r->run.n) gather_rows(a, r);
    return r->run.n;
}

/* The keys that a worker reads after a chunk of a head, which follows as attend_rows has it: those of the next head, or
 * the first one's in the next chunk. */
static const uint8_t *keys_after(const Reading *r, const Heads *heads, int kv_head) {
    const Cache *cache = r->run.rows->cache;
    if (kv_head + 1 < heads->n_head_kv) return chunk_of(cache, heads, r->chunk)->keys + head_at(heads, kv_head + 1);
    const int last = cache_chunks(visible_to(r->run)) - 1;
    return chunk_of(cache, heads, r->chunk < last ? r->chunk + 1 : last)->keys + head_at(heads, 0);
}

/* One chunk of one key-value head for some rows, and all query heads that share it. */
static void attend_chunk(Worker *w, const Attending *p, const Reading *r, int kv_head) {
    const Heads *heads = p->heads;
    const int size = heads->head_size, group = heads->n_head / heads->n_head_kv, begin = r->chunk * POSITION_CHUNK;
    const CacheChunk *memory = chunk_of(r->run.rows->cache, heads, r->chunk);
    const float *queries[QUERIES_TOGETHER];
    float *partials[QUERIES_TOGETHER];
    int n_visible[QUERIES_TOGETHER], n_hidden[QUERIES_TOGETHER];
    Attention a = {.type = heads->kv_type,
                   .keys = memory->keys + head_at(heads, kv_head),
                   .values = memory->values + head_at(heads, kv_head),
                   .next = keys_after(r, heads, kv_head),
                   .head_size = size,
                   .queries = queries,
                   .n_visible = n_visible,
                   .n_hidden = n_hidden,
                   .softcap = heads->softcap,
                   .partials = partials};
    for (int i = 0; i < r->n_rows * group; i++) {
        const int row = r->rows[i / group], head = kv_head * group + i % group;
        const int visible = p->rows[row].n_visible - begin, hidden = first_visible(heads, &p->rows[row]) - begin;
        if (visible > 0 && hidden < POSITION_CHUNK) {
            n_hidden[a.n_queries] = hidden > 0 ? hidden : 0;
            queries[a.n_queries] = p->q + row * p->q_stride + (size_t)head * size;
            partials[a.n_queries] = partial_at(w, heads, p->buffer, row, head, r->chunk, p->n_chunks);
            n_visible[a.n_queries++] = visible < POSITION_CHUNK ? visible : POSITION_CHUNK;
        }
        if (!a.n_queries || (a.n_queries < QUERIES_TOGETHER && i + 1 < r->n_rows * group)) continue;
        w->backend->kernels->attend(&a);
        a.n_queries = 0;
    }
}

/* From reading *at, r, to another one; -1: before the first. */
static void reach(const Attending *a, Reading *r, int *at, int wanted) {
    if (*at > wanted) {
        *r = no_reading(a);
        *at = -1;
    }
    for (; *at < wanted; ++*at) next_reading(a, r);
}

/* The heads of all readings form one list. */
static void attend_rows(Worker *w, const Attending *a) {
    const Heads *heads = a->heads;
    int n_readings = 0, at = -1;
    for (Reading r = no_reading(a); next_reading(a, &r);) n_readings++;
    const size_t bytes = 2 * POSITION_CHUNK * cache_head_bytes(heads->kv_type, heads->head_size);
    Reading r = no_reading(a);
    for (Sharing s = share_units(w, n_readings * heads->n_head_kv, bytes); sharing_take(&s);)
        for (int unit = s.first; unit < s.end; unit++) {
            reach(a, &r, &at, unit / heads->n_head_kv);
            attend_chunk(w, a, &r, unit % heads->n_head_kv);
        }
}

/* Query heads are put together until they fill whole groups of the operand. */
static void fold_rows(Worker *w, const Heads *heads, const Row *rows, int first, int n, int buffer, int n_chunks,
                      Operand *out) {
    const int size = heads->head_size;
    int together = 1;
    while (together < heads->n_head && together * size % GROUP) together++;
    const int units = (heads->n_head + together - 1) / together;
    for (int unit = share_begin(w, n * units, w->index); unit < share_begin(w, n * units, w->index + 1); unit++) {
        const int row = unit / units, head = unit % units * together;
        const int heads_here = head + together < heads->n_head ? together : heads->n_head - head;
        const int begin = head * size / GROUP,
                  end = head + together < heads->n_head ? begin + together * size / GROUP : 2 * out->n_pairs;
        const int first_read = first_chunk(heads, &rows[row]);
        for (int h = 0; h < heads_here; h++)
            w->backend->kernels->fold(partial_at(w, heads, buffer, row, head + h, first_read, n_chunks),
                                      partial_size(heads), cache_chunks(rows[row].n_visible) - first_read, size,
                                      heads->sinks ? heads->sinks + head + h : NULL, w->scratch + h * size);
        if (heads->gates)
            w->backend->kernels->gate(ACTIVATION_LOGISTIC,
                                      heads->gates + (size_t)(first + row) * heads->gate_stride + (size_t)head * size,
                                      w->scratch, heads_here * size, w->scratch);
        memset(w->scratch + heads_here * size, 0,
               ((size_t)(end - begin) * GROUP - (size_t)heads_here * size) * sizeof(float));
        w->backend->kernels->store_operand(w->scratch, out, first + row, begin, end);
    }
}

/* A few rows at a time: the chunks of all of them, a barrier, and their results put together while the next rows'
 * chunks are under way. */
static void attend(Worker *w, const Heads *heads, const Row *rows, int n, const float *q, size_t q_stride,
                   Operand *out) {
    for (int first = 0, buffer = 0; first < n; first += ATTENTION_ROWS, buffer = !buffer) {
        const int together = n - first < ATTENTION_ROWS ? n - first : ATTENTION_ROWS;
        int most = 0;
        for (int i = first; i < first + together; i++) most = rows[i].n_visible > most ? rows[i].n_visible : most;
        const Attending attending = {heads,    rows + first, together,          q + first * q_stride,
                                     q_stride, buffer,       cache_chunks(most)};
        attend_rows(w, &attending);
        barrier(w);
        fold_rows(w, heads, rows + first, first, together, buffer, cache_chunks(most), out);
    }
    barrier(w);
}

/* Rows [32 unit, 32 unit + 32) of the gate and up matrices, of which their product alone is handed on. */
static void gate_group(Worker *w, Activation activation, const Matrix *gate, const Matrix *up, int unit,
                       const Operand *in, int n, Operand *out) {
    enum { BLOCKS = GROUP / BLOCK_ROWS };
    const Kernels *kernels = w->backend->kernels;
    const Matrix *const matrices[] = {gate, up};
    float *values[] = {w->scratch + BEE_MAX_PASS_ROWS * GROUP, w->scratch + 2 * BEE_MAX_PASS_ROWS * GROUP};
    const int n_blocks = up->weight->n_blocks;
    const int first = BLOCKS * unit, last = first + BLOCKS < n_blocks ? first + BLOCKS : n_blocks;
    if (last < first + BLOCKS) memset(values[0], 0, 2 * BEE_MAX_PASS_ROWS * GROUP * sizeof(float));
    for (int m = gate ? 0 : 1; m < 2 && first < last; m++)
        multiply_blocks(w, matrices[m], first, last, in, n, values[m], GROUP, false);
    for (int i = 0; i < n; i++) {
        float *g = values[0] + i * GROUP;
        kernels->gate(activation, gate ? g : NULL, values[1] + i * GROUP, GROUP, g);
        kernels->store_operand(g, out, i, unit, unit + 1);
    }
}

static void gate(Worker *w, Activation activation, const Matrix *gate, const Matrix *up, const Operand *in, int n,
                 Operand *out) {
    const int units = 2 * out->n_pairs;
    const size_t bytes = ((gate ? weight_bytes(gate->weight) : 0) + weight_bytes(up->weight)) / (size_t)units;
    const Operand *mine = operand_of(w, in, n);
    for (Sharing s = share_units(w, units, bytes); sharing_take(&s);)
        for (int unit = s.first; unit < s.end; unit++) gate_group(w, activation, gate, up, unit, mine, n, out);
    barrier(w);
}

static void gate_values(Worker *w, Activation activation, const float *gate, size_t gate_stride, const float *up,
                        size_t up_stride, int columns, int n, Operand *out) {
    const Share share = share_of(w, out, n);
    for (int i = share.first; i < share.last; i++) {
        w->backend->kernels->gate(activation, gate + i * gate_stride, up + i * up_stride, columns, w->scratch);
        memset(w->scratch + columns, 0, (padded(columns) - (size_t)columns) * sizeof(float));
        w->backend->kernels->store_operand(w->scratch, share.out, i, 0, 2 * out->n_pairs);
    }
    end_share(w, out, share);
}

/* Each worker its part of every row, in whole vectors. */
static void cap(Worker *w, float scale, float softcap, float *logits, size_t stride, int columns, int n) {
    const int blocks = (columns + BLOCK_ROWS - 1) / BLOCK_ROWS, first = BLOCK_ROWS * share_begin(w, blocks, w->index);
    const int end = BLOCK_ROWS * share_begin(w, blocks, w->index + 1), last = end < columns ? end : columns;
    for (int i = 0; i < n && first < last; i++)
        w->backend->kernels->cap(scale, softcap, last - first, logits + i * stride + first);
    barrier(w);
}

/* No barrier: nothing of this pass reads the copy. */
static void copy(Worker *w, const float *from, size_t from_stride, float *to, size_t to_stride, int columns, int n) {
    for (int i = w->index; i < n; i += w->count)
        memcpy(to + i * to_stride, from + i * from_stride, (size_t)columns * sizeof(float));
}

/* Entries [first, last) of a row whose tokens the mask lacks become minus infinity. `first` is a multiple of 16. */
static void forbid(float *logits, const int32_t *ids, const uint32_t *mask, int first, int last) {
    for (int i = first; ids && i < last; i++)
        if (!(mask[ids[i] / 32] >> ids[i] % 32 & 1)) logits[i] = -INFINITY;
    if (ids) return;
    for (int i = first; i < last; i += 16) {
        const uint32_t allowed = mask[i / 32] >> i % 32 & 0xffff;
        const int n = last - i < 16 ? last - i : 16;
        for (int j = 0; j < n && !allowed; j++) logits[i + j] = -INFINITY; /* most words of most masks are empty */
        for (int j = 0; j < n && allowed && allowed != 0xffff; j++)
            if (!(allowed >> j & 1)) logits[i + j] = -INFINITY;
    }
}

/* A worker's part of a row, before a token is chosen from it. */
static void prepare(float *logits, const int32_t *ids, const Choice *choice, int first, int last) {
    if (choice->report) memcpy(choice->unchanged + first, logits + first, (size_t)(last - first) * sizeof *logits);
    for (int e = 0; e < choice->n_edits; e++) {
        const LogitEdit *edit = &choice->edits[e];
        if (edit->token < first || edit->token >= last) continue;
        const float logit = logits[edit->token] + edit->bias;
        logits[edit->token] = (logit > 0 ? logit / edit->repetition : logit * edit->repetition) - edit->penalty;
    }
    if (choice->mask) forbid(logits, ids, choice->mask, first, last);
}

static double log_sum_exp(const Kernels *kernels, const float *x, int n) {
    const float largest = kernels->largest(x, n);
    return largest + log(kernels->sum_exp(x, n, largest));
}

/* The most likely tokens, most likely first; of equal ones the lower. */
static void report_row(const Choice *choice, double log_sum, int n_vocab) {
    const float *logits = choice->unchanged;
    bee_logprobs *out = choice->report;
    const int wanted = choice->n_top < n_vocab ? choice->n_top : n_vocab;
    out->n_top = 0;
    out->logprob = choice->token < 0 ? NAN : (float)(logits[choice->token] - log_sum);
    for (int32_t token = 0; token < n_vocab; token++) {
        int at = out->n_top;
        if (at == wanted && (!at || logits[token] <= logits[out->top_tokens[at - 1]])) continue;
        if (at < wanted)
            out->n_top++;
        else
            at--;
        for (; at > 0 && logits[token] > logits[out->top_tokens[at - 1]]; at--)
            out->top_tokens[at] = out->top_tokens[at - 1];
        out->top_tokens[at] = token;
    }
    for (int i = 0; i < out->n_top; i++) out->top_logprobs[i] = (float)(logits[out->top_tokens[i]] - log_sum);
}

/* Each worker looks through its part of every row, which it computed itself, and then puts together the parts of some
 * rows. */
static void choose(Worker *w, float *logits, size_t stride, int n_vocab, const int32_t *ids, Choice *choices, int n) {
    Backend *backend = w->backend;
    const int blocks = (n_vocab + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int first = BLOCK_ROWS * share_begin(w, blocks, w->index);
    const int end = BLOCK_ROWS * share_begin(w, blocks, w->index + 1), last = end < n_vocab ? end : n_vocab;
    Draw draw = {.ids = ids, .n = n_vocab, .reductions = &backend->reductions};
    for (int i = 0; i < n; i++) {
        float *row = logits + choices[i].logits_row * stride;
        if (first < last) prepare(row, ids, &choices[i], first, last);
        draw.logits = row;
        draw.sampling = choices[i].sampling;
        draw.position = choices[i].position;
        w->parts[i] = first < last ? sample_part(&draw, first, last) : (Best){-INFINITY, -1, 0};
    }
    barrier(w);
    for (int i = w->index; i < n; i += w->count) {
        Best parts[BEE_MAX_THREADS];
        for (int other = 0; other < w->count; other++) parts[other] = backend->workers[other].parts[i];
        draw.logits = logits + choices[i].logits_row * stride;
        draw.sampling = choices[i].sampling;
        draw.position = choices[i].position;
        choices[i].token = sample_finish(&draw, parts, w->count, (Candidate *)w->scratch);
        if (choices[i].report)
            report_row(&choices[i], log_sum_exp(backend->kernels, choices[i].unchanged, n_vocab), n_vocab);
    }
    barrier(w);
}

static bool measure_rates(Backend *backend, uint64_t reread_bytes, Rates *out) {
    return rates_measure(backend->pool, backend->kernels, reread_bytes, out);
}

static const Ops cpu_ops = {
    .weight_new = weight_new,
    .weight_free = weight_free,
    .weight_bytes = weight_bytes,
    .operand_format = operand_format,
    .operand_new = operand_new,
    .operand_free = operand_free,
    .buffer_new = buffer_new,
    .buffer_free = buffer_free,
    .buffer_write = buffer_copy,
    .buffer_read = buffer_copy,
    .buffer_move = buffer_copy,
    .table_new = table_new,
    .table_of = table_of_matrix,
    .table_free = table_free,
    .cache_new = cache_new,
    .cache_free = cache_free,
    .cache_take = cache_take,
    .cache_own = cache_own,
    .run = run,
    .worker_index = worker_index,
    .embed = embed,
    .norm = norm,
    .norm_in_place = norm_in_place,
    .add = add,
    .add_gated = add_gated,
    .to_operand = to_operand,
    .multiply = multiply,
    .rope_angles = rope_angles,
    .rotate_and_store = rotate_and_store,
    .attend = attend,
    .gate = gate,
    .gate_values = gate_values,
    .cap = cap,
    .route = route,
    .experts = experts,
    .recur = recur,
    .convolve = convolve,
    .copy = copy,
    .choose = choose,
    .measure_rates = measure_rates,
    .packed = &packed_ops,
};

/* ---- the backend itself ------------------------------------------------------------------------- */

static void backend_free(Backend *backend);

static Backend *backend_new(int n_threads, const char *instruction_set, bee_error *error) {
    if (n_threads < 0 || n_threads > BEE_MAX_THREADS) {
        bee_fail(error, BEE_ERROR_ARGUMENT, "n_threads is %d; it must lie between 0 (automatic) and %d", n_threads,
                 BEE_MAX_THREADS);
        return NULL;
    }
    const Kernels *kernels = choose_kernels(instruction_set, error);
    if (!kernels) return NULL;
    if (!n_threads) n_threads = threads_available() < BEE_MAX_THREADS ? threads_available() : BEE_MAX_THREADS;
    Backend *backend = zeroed(sizeof *backend); /* its workers' shares are lines of the cache */
    if (backend) backend->pool = thread_pool_new(n_threads);
    if (!backend || !backend->pool) {
        free(backend);
        bee_fail(error, BEE_ERROR_MEMORY, "out of memory while starting threads");
        return NULL;
    }
    backend->kernels = kernels;
    backend->reductions = (Reductions){kernels->largest, kernels->sum_exp, kernels->may_win};
    const int count = thread_pool_size(backend->pool);
    for (int i = 0; i < count; i++) backend->workers[i] = (Worker){.backend = backend, .index = i, .count = count};
    if (reserve_scratch(backend, 1 << 16)) return backend;
    backend_free(backend);
    bee_fail(error, BEE_ERROR_MEMORY, "out of memory while starting threads");
    return NULL;
}

static void backend_free(Backend *backend) {
    if (!backend) return;
    for (int i = 0; i < thread_pool_size(backend->pool); i++) free(backend->workers[i].scratch);
    for (int i = 0; i < 2; i++) pages_free(backend->partials[i], backend->partial_floats * sizeof(float));
    regions_free(backend->regions);
    thread_pool_free(backend->pool);
    free(backend);
}

static const char *instruction_set(const Backend *backend) { return backend->kernels->name; }

static int n_threads(const Backend *backend) { return thread_pool_size(backend->pool); }

static const char *note(const Backend *backend) {
    (void)backend;
    return "";
}

static bee_status describe(bee_device_info *out, bee_error *error) {
    (void)error;
    *out = (bee_device_info){.name = "CPU"};
    return BEE_OK;
}

static const Ops *operations(bee_error *error) {
    (void)error;
    return &cpu_ops;
}

static uint64_t buffer_bytes(uint64_t bytes) { return bytes; }

static uint64_t operand_bytes(int columns) {
    return BEE_MAX_PASS_ROWS *
           (((uint64_t)columns + PAIR - 1) / PAIR * sizeof(OperandPair) + (uint64_t)columns * sizeof(float));
}

/* In the form of the best kernels, which may not have been chosen yet. */
static uint64_t matrix_bytes(TensorType type, int rows, int columns) {
    return packed_size(type, rows, columns, choose_kernels(NULL, NULL)->planar_grids);
}

static uint64_t experts_bytes(TensorType type, int rows, int columns, int n) {
    return (uint64_t)n * matrix_bytes(type, rows, columns);
}

static uint64_t attention_bytes(const CacheShape *shape, int n_ctx) {
    return 2 * sizeof(float) * partial_floats(shape, n_ctx);
}

/* Scratch of the threads, whose number is not known yet. */
static uint64_t shared_bytes(int n_head_rows, int n_ff, int n_layers) {
    (void)n_ff;
    (void)n_layers;
    return (uint64_t)n_head_rows * sizeof(Candidate);
}

static uint64_t bytes_taken(const Backend *backend) {
    (void)backend;
    return 0;
}

const Device bee_cpu_device = {
    .kind = BEE_DEVICE_CPU,
    .reads_tensors = true,
    .rows_of_matrices = true,
    .describe = describe,
    .ops = operations,
    .backend_new = backend_new,
    .backend_free = backend_free,
    .instruction_set = instruction_set,
    .n_threads = n_threads,
    .note = note,
    .matrix_bytes = matrix_bytes,
    .experts_bytes = experts_bytes,
    .buffer_bytes = buffer_bytes,
    .operand_bytes = operand_bytes,
    .attention_bytes = attention_bytes,
    .shared_bytes = shared_bytes,
    .bytes_taken = bytes_taken,
};
