/* The CPU backend: each operation is split over the threads of the pool and ends in a barrier. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../src/error.h"
#include "../src/ops.h"
#include "../src/sample.h"
#include "kernels.h"
#include "pack.h"
#include "threads.h"

struct Worker {
    Backend *backend;
    int index, count;
    float *scratch; /* attention scores, and rows on their way into operands */
    size_t scratch_floats;
};

struct Backend {
    const Kernels *kernels;
    ThreadPool *pool;
    Reductions reductions;
    Worker workers[BEE_MAX_THREADS];
};

/* ---- instruction sets --------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* Compilers before GCC 11 and Clang 18 do not know the name in __builtin_cpu_supports. */
static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

/* Whether this processor and its system can run the kernels of that name. */
static bool can_run(const char *name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#endif
    return !strcmp(name, "portable");
}

/* Best first. */
static const Kernels *const compiled_kernels[] = {
#if defined(BEE_HAVE_AVX512)
    &bee_kernels_avx512,
#endif
#if defined(BEE_HAVE_AVX2)
    &bee_kernels_avx2,
#endif
    &bee_kernels_portable};

enum { N_COMPILED = sizeof compiled_kernels / sizeof *compiled_kernels };

static const char *available_names[N_COMPILED + 1];

static void find_available(void) {
    int n = 0;
    for (int i = 0; i < N_COMPILED; i++)
        if (can_run(compiled_kernels[i]->name)) available_names[n++] = compiled_kernels[i]->name;
}

const char *const *cpu_instruction_sets(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_available);
    return available_names;
}

static const Kernels *find_kernels(const char *name) {
    for (int i = 0; i < N_COMPILED; i++)
        if (!strcmp(compiled_kernels[i]->name, name)) return compiled_kernels[i];
    return NULL;
}

static const Kernels *choose_kernels(const char *wanted, bee_error *error) {
    const char *const *available = cpu_instruction_sets();
    if (!wanted) return find_kernels(available[0]);
    char list[64] = "";
    for (int i = 0; available[i]; i++) {
        if (!strcmp(available[i], wanted)) return find_kernels(wanted);
        strcat(strcat(list, i ? ", " : ""), available[i]);
    }
    bee_fail(error, BEE_ERROR_ARGUMENT, "instruction set '%.32s' is not available; this machine has: %s", wanted, list);
    return NULL;
}

/* ---- memory ------------------------------------------------------------------------------------- */

/* Huge pages where the system gives them: a pass reads every weight once, and the page walks would show. */
static void *pages_new(size_t bytes) {
    void *memory = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

static void pages_free(void *memory, size_t bytes) {
    if (memory) munmap(memory, bytes ? bytes : 1);
}

typedef struct Filling {
    Weight *weight;
    const Tensor *tensor;
    const int32_t *row_ids;
} Filling;

static int share_begin(const Worker *worker, int n, int index) { return (int)((int64_t)n * index / worker->count); }

static void fill_share(Worker *worker, void *argument) {
    Filling *filling = argument;
    const int n = filling->weight->n_blocks;
    weight_fill(filling->weight, filling->tensor, filling->row_ids, share_begin(worker, n, worker->index),
                share_begin(worker, n, worker->index + 1));
}

static void run(Backend *backend, void (*body)(Worker *, void *), void *argument);

static Weight *weight_new(Backend *backend, const Tensor *tensor, const int32_t *row_ids, int n_rows) {
    Weight *weight = malloc(sizeof *weight);
    if (!weight) return NULL;
    weight_layout(weight, tensor, n_rows);
    weight->data = pages_new(weight->block_bytes * (size_t)weight->n_blocks);
    if (!weight->data) {
        free(weight);
        return NULL;
    }
    Filling filling = {weight, tensor, row_ids};
    run(backend, fill_share, &filling);
    return weight;
}

static void weight_free(Backend *backend, Weight *weight) {
    (void)backend;
    if (!weight) return;
    pages_free(weight->data, weight->block_bytes * (size_t)weight->n_blocks);
    free(weight);
}

static int operand_format(const Weight *weight) {
    return form_layouts[weight->form].code_bits ? OPERAND_CODES : OPERAND_VALUES;
}

static void *zeroed(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (memory) memset(memory, 0, (bytes + 63) / 64 * 64 + 64);
    return memory;
}

static void operand_free(Backend *backend, Operand *operand) {
    (void)backend;
    if (!operand) return;
    free(operand->codes);
    free(operand->scale);
    free(operand->sum);
    free(operand->total);
    free(operand->half);
    free(operand->values);
    free(operand);
}

static Operand *operand_new(Backend *backend, int columns, int max_rows, int formats) {
    Operand *o = calloc(1, sizeof *o);
    if (!o) return NULL;
    o->columns = columns;
    o->n_groups = (columns + PAIR - 1) / PAIR * 2;
    o->max_tokens = (max_rows + TILE - 1) / TILE * TILE;
    o->keep_codes = formats & OPERAND_CODES;
    o->keep_values = formats & OPERAND_VALUES;
    const size_t groups = (size_t)o->max_tokens * o->n_groups;
    bool ok = true;
    if (o->keep_codes) {
        o->codes = zeroed(groups * GROUP);
        o->scale = zeroed(groups * sizeof(float));
        o->sum = zeroed(groups * sizeof(float));
        o->total = zeroed(groups * sizeof(int32_t));
        o->half = zeroed(2 * groups * sizeof(int32_t));
        ok = o->codes && o->scale && o->sum && o->total && o->half;
    }
    if (o->keep_values) ok = (o->values = zeroed((size_t)o->max_tokens * columns * sizeof(float))) && ok;
    if (ok) return o;
    operand_free(backend, o);
    return NULL;
}

/* A buffer's size stands in the 64 bytes before it. Large ones are pages of their own: what a request never reaches
 * stays untouched, and closing an engine gives them back to the system. */
enum { BUFFER_HEAD = 64, LARGE_BUFFER = 1 << 20 };

static float *buffer_new(Backend *backend, size_t count) {
    (void)backend;
    const size_t bytes = BUFFER_HEAD + count * sizeof(float) + 64;
    char *memory = bytes < LARGE_BUFFER ? zeroed(bytes) : pages_new(bytes);
    if (!memory) return NULL;
    memcpy(memory, &bytes, sizeof bytes);
    return (float *)(memory + BUFFER_HEAD);
}

static void buffer_free(Backend *backend, float *buffer) {
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

static bool reserve_scratch(Backend *backend, size_t floats) {
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

static size_t cache_layer_size(const Cache *cache) {
    return (size_t)cache->n_head_kv * cache->n_ctx * cache->head_size;
}

static void cache_free(Backend *backend, Cache *cache) {
    (void)backend;
    if (!cache) return;
    const size_t bytes = cache_layer_size(cache) * cache->n_layer * sizeof(uint16_t);
    pages_free(cache->keys, bytes);
    pages_free(cache->values, bytes);
    free(cache);
}

static Cache *cache_new(Backend *backend, const Heads *heads, int n_layer, int n_ctx) {
    Cache *cache = calloc(1, sizeof *cache);
    if (!cache) return NULL;
    *cache = (Cache){.n_ctx = (n_ctx + POSITION_BLOCK - 1) / POSITION_BLOCK * POSITION_BLOCK,
                     .n_layer = n_layer,
                     .n_head_kv = heads->n_head_kv,
                     .head_size = heads->head_size};
    const size_t bytes = cache_layer_size(cache) * n_layer * sizeof(uint16_t);
    cache->keys = pages_new(bytes);
    cache->values = pages_new(bytes);
    const size_t scores = (size_t)(heads->n_head / heads->n_head_kv) * cache->n_ctx;
    if (cache->keys && cache->values && reserve_scratch(backend, scores)) return cache;
    cache_free(backend, cache);
    return NULL;
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

static void run(Backend *backend, void (*body)(Worker *, void *), void *argument) {
    Job job = {backend, body, argument};
    thread_pool_run(backend->pool, run_worker, &job);
}

static int worker_index(const Worker *worker) { return worker->index; }

static void barrier(const Worker *worker) { thread_pool_barrier(worker->backend->pool); }

static void embed(Worker *w, const Tensor *table, const Row *rows, int n, float *x, size_t stride) {
    for (int i = w->index; i < n; i += w->count) {
        memset(x + i * stride, 0, stride * sizeof(float));
        dequantize_row(table, rows[i].token, x + i * stride);
    }
    barrier(w);
}

static void rms_norm(Worker *w, const float *x, size_t stride, const int32_t *index, const float *gain, float eps,
                     int columns, int n, Operand *out) {
    memset(w->scratch + columns, 0, (padded(columns) - (size_t)columns) * sizeof(float));
    for (int i = w->index; i < n; i += w->count) {
        w->backend->kernels->rms_norm(x + (index ? index[i] : i) * stride, gain, eps, columns, w->scratch);
        w->backend->kernels->store_operand(w->scratch, out, i);
    }
    barrier(w);
}

static void to_operand(Worker *w, const float *x, size_t stride, const int32_t *index, int n, Operand *out) {
    for (int i = w->index; i < n; i += w->count)
        w->backend->kernels->store_operand(x + (index ? index[i] : i) * stride, out, i);
    barrier(w);
}

/* The blocks of all products form one list, of which each worker takes one contiguous part: its weights are one
 * stream through memory. */
static void multiply(Worker *w, const Product *products, int n_products, const Operand *in, int n) {
    int total = 0;
    for (int p = 0; p < n_products; p++) total += products[p].weight->n_blocks;
    int begin = share_begin(w, total, w->index), end = share_begin(w, total, w->index + 1);
    for (int p = 0; p < n_products; p++) {
        const Product *product = &products[p];
        const int blocks = product->weight->n_blocks;
        const int first = begin < 0 ? 0 : begin, last = end < blocks ? end : blocks;
        if (first < last)
            w->backend->kernels->multiply(product->weight, first, last, in, n, product->out, product->stride,
                                          product->add);
        begin -= blocks;
        end -= blocks;
    }
    barrier(w);
}

static void rope_angles(Worker *w, const Heads *heads, const Row *rows, int n, float *angles) {
    for (int i = w->index; i < n; i += w->count)
        for (int d = 0; d < heads->n_rotated / 2; d++) {
            const double angle = rows[i].position * heads->frequencies[d];
            angles[i * heads->n_rotated + 2 * d] = (float)cos(angle);
            angles[i * heads->n_rotated + 2 * d + 1] = (float)sin(angle);
        }
    barrier(w);
}

static void rotate(const Heads *heads, const float *angles, float *x) {
    const int half = heads->n_rotated / 2;
    for (int d = 0; d < half; d++) {
        float *a = heads->neox ? x + d : x + 2 * d, *b = heads->neox ? a + half : a + 1;
        const float c = angles[2 * d], s = angles[2 * d + 1], first = *a, second = *b;
        *a = first * c - second * s;
        *b = first * s + second * c;
    }
}

static void store_key(Cache *cache, int layer, int head, int position, const uint16_t *key) {
    uint16_t *keys = cache->keys + layer * cache_layer_size(cache) + (size_t)head * cache->n_ctx * cache->head_size;
    keys += (size_t)(position / POSITION_BLOCK) * POSITION_BLOCK * cache->head_size + position % POSITION_BLOCK;
    for (int d = 0; d < cache->head_size; d++) keys[d * POSITION_BLOCK] = key[d];
}

static uint16_t *value_at(const Cache *cache, int layer, int head, int position) {
    return cache->values + layer * cache_layer_size(cache) +
           ((size_t)head * cache->n_ctx + position) * cache->head_size;
}

static void rotate_and_store(Worker *w, const Heads *heads, int layer, const Row *rows, int n, const float *angles,
                             const float *q_gain, const float *k_gain, float *q, size_t q_stride, float *k, float *v,
                             size_t kv_stride) {
    const Kernels *kernels = w->backend->kernels;
    const int size = heads->head_size, n_query = q ? heads->n_head : 0;
    const float scale = 1.0f / sqrtf((float)size);
    uint16_t half[MAX_HEAD_SIZE];
    for (int unit = w->index; unit < n * (n_query + heads->n_head_kv); unit += w->count) {
        const int row = unit / (n_query + heads->n_head_kv), head = unit % (n_query + heads->n_head_kv) - n_query;
        const float *turn = angles + (size_t)row * heads->n_rotated;
        if (head < 0) {
            float *query = q + row * q_stride + (size_t)(head + n_query) * size;
            if (q_gain) kernels->rms_norm(query, q_gain, heads->eps, size, query);
            rotate(heads, turn, query);
            for (int d = 0; d < size; d++) query[d] *= scale;
            continue;
        }
        float *key = k + row * kv_stride + (size_t)head * size;
        if (k_gain) kernels->rms_norm(key, k_gain, heads->eps, size, key);
        rotate(heads, turn, key);
        kernels->to_float16(key, half, size);
        store_key(rows[row].cache, layer, head, rows[row].position, half);
        kernels->to_float16(v + row * kv_stride + (size_t)head * size,
                            value_at(rows[row].cache, layer, head, rows[row].position), size);
    }
    barrier(w);
}

static void attend(Worker *w, const Heads *heads, int layer, const Row *rows, int n, const float *q, size_t q_stride,
                   float *out, size_t out_stride) {
    const int size = heads->head_size, group = heads->n_head / heads->n_head_kv;
    /* Query heads that share keys are computed together, unless that leaves threads without work. */
    const int together = n * heads->n_head_kv >= 2 * w->count ? group : 1;
    const int units = heads->n_head / together;
    for (int unit = w->index; unit < n * units; unit += w->count) {
        const Row *row = &rows[unit / units];
        const int head = unit % units * together, kv_head = head / group;
        const Cache *cache = row->cache;
        w->backend->kernels->attend(&(Attention){
            .query = q + unit / units * q_stride + (size_t)head * size,
            .keys = cache->keys + layer * cache_layer_size(cache) + (size_t)kv_head * cache->n_ctx * size,
            .values = value_at(cache, layer, kv_head, 0),
            .head_size = size,
            .n_heads = together,
            .n_positions = row->n_visible,
            .scores = w->scratch,
            .out = out + unit / units * out_stride + (size_t)head * size,
        });
    }
    barrier(w);
}

static void swiglu(Worker *w, const float *gate, const float *up, size_t stride, int columns, int n, float *hidden,
                   Operand *out) {
    for (int i = w->index; i < n; i += w->count) {
        w->backend->kernels->swiglu(gate + i * stride, up + i * stride, columns, hidden + i * stride);
        w->backend->kernels->store_operand(hidden + i * stride, out, i);
    }
    barrier(w);
}

static void copy(Worker *w, const float *from, size_t from_stride, float *to, size_t to_stride, int columns, int n) {
    for (int i = w->index; i < n; i += w->count)
        memcpy(to + i * to_stride, from + i * from_stride, (size_t)columns * sizeof(float));
    barrier(w);
}

static void choose(Worker *w, const float *logits, size_t stride, int n_vocab, const int32_t *ids, Choice *choices,
                   int n) {
    for (int i = w->index; i < n; i += w->count) {
        Choice *c = &choices[i];
        c->token = sample_token(logits + c->logits_row * stride, n_vocab, ids, c->sampling, c->position,
                                &w->backend->reductions);
    }
    barrier(w);
}

const Ops bee_cpu_ops = {
    .weight_new = weight_new,
    .weight_free = weight_free,
    .operand_format = operand_format,
    .operand_new = operand_new,
    .operand_free = operand_free,
    .buffer_new = buffer_new,
    .buffer_free = buffer_free,
    .cache_new = cache_new,
    .cache_free = cache_free,
    .run = run,
    .worker_index = worker_index,
    .embed = embed,
    .rms_norm = rms_norm,
    .to_operand = to_operand,
    .multiply = multiply,
    .rope_angles = rope_angles,
    .rotate_and_store = rotate_and_store,
    .attend = attend,
    .swiglu = swiglu,
    .copy = copy,
    .choose = choose,
};

/* ---- the backend itself ------------------------------------------------------------------------- */

Backend *cpu_backend_new(int n_threads, const char *instruction_set, bee_error *error) {
    if (n_threads < 0 || n_threads > BEE_MAX_THREADS) {
        bee_fail(error, BEE_ERROR_ARGUMENT, "n_threads is %d; it must lie between 0 (automatic) and %d", n_threads,
                 BEE_MAX_THREADS);
        return NULL;
    }
    const Kernels *kernels = choose_kernels(instruction_set, error);
    if (!kernels) return NULL;
    if (!n_threads) n_threads = threads_available() < BEE_MAX_THREADS ? threads_available() : BEE_MAX_THREADS;
    Backend *backend = calloc(1, sizeof *backend);
    if (backend) backend->pool = thread_pool_new(n_threads);
    if (!backend || !backend->pool) {
        free(backend);
        bee_fail(error, BEE_ERROR_MEMORY, "out of memory while starting threads");
        return NULL;
    }
    backend->kernels = kernels;
    backend->reductions = (Reductions){kernels->largest, kernels->sum_exp};
    const int count = thread_pool_size(backend->pool);
    for (int i = 0; i < count; i++) backend->workers[i] = (Worker){.backend = backend, .index = i, .count = count};
    if (reserve_scratch(backend, 1 << 16)) return backend;
    cpu_backend_free(backend);
    bee_fail(error, BEE_ERROR_MEMORY, "out of memory while starting threads");
    return NULL;
}

void cpu_backend_free(Backend *backend) {
    if (!backend) return;
    for (int i = 0; i < thread_pool_size(backend->pool); i++) free(backend->workers[i].scratch);
    thread_pool_free(backend->pool);
    free(backend);
}

const char *cpu_backend_instruction_set(const Backend *backend) { return backend->kernels->name; }

int cpu_backend_threads(const Backend *backend) { return thread_pool_size(backend->pool); }
