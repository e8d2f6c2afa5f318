/* The CUDA backend: the operations of ops.h on one card, in one stream. A run's operations become a graph, which is
 * kept; what differs from one run to the next lies in memory that the graph's kernels read. */
#include "kernels.h"

extern "C" {
#include "../src/cuda_library.h"
#include "../src/error.h"
}

#include "work_sizes.h"

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>

enum {
    N_SLOTS = 4,     /* uploads under way */
    MOST_GRAPHS = 96 /* kept; the one that was not used for longest makes room */
};

struct Weight {
    DeviceWeight weight;
};

struct Table {
    TensorType type;
    int columns;
    size_t row_bytes, bytes;
    uint8_t *raw;
};

struct Operand {
    DeviceOperand operand;
};

/* What a run reads, uploaded as one piece. */
typedef struct InputBlock {
    DeviceRow rows[BEE_MAX_PASS_ROWS];
    int32_t index[BEE_MAX_PASS_ROWS];
    DeviceChoice choices[BEE_MAX_PASS_ROWS];
} InputBlock;

typedef struct OutputBlock {
    int32_t tokens[BEE_MAX_PASS_ROWS];
    DeviceReport reports[BEE_MAX_PASS_ROWS];
} OutputBlock;

/* Everything that a graph's launches depend on, but for addresses that never change. */
typedef struct GraphKey {
    void (*body)(Worker *, void *);
    const void *model;
    const DeviceCycle *cycle;
    int n_rows, n_index, n_choices, n_chunks;
    bool truncates, edits, reports;
} GraphKey;

typedef struct Graph {
    GraphKey key;
    cudaGraphExec_t graph; /* NULL: unused */
    uint64_t last_used;
} Graph;

/* A piece of pinned memory and the event behind its upload. */
typedef struct Slot {
    InputBlock *input;
    cudaEvent_t uploaded;
} Slot;

/* What a cycle leaves for the next one, and what the host reads of it. */
struct DeviceCycle {
    DeviceSession *session, *staged;
    CycleResult *results; /* [2], pinned */
    uint32_t n_queued, n_read;
    int position; /* that the session has reached at most */
    int n_drafts; /* of the cycle that is being queued */
};

struct Worker {
    Backend *backend;
    const RunInput *input;
    GraphKey key;
    DeviceCycle *cycle; /* NULL: a run of the host's */
    int32_t *tokens;    /* where chosen tokens go */
};

/* Memory of the device that grows with what is asked of it. */
typedef struct Scratch {
    void *memory;
    size_t bytes;
} Scratch;

struct Backend {
    cudaStream_t stream;
    bee_status failure;
    char message[512];
    uint64_t bytes_taken;
    Slot slots[N_SLOTS];
    int next_slot;
    InputBlock *input;
    OutputBlock *output, *read;
    int32_t *drafts; /* of a cycle */
    Scratch masks, edits, partials, tickets, attention, choosing, gates;
    size_t need_partials, need_tickets, need_attention, need_choosing, need_gates; /* bytes */
    Graph graphs[MOST_GRAPHS];
    uint64_t n_runs;
    uint8_t *staging[2], *raw[2]; /* of uploads: pinned, and on the device */
    cudaEvent_t staged[2];
    size_t staging_bytes;
};

/* ---- errors ------------------------------------------------------------------------------------- */

/* The first failure is kept: those that follow are its consequences. */
static bool succeeded(Backend *b, cudaError_t error, const char *what) {
    if (error == cudaSuccess) return !b->failure;
    if (b->failure) return false;
    b->failure = error == cudaErrorMemoryAllocation ? BEE_ERROR_MEMORY : BEE_ERROR_DEVICE;
    snprintf(b->message, sizeof b->message, "the device failed while it %s: %s (%s)", what, cudaGetErrorString(error),
             cudaGetErrorName(error));
    return false;
}

static bee_status status(Backend *b, bee_error *error) {
    succeeded(b, cudaGetLastError(), "ran a kernel");
    if (!b->failure) return BEE_OK;
    return bee_fail(
        error, BEE_ERROR_DEVICE,
        "%s; this engine is unusable: close it and use the CPU (device=\"cpu\"); after an error in a kernel, "
        "the card can be used again by a new process alone",
        b->message);
}

static bool wait_for_stream(Backend *b) { return succeeded(b, cudaStreamSynchronize(b->stream), "finished its work"); }

/* ---- memory ------------------------------------------------------------------------------------- */

/* NULL where there is not enough; that fails nothing but the call. */
static void *take(Backend *b, size_t bytes) {
    void *memory = NULL;
    bytes = device_bytes(bytes);
    if (b->failure || cudaMalloc(&memory, bytes) != cudaSuccess) {
        cudaGetLastError(); /* or the next question would find it again */
        return NULL;
    }
    b->bytes_taken += bytes;
    return memory;
}

static void *take_zeroed(Backend *b, size_t bytes) {
    void *memory = take(b, bytes);
    if (memory) succeeded(b, cudaMemsetAsync(memory, 0, bytes, b->stream), "cleared memory");
    return memory;
}

static void give_back(Backend *b, void *memory, size_t bytes) {
    if (!memory) return;
    cudaFree(memory);
    b->bytes_taken -= device_bytes(bytes);
}

static void drop_graphs(Backend *b) {
    for (int i = 0; i < MOST_GRAPHS; i++) {
        if (b->graphs[i].graph) cudaGraphExecDestroy(b->graphs[i].graph);
        b->graphs[i].graph = NULL;
    }
}

/* True where it has grown, or was large enough. Graphs know the old address. */
static bool reserve(Backend *b, Scratch *scratch, size_t bytes, bool zeroed) {
    if (scratch->bytes >= bytes) return true;
    wait_for_stream(b);
    give_back(b, scratch->memory, scratch->bytes);
    drop_graphs(b);
    scratch->memory = zeroed ? take_zeroed(b, bytes) : take(b, bytes);
    scratch->bytes = scratch->memory ? bytes : 0;
    return scratch->memory != NULL;
}

/* Addresses of these are told anew with every run: graphs need not know. */
static bool reserve_changes(Backend *b, Scratch *scratch, size_t bytes) {
    if (scratch->bytes >= bytes) return true;
    wait_for_stream(b);
    give_back(b, scratch->memory, scratch->bytes);
    scratch->memory = take(b, bytes);
    scratch->bytes = scratch->memory ? bytes : 0;
    if (!scratch->memory) succeeded(b, cudaErrorMemoryAllocation, "made room for masks");
    return scratch->memory != NULL;
}

static void grow_to(size_t *need, size_t bytes) {
    if (*need < bytes) *need = bytes;
}

/* What the passes so far asked for. Nothing is lost where it fails: a run says so then. */
static bool reserve_needs(Backend *b) {
    return reserve(b, &b->partials, b->need_partials, false) && reserve(b, &b->tickets, b->need_tickets, true) &&
           reserve(b, &b->attention, b->need_attention, false) && reserve(b, &b->choosing, b->need_choosing, true) &&
           reserve(b, &b->gates, b->need_gates, false);
}

static float *buffer_new(Backend *b, size_t count) { return (float *)take_zeroed(b, count * sizeof(float)); }

static void buffer_free(Backend *b, void *buffer) {
    cudaFree(buffer);
    (void)b;
}

static void buffer_write(Backend *b, void *to, const void *from, size_t bytes) {
    if (succeeded(b, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, b->stream), "took data"))
        wait_for_stream(b);
}

static void buffer_read(Backend *b, void *to, const void *from, size_t bytes) {
    if (succeeded(b, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, b->stream), "gave data"))
        wait_for_stream(b);
}

static void buffer_move(Backend *b, void *to, const void *from, size_t bytes) {
    succeeded(b, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, b->stream), "moved data");
}

/* ---- weights ------------------------------------------------------------------------------------ */

static void staging_free(Backend *b) {
    for (int i = 0; i < 2; i++) {
        if (b->staging[i]) cudaFreeHost(b->staging[i]);
        give_back(b, b->raw[i], b->staging_bytes);
        b->staging[i] = b->raw[i] = NULL;
    }
    b->staging_bytes = 0;
}

static bool reserve_staging(Backend *b, size_t bytes) {
    if (b->staging_bytes >= bytes) return true;
    wait_for_stream(b);
    staging_free(b);
    bool ok = true;
    for (int i = 0; i < 2; i++) {
        void *pinned = NULL;
        ok = cudaHostAlloc(&pinned, bytes, cudaHostAllocDefault) == cudaSuccess && ok;
        b->staging[i] = (uint8_t *)pinned;
        b->raw[i] = (uint8_t *)take(b, bytes);
        ok = ok && b->raw[i];
    }
    b->staging_bytes = bytes;
    if (!ok) cudaGetLastError();
    if (!ok) staging_free(b);
    return ok;
}

/* The host copies the next rows of the file into pinned memory while the last ones travel and are packed. */
static bool upload_weight(Backend *b, const DeviceWeight *w, const Tensor *tensor, const int32_t *row_ids) {
    const size_t row_bytes = (size_t)(tensor->size / (uint64_t)tensor->rows);
    if (!reserve_staging(b, STAGING_BYTES > TILE_ROWS * row_bytes ? STAGING_BYTES : TILE_ROWS * row_bytes))
        return false;
    const int together = (int)(b->staging_bytes / row_bytes / TILE_ROWS) * TILE_ROWS;
    for (int first = 0, side = 0; first < w->rows && !b->failure; first += together, side = !side) {
        const int n = w->rows - first < together ? w->rows - first : together;
        succeeded(b, cudaEventSynchronize(b->staged[side]), "packed weights");
        if (!row_ids) memcpy(b->staging[side], tensor->data + (size_t)first * row_bytes, (size_t)n * row_bytes);
        for (int i = 0; row_ids && i < n; i++)
            memcpy(b->staging[side] + (size_t)i * row_bytes, tensor->data + (size_t)row_ids[first + i] * row_bytes,
                   row_bytes);
        succeeded(
            b,
            cudaMemcpyAsync(b->raw[side], b->staging[side], (size_t)n * row_bytes, cudaMemcpyHostToDevice, b->stream),
            "took weights");
        queue_pack(b->stream, w, tensor->type, b->raw[side], row_bytes, first, n);
        succeeded(b, cudaGetLastError(), "packed weights");
        succeeded(b, cudaEventRecord(b->staged[side], b->stream), "took weights");
    }
    return !b->failure;
}

static void weight_free(Backend *b, Weight *weight) {
    if (!weight) return;
    give_back(b, weight->weight.data, device_weight_bytes(&weight->weight));
    free(weight);
}

static Weight *weight_new(Backend *b, const Tensor *tensor, const int32_t *row_ids, int n_rows) {
    Weight *weight = (Weight *)calloc(1, sizeof *weight);
    if (!weight) return NULL;
    DeviceWeight *w = &weight->weight;
    *w = device_weight_layout(tensor->type, n_rows, (int)tensor->columns);
    w->data = (uint8_t *)take(b, device_weight_bytes(w));
    if (!w->data || !upload_weight(b, w, tensor, row_ids)) {
        weight_free(b, weight);
        return NULL;
    }
    size_t floats;
    int n_tickets;
    product_scratch_size(w, 1, BEE_MAX_PASS_ROWS, &floats, &n_tickets);
    grow_to(&b->need_partials, PRODUCTS_TOGETHER * floats * sizeof(float));
    grow_to(&b->need_tickets, PRODUCTS_TOGETHER * (size_t)n_tickets * sizeof(unsigned));
    grow_to(&b->need_choosing, choice_scratch_size(BEE_MAX_PASS_ROWS, n_rows));
    grow_to(&b->need_gates, gate_bytes(n_rows));
    return weight;
}

static size_t weight_bytes(const Weight *weight) { return device_weight_bytes(&weight->weight); }

static int operand_format(const Weight *weight) { return weight_format(weight->weight.type); }

static void table_free(Backend *b, Table *table) {
    if (!table) return;
    give_back(b, table->raw, table->bytes);
    free(table);
}

static Table *table_new(Backend *b, const Tensor *tensor) {
    Table *table = (Table *)calloc(1, sizeof *table);
    if (!table) return NULL;
    *table = {tensor->type, (int)tensor->columns, (size_t)(tensor->size / (uint64_t)tensor->rows), (size_t)tensor->size,
              NULL};
    table->raw = (uint8_t *)take(b, table->bytes);
    if (!table->raw || !reserve_staging(b, STAGING_BYTES)) {
        table_free(b, table);
        return NULL;
    }
    int side = 0;
    for (size_t at = 0; at < table->bytes && !b->failure; at += STAGING_BYTES, side = !side) {
        const size_t n = table->bytes - at < STAGING_BYTES ? table->bytes - at : STAGING_BYTES;
        succeeded(b, cudaEventSynchronize(b->staged[side]), "took the embedding");
        memcpy(b->staging[side], tensor->data + at, n);
        succeeded(b, cudaMemcpyAsync(table->raw + at, b->staging[side], n, cudaMemcpyHostToDevice, b->stream),
                  "took the embedding");
        succeeded(b, cudaEventRecord(b->staged[side], b->stream), "took the embedding");
    }
    return table;
}

static void operand_free(Backend *b, Operand *operand) {
    if (!operand) return;
    DeviceOperand *o = &operand->operand;
    void *parts[] = {o->codes, o->scales, o->f16, o->bf16, o->f16_factors, o->bf16_factors, o->values};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) cudaFree(parts[i]);
    (void)b;
    free(operand);
}

static Operand *operand_new(Backend *b, int columns, int max_rows, int formats) {
    Operand *operand = (Operand *)calloc(1, sizeof *operand);
    if (!operand) return NULL;
    DeviceOperand *o = &operand->operand;
    const OperandSizes sizes = operand_sizes(columns, max_rows);
    o->columns = columns;
    o->n_groups = sizes.n_groups;
    o->max_rows = sizes.max_rows;
    o->formats = formats & (FORMAT_CODES | FORMAT_VALUES | FORMAT_F16 | FORMAT_BF16);
    bool ok = true;
    if (formats & FORMAT_CODES) {
        ok = (o->codes = (int8_t *)take_zeroed(b, sizes.codes)) && ok;
        ok = (o->scales = (float2 *)take_zeroed(b, sizes.scales)) && ok;
    }
    if (formats & FORMAT_F16) {
        ok = (o->f16 = (uint16_t *)take_zeroed(b, sizes.halves)) && ok;
        ok = (o->f16_factors = (float *)take_zeroed(b, sizes.factors)) && ok;
    }
    if (formats & FORMAT_BF16) {
        ok = (o->bf16 = (uint16_t *)take_zeroed(b, sizes.halves)) && ok;
        ok = (o->bf16_factors = (float *)take_zeroed(b, sizes.factors)) && ok;
    }
    if (formats & FORMAT_VALUES) ok = (o->values = (float *)take_zeroed(b, sizes.values)) && ok;
    if (ok) return operand;
    operand_free(b, operand);
    return NULL;
}

static size_t cache_bytes(const Cache *cache) {
    return sizeof(uint16_t) * (size_t)cache->n_layer * (size_t)cache->n_head_kv * (size_t)cache->n_ctx *
           (size_t)cache->head_size;
}

static void cache_free(Backend *b, Cache *cache) {
    if (!cache) return;
    give_back(b, cache->keys, cache_bytes(cache));
    give_back(b, cache->values, cache_bytes(cache));
    free(cache);
}

static DeviceHeads device_heads(const Heads *h) {
    return {h->n_head, h->n_head_kv, h->head_size, h->n_rotated, h->neox, h->eps, h->frequencies};
}

static Cache *cache_new(Backend *b, const Heads *heads, int n_layer, int n_ctx) {
    Cache *cache = (Cache *)calloc(1, sizeof *cache);
    if (!cache) return NULL;
    cache->n_ctx = (n_ctx + CACHE_CHUNK - 1) / CACHE_CHUNK * CACHE_CHUNK;
    cache->n_layer = n_layer;
    cache->n_head_kv = heads->n_head_kv;
    cache->head_size = heads->head_size;
    cache->keys = (uint16_t *)take(b, cache_bytes(cache));
    cache->values = (uint16_t *)take(b, cache_bytes(cache));
    const DeviceHeads h = device_heads(heads);
    const size_t before = b->need_attention;
    grow_to(&b->need_attention, attention_scratch_size(&h, ATTENTION_ROWS, chunk_bucket(cache->n_ctx)) * sizeof(float));
    if (cache->keys && cache->values && reserve_needs(b)) return cache;
    cache_free(b, cache);
    b->need_attention = before; /* the others go on as before */
    reserve_needs(b);
    return NULL;
}

/* ---- operations --------------------------------------------------------------------------------- */

static int worker_index(const Worker *worker) {
    (void)worker;
    return 0;
}

/* The device's copy of a part of the run's index. */
static const int32_t *device_index(const Worker *w, const int32_t *index) {
    return index ? w->backend->input->index + (index - w->input->index) : NULL;
}

static ProductScratch product_scratch(const Backend *b) {
    return {(float *)b->partials.memory, b->partials.bytes / sizeof(float), (unsigned *)b->tickets.memory,
            (int)(b->tickets.bytes / sizeof(unsigned))};
}

static void embed(Worker *w, const Table *table, const Row *, int n, float *x, size_t stride) {
    queue_embed(w->backend->stream, table->type, table->raw, table->row_bytes, table->columns, w->backend->input->rows,
                n, x, stride);
}

static void rms_norm(Worker *w, const float *x, size_t stride, const int32_t *index, const float *gain, float eps,
                     int columns, int n, Operand *out) {
    queue_rms_norm(w->backend->stream, x, stride, device_index(w, index), gain, eps, columns, n, &out->operand);
}

static void to_operand(Worker *w, const float *x, size_t stride, const int32_t *index, int n, Operand *out) {
    queue_to_operand(w->backend->stream, x, stride, device_index(w, index), n, &out->operand);
}

static void multiply(Worker *w, const Product *products, int n_products, const Operand *in, int n) {
    DeviceProduct device[PRODUCTS_TOGETHER];
    for (int i = 0; i < n_products; i++)
        device[i] = {products[i].weight->weight, products[i].out, products[i].stride, products[i].add};
    const ProductScratch scratch = product_scratch(w->backend);
    queue_multiply(w->backend->stream, device, n_products, &in->operand, n, &scratch);
}

static void rope_angles(Worker *w, const Heads *heads, const Row *, int n, float *angles) {
    const DeviceHeads h = device_heads(heads);
    queue_rope_angles(w->backend->stream, &h, w->backend->input->rows, n, angles);
}

static void rotate_and_store(Worker *w, const Heads *heads, int layer, const Row *, int n, const float *angles,
                             const float *q_gain, const float *k_gain, float *q, size_t q_stride, float *k, float *v,
                             size_t kv_stride) {
    const DeviceHeads h = device_heads(heads);
    queue_rotate_and_store(w->backend->stream, &h, layer, w->backend->input->rows, n, angles, q_gain, k_gain, q,
                           q_stride, k, v, kv_stride);
}

/* Some rows at a time, so that the partial results of long prompts do not fill the memory. */
static void attend(Worker *w, const Heads *heads, int layer, const Row *, int n, const float *q, size_t q_stride,
                   Operand *out) {
    const DeviceHeads h = device_heads(heads);
    for (int first = 0; first < n; first += ATTENTION_ROWS) {
        DeviceOperand part = operand_from(&out->operand, first);
        queue_attend(w->backend->stream, &h, layer, w->backend->input->rows + first,
                     n - first < ATTENTION_ROWS ? n - first : ATTENTION_ROWS, w->key.n_chunks,
                     q + (size_t)first * q_stride, q_stride, (float *)w->backend->attention.memory, &part);
    }
}

static void swiglu(Worker *w, const Weight *gate, const Weight *up, const Operand *in, int n, Operand *out) {
    Backend *b = w->backend;
    const ProductScratch scratch = product_scratch(b);
    float *values = (float *)b->gates.memory;
    const size_t stride = padded(gate->weight.rows);
    queue_swiglu(b->stream, &gate->weight, &up->weight, &in->operand, n, &out->operand, values,
                 values + BEE_MAX_PASS_ROWS * stride, stride, &scratch);
}

static void copy(Worker *w, const float *from, size_t from_stride, float *to, size_t to_stride, int columns, int n) {
    queue_copy(w->backend->stream, from, from_stride, to, to_stride, columns, n);
}

static void choose(Worker *w, float *logits, size_t stride, int n_vocab, const int32_t *ids, Choice *, int n) {
    Backend *b = w->backend;
    queue_choose(b->stream, logits, stride, n_vocab, ids, b->input->choices, n, w->key.truncates, w->key.edits,
                 b->choosing.memory, w->tokens, w->key.reports ? b->output->reports : NULL);
}

/* ---- runs --------------------------------------------------------------------------------------- */

static bool truncates(const bee_sampling *s) {
    return s->temperature > 0 && (s->top_k > 0 || s->top_p < 1 || s->min_p > 0);
}

static DeviceRow device_row(const Row *row) {
    return {row->cache->keys, row->cache->values, row->cache->n_ctx, row->token, row->position, row->n_visible};
}

/* Edits and masks of all choices go where the choices then point. */
static bool upload_changes(Backend *b, const RunInput *input, DeviceChoice *choices) {
    size_t n_edits = 0;
    for (int i = 0; i < input->n_choices; i++) n_edits += (size_t)input->choices[i].n_edits;
    const size_t words = (size_t)input->mask_words;
    if (!reserve_changes(b, &b->edits, n_edits * sizeof(DeviceEdit)) ||
        !reserve_changes(b, &b->masks, (size_t)input->n_choices * words * sizeof(uint32_t)))
        return false;
    DeviceEdit *edits = (DeviceEdit *)b->edits.memory;
    for (int i = 0; i < input->n_choices; i++) {
        const Choice *c = &input->choices[i];
        uint32_t *mask = (uint32_t *)b->masks.memory + (size_t)i * words;
        static_assert(sizeof(DeviceEdit) == sizeof(LogitEdit), "edits travel as they are");
        if (c->n_edits)
            succeeded(
                b,
                cudaMemcpyAsync(edits, c->edits, (size_t)c->n_edits * sizeof *edits, cudaMemcpyHostToDevice, b->stream),
                "took biases");
        if (c->mask)
            succeeded(b, cudaMemcpyAsync(mask, c->mask, words * sizeof *mask, cudaMemcpyHostToDevice, b->stream),
                      "took a mask");
        choices[i].edits = c->n_edits ? edits : NULL;
        choices[i].n_edits = c->n_edits;
        choices[i].mask = c->mask ? mask : NULL;
        edits += c->n_edits;
    }
    return true;
}

/* Chunks that the rows see at most, rounded up so that a growing text changes its graphs rarely. */
static int chunks_seen(const RunInput *input) {
    int most = 1;
    for (int i = 0; i < input->n_rows; i++)
        if (input->rows[i].n_visible > most) most = input->rows[i].n_visible;
    return chunk_bucket(most);
}

static GraphKey key_of(void (*body)(Worker *, void *), const RunInput *input) {
    GraphKey key = {};
    key.body = body;
    key.model = input->model;
    key.n_rows = input->n_rows;
    key.n_index = input->n_index;
    key.n_choices = input->n_choices;
    key.n_chunks = chunks_seen(input);
    for (int i = 0; i < input->n_choices; i++) {
        const Choice *c = &input->choices[i];
        key.truncates = key.truncates || truncates(c->sampling);
        key.edits = key.edits || c->n_edits || c->mask || c->report;
        key.reports = key.reports || c->report;
    }
    return key;
}

static bool same_key(const GraphKey *a, const GraphKey *b) {
    return a->body == b->body && a->model == b->model && a->cycle == b->cycle && a->n_rows == b->n_rows &&
           a->n_index == b->n_index && a->n_choices == b->n_choices && a->n_chunks == b->n_chunks &&
           a->truncates == b->truncates && a->edits == b->edits && a->reports == b->reports;
}

/* An unused place, or the one of the graph that was not used for longest. */
static Graph *place_for_graph(Backend *b) {
    Graph *oldest = &b->graphs[0];
    for (int i = 0; i < MOST_GRAPHS; i++) {
        if (!b->graphs[i].graph) return &b->graphs[i];
        if (b->graphs[i].last_used < oldest->last_used) oldest = &b->graphs[i];
    }
    cudaGraphExecDestroy(oldest->graph);
    oldest->graph = NULL;
    return oldest;
}

static Graph *capture(Backend *b, Worker *worker, void *argument) {
    Graph *place = place_for_graph(b);
    cudaGraph_t graph = NULL;
    if (!succeeded(b, cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal), "recorded a pass"))
        return NULL;
    worker->key.body(worker, argument);
    /* A kernel that could not be queued would be missing from the graph, without a word. */
    const cudaError_t queued = cudaGetLastError();
    if (!succeeded(b, cudaStreamEndCapture(b->stream, &graph), "recorded a pass")) return NULL;
    cudaGraphExec_t made = NULL;
    if (succeeded(b, queued, "queued a kernel") &&
        succeeded(b, cudaGraphInstantiate(&made, graph, 0), "recorded a pass"))
        place->graph = made;
    cudaGraphDestroy(graph);
    place->key = worker->key;
    return place->graph ? place : NULL;
}

static void launch_graph(Backend *b, Worker *worker, void *argument) {
    Graph *graph = NULL;
    for (int i = 0; i < MOST_GRAPHS && !graph; i++)
        if (b->graphs[i].graph && same_key(&b->graphs[i].key, &worker->key)) graph = &b->graphs[i];
    if (!graph) graph = capture(b, worker, argument);
    if (!graph) return;
    graph->last_used = ++b->n_runs;
    succeeded(b, cudaGraphLaunch(graph->graph, b->stream), "began a pass");
}

static Slot *next_slot(Backend *b) {
    Slot *slot = &b->slots[b->next_slot];
    b->next_slot = (b->next_slot + 1) % N_SLOTS;
    succeeded(b, cudaEventSynchronize(slot->uploaded), "took the rows of a pass");
    return slot;
}

static void upload_input(Backend *b, const RunInput *input) {
    Slot *slot = next_slot(b);
    for (int i = 0; i < input->n_rows; i++) slot->input->rows[i] = device_row(&input->rows[i]);
    if (input->n_index) memcpy(slot->input->index, input->index, (size_t)input->n_index * sizeof *input->index);
    for (int i = 0; i < input->n_choices; i++) {
        const Choice *c = &input->choices[i];
        slot->input->choices[i] = {*c->sampling, c->position, c->logits_row, NULL, NULL, 0, c->report ? c->n_top : -1};
    }
    if (!upload_changes(b, input, slot->input->choices)) return;
    succeeded(b, cudaMemcpyAsync(b->input, slot->input, sizeof *b->input, cudaMemcpyHostToDevice, b->stream),
              "took the rows of a pass");
    succeeded(b, cudaEventRecord(slot->uploaded, b->stream), "took the rows of a pass");
}

static void fill_report(const DeviceReport *from, bee_logprobs *out) {
    *out = {};
    out->logprob = (float)(from->chosen_logit - from->log_sum);
    out->n_top = from->n_top;
    for (int i = 0; i < from->n_top; i++) {
        out->top_tokens[i] = from->top_tokens[i];
        out->top_logprobs[i] = (float)(from->top_logits[i] - from->log_sum);
    }
}

static void download_choices(Backend *b, const GraphKey *key, Choice *choices) {
    const size_t bytes = key->reports ? sizeof *b->output : offsetof(OutputBlock, reports);
    if (succeeded(b, cudaMemcpyAsync(b->read, b->output, bytes, cudaMemcpyDeviceToHost, b->stream), "gave tokens"))
        wait_for_stream(b);
    for (int i = 0; i < key->n_choices; i++) {
        choices[i].token = b->failure ? -1 : b->read->tokens[i];
        if (choices[i].report && !b->failure) fill_report(&b->read->reports[i], choices[i].report);
    }
}

static bool ready(Backend *b) {
    if (b->failure) return false;
    return reserve_needs(b) || succeeded(b, cudaErrorMemoryAllocation, "made room for a pass");
}

static void run(Backend *b, void (*body)(Worker *, void *), void *argument, const RunInput *input) {
    Worker worker = {b, input, key_of(body, input), NULL, b->output->tokens};
    if (ready(b)) {
        upload_input(b, input);
        launch_graph(b, &worker, argument);
    }
    if (input->n_choices) download_choices(b, &worker.key, input->choices);
}

/* ---- cycles ------------------------------------------------------------------------------------- */

static void cycle_free(Backend *b, DeviceCycle *cycle) {
    if (!cycle) return;
    wait_for_stream(b);
    for (int i = 0; i < MOST_GRAPHS; i++) {
        Graph *graph = &b->graphs[i];
        if (!graph->graph || graph->key.cycle != cycle) continue;
        cudaGraphExecDestroy(graph->graph);
        graph->graph = NULL;
    }
    give_back(b, cycle->session, sizeof *cycle->session);
    if (cycle->staged) cudaFreeHost(cycle->staged);
    if (cycle->results) cudaFreeHost(cycle->results);
    free(cycle);
}

static DeviceCycle *cycle_new(Backend *b) {
    DeviceCycle *cycle = (DeviceCycle *)calloc(1, sizeof *cycle);
    if (!cycle) return NULL;
    void *staged = NULL, *results = NULL;
    cycle->session = (DeviceSession *)take_zeroed(b, sizeof *cycle->session);
    const bool ok = cudaHostAlloc(&staged, sizeof *cycle->staged, cudaHostAllocDefault) == cudaSuccess &&
                    cudaHostAlloc(&results, 2 * sizeof *cycle->results, cudaHostAllocDefault) == cudaSuccess;
    cycle->staged = (DeviceSession *)staged;
    cycle->results = (CycleResult *)results;
    if (ok && cycle->session) {
        memset(results, 0, 2 * sizeof *cycle->results);
        return cycle;
    }
    cudaGetLastError();
    cycle_free(b, cycle);
    return NULL;
}

/* Cycles that nobody reads any more are waited for first: they write the state, too. */
static void cycle_set(Backend *b, DeviceCycle *cycle, const CycleState *state) {
    wait_for_stream(b);
    cycle->n_read = cycle->n_queued;
    cycle->position = state->n_cached;
    DeviceSession *s = cycle->staged;
    *s = {};
    s->sampling = state->sampling;
    s->last_token = state->last_token;
    s->n_cached = state->n_cached;
    s->output_left = state->output_left;
    s->context_left = state->context_left;
    s->n_stop_tokens = state->n_stop_tokens;
    memcpy(s->stop_tokens, state->stop_tokens, (size_t)state->n_stop_tokens * sizeof *state->stop_tokens);
    s->mask_token = state->mask_token;
    s->causal = state->causal;
    s->keys = state->cache->keys;
    s->values = state->cache->values;
    s->n_ctx = state->cache->n_ctx;
    if (state->draft_cache) {
        s->draft_keys = state->draft_cache->keys;
        s->draft_values = state->draft_cache->values;
        s->draft_n_ctx = state->draft_cache->n_ctx;
    }
    s->has_profile = state->profile != NULL;
    if (state->profile) memcpy(s->profile, state->profile, sizeof s->profile);
    s->cycles = cycle->n_queued;
    succeeded(b, cudaMemcpyAsync(cycle->session, s, sizeof *s, cudaMemcpyHostToDevice, b->stream), "began a request");
}

static void cycle_draft_rows(Worker *w) {
    Backend *b = w->backend;
    queue_draft_rows(b->stream, w->cycle->session, w->cycle->n_drafts, b->input->rows, b->input->choices);
    w->tokens = b->drafts;
}

static void cycle_verify_rows(Worker *w) {
    Backend *b = w->backend;
    queue_verify_rows(b->stream, w->cycle->session, w->cycle->n_drafts, b->drafts, b->input->rows, b->input->choices);
    w->tokens = b->output->tokens;
}

static void cycle_accept(Worker *w) {
    Backend *b = w->backend;
    queue_accept(b->stream, w->cycle->session, w->cycle->n_drafts, b->drafts, b->output->tokens, w->cycle->results,
                 w->cycle->n_drafts ? b->input->rows : NULL);
}

/* The numbers 0, 1, 2 ...: which rows of a buffer the passes of a cycle take. */
static void upload_index(Backend *b) {
    Slot *slot = next_slot(b);
    for (int i = 0; i < BEE_MAX_PASS_ROWS; i++) slot->input->index[i] = i;
    succeeded(b,
              cudaMemcpyAsync(b->input->index, slot->input->index, sizeof slot->input->index, cudaMemcpyHostToDevice,
                              b->stream),
              "began a cycle");
    succeeded(b, cudaEventRecord(slot->uploaded, b->stream), "began a cycle");
}

static void cycle_queue(Backend *b, DeviceCycle *cycle, void (*body)(Worker *, void *), void *argument,
                        const RunInput *input, int n_drafts) {
    if (!ready(b)) return;
    cycle->n_drafts = n_drafts;
    Worker worker = {b, input, {}, cycle, b->output->tokens};
    worker.key.body = body;
    worker.key.model = input->model;
    worker.key.cycle = cycle;
    worker.key.n_rows = n_drafts + 1;
    worker.key.truncates = truncates(&cycle->staged->sampling);
    worker.key.n_chunks = chunk_bucket(cycle->position + n_drafts + 1);
    upload_index(b);
    launch_graph(b, &worker, argument);
    cycle->position += n_drafts + 1;
    cycle->n_queued++;
}

static int cycle_queued(const DeviceCycle *cycle) { return (int)(cycle->n_queued - cycle->n_read); }

/* Looks at the number that the device writes last; asks for errors now and then. */
static bool wait_for_cycle(Backend *b, const CycleResult *result, uint32_t cycle) {
    for (unsigned looks = 1; result->cycle != cycle; looks++) {
        if (looks % 4096) continue;
        const cudaError_t error = cudaStreamQuery(b->stream);
        if (error == cudaErrorNotReady) continue;
        if (!succeeded(b, error, "ran a cycle")) return false;
        if (error == cudaSuccess && result->cycle != cycle)
            return succeeded(b, cudaErrorIllegalAddress, "ran a cycle, which left no result");
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    return !b->failure;
}

static bool cycle_read(Backend *b, DeviceCycle *cycle, CycleOutcome *out) {
    const uint32_t number = ++cycle->n_read;
    const CycleResult *result = &cycle->results[number % 2];
    if (b->failure || !wait_for_cycle(b, result, number)) return false;
    out->n_drafts = result->n_drafts;
    out->n_new = result->n_new;
    memcpy(out->drafts, result->drafts, sizeof out->drafts);
    memcpy(out->tokens, result->tokens, sizeof out->tokens);
    cycle->position -= result->n_drafts + 1 - result->n_new;
    return true;
}

/* ---- what the card allows ----------------------------------------------------------------------- */

/* The best of some copies within the device's memory: bytes read and written. */
static bool measure_copies(Backend *b, size_t bytes, double *rate) {
    void *from = take(b, bytes), *to = take(b, bytes);
    cudaEvent_t begin = NULL, end = NULL;
    bool ok = from && to && cudaEventCreateWithFlags(&begin, cudaEventDefault) == cudaSuccess &&
              cudaEventCreateWithFlags(&end, cudaEventDefault) == cudaSuccess;
    for (int i = 0; ok && i < 10; i++) {
        float milliseconds = 0;
        cudaEventRecord(begin, b->stream);
        buffer_move(b, to, from, bytes);
        cudaEventRecord(end, b->stream);
        ok = cudaEventSynchronize(end) == cudaSuccess &&
             cudaEventElapsedTime(&milliseconds, begin, end) == cudaSuccess && milliseconds > 0;
        if (ok && 2e3 * (double)bytes / milliseconds > *rate) *rate = 2e3 * (double)bytes / milliseconds;
    }
    if (begin) cudaEventDestroy(begin);
    if (end) cudaEventDestroy(end);
    give_back(b, from, bytes);
    give_back(b, to, bytes);
    return ok;
}

/* Products in registers, eight sums under way in each warp. */
static __global__ void multiply_on(int rounds, int *out) {
    unsigned a[4] = {threadIdx.x, 1, 2, 3}, x[2] = {4, threadIdx.x};
    int sums[8][4] = {};
    for (int i = 0; i < rounds; i++)
        for (int s = 0; s < 8; s++) mma_s8_k32(sums[s], a, x, sums[s]);
    int total = 0;
    for (int s = 0; s < 8; s++) total += sums[s][0] + sums[s][1] + sums[s][2] + sums[s][3];
    if (total == 0x7fffffff) *out = total;
}

static bool measure_products(Backend *b, double *rate) {
    enum { ROUNDS = 2000, WARPS = 8 };
    cudaDeviceProp card;
    cudaEvent_t begin = NULL, end = NULL;
    bool ok = cudaGetDeviceProperties(&card, 0) == cudaSuccess &&
              cudaEventCreateWithFlags(&begin, cudaEventDefault) == cudaSuccess &&
              cudaEventCreateWithFlags(&end, cudaEventDefault) == cudaSuccess;
#if defined(BEE_EMULATE)
    const int blocks = 1, rounds = 1;
#else
    const int blocks = 2 * card.multiProcessorCount, rounds = ROUNDS;
#endif
    for (int i = 0; ok && i < 5; i++) {
        float milliseconds = 0;
        cudaEventRecord(begin, b->stream);
        launch(b->stream, dim3((unsigned)blocks), dim3(WARPS * WARP_SIZE), 0, multiply_on, rounds, b->drafts);
        cudaEventRecord(end, b->stream);
        ok = cudaEventSynchronize(end) == cudaSuccess &&
             cudaEventElapsedTime(&milliseconds, begin, end) == cudaSuccess && milliseconds > 0;
        const double done = (double)blocks * WARPS * rounds * 8 * (16 * 8 * 32);
        if (ok && 1e3 * done / milliseconds > *rate) *rate = 1e3 * done / milliseconds;
    }
    if (begin) cudaEventDestroy(begin);
    if (end) cudaEventDestroy(end);
    return ok;
}

static bool measure_rates(Backend *b, uint64_t reread_bytes, Rates *out) {
    const size_t MOST_BYTES = 256 << 20;
    *out = {0, 0, 0};
    const size_t again = reread_bytes < MOST_BYTES ? reread_bytes : MOST_BYTES;
    return measure_copies(b, MOST_BYTES, &out->read_bytes_per_second) &&
           measure_copies(b, again ? again : 1, &out->reread_bytes_per_second) &&
           measure_products(b, &out->multiply_adds_per_second);
}

/* ---- the backend itself ------------------------------------------------------------------------- */

static const DeviceOps device_ops = {
    status,           cycle_new,         cycle_free,   cycle_set,    cycle_queue,
    cycle_draft_rows, cycle_verify_rows, cycle_accept, cycle_queued, cycle_read,
};

/* In the order of the structure: C++17 has no designated initialisers. */
static const Ops cuda_ops = {
    weight_new,   weight_free, weight_bytes, operand_format, operand_new, operand_free, buffer_new,       buffer_free,
    buffer_write, buffer_read, buffer_move,  table_new,      table_free,  cache_new,    cache_free,       run,
    worker_index, embed,       rms_norm,     to_operand,     multiply,    rope_angles,  rotate_and_store, attend,
    swiglu,       copy,        choose,       measure_rates,  &device_ops,
};

static bee_status no_device(cudaError_t error, bee_error *out) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cudaGetLastError();
    if (error == cudaErrorInsufficientDriver && !driver)
        return bee_fail(out, BEE_ERROR_DEVICE, "no NVIDIA driver is installed, or it is not running");
    if (error == cudaErrorInsufficientDriver)
        return bee_fail(out, BEE_ERROR_DEVICE, "the NVIDIA driver is too old: it knows CUDA %d.%d, and %d.%d is needed",
                        driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (error == cudaErrorNoDevice && visible)
        return bee_fail(out, BEE_ERROR_DEVICE, "no CUDA device is visible: CUDA_VISIBLE_DEVICES is \"%.64s\"", visible);
    return bee_fail(out, BEE_ERROR_DEVICE, "no CUDA device can be used: %s (%s)", cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

static bee_status describe(bee_device_info *out, bee_error *error) {
    int count = 0;
    cudaDeviceProp card;
    size_t free_bytes = 0, total_bytes = 0;
    *out = {};
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result == cudaSuccess && !count) result = cudaErrorNoDevice;
    if (result == cudaSuccess) result = cudaSetDevice(0);
    if (result == cudaSuccess) result = cudaGetDeviceProperties(&card, 0);
    if (result == cudaSuccess && card.major < 8)
        return bee_fail(error, BEE_ERROR_DEVICE,
                        "%.64s has compute capability %d.%d, and 8.0 is needed (Ampere: RTX 30, A100 and newer)",
                        card.name, card.major, card.minor);
    if (result == cudaSuccess) result = cudaMemGetInfo(&free_bytes, &total_bytes);
    if (result != cudaSuccess) return no_device(result, error);
    snprintf(out->name, sizeof out->name, "%.127s", card.name);
    out->capability_major = card.major;
    out->capability_minor = card.minor;
    out->n_multiprocessors = card.multiProcessorCount;
    int driver = 0;
    cudaDriverGetVersion(&driver);
    out->driver_version = driver;
    out->total_bytes = total_bytes;
    out->free_bytes = free_bytes;
    return BEE_OK;
}

static void backend_free(Backend *b) {
    if (!b) return;
    if (b->stream) cudaStreamSynchronize(b->stream);
    drop_graphs(b);
    staging_free(b);
    Scratch *scratch[] = {&b->masks, &b->edits, &b->partials, &b->tickets, &b->attention, &b->choosing, &b->gates};
    for (size_t i = 0; i < sizeof scratch / sizeof *scratch; i++) cudaFree(scratch[i]->memory);
    for (int i = 0; i < 2; i++)
        if (b->staged[i]) cudaEventDestroy(b->staged[i]);
    for (int i = 0; i < N_SLOTS; i++) {
        if (b->slots[i].uploaded) cudaEventDestroy(b->slots[i].uploaded);
        if (b->slots[i].input) cudaFreeHost(b->slots[i].input);
    }
    if (b->read) cudaFreeHost(b->read);
    cudaFree(b->input);
    cudaFree(b->output);
    cudaFree(b->drafts);
    if (b->stream) cudaStreamDestroy(b->stream);
    free(b);
}

static bool open_slots(Backend *b) {
    void *memory = NULL;
    bool ok = cudaHostAlloc(&memory, sizeof *b->read, cudaHostAllocDefault) == cudaSuccess;
    b->read = (OutputBlock *)memory;
    for (int i = 0; i < N_SLOTS; i++) {
        memory = NULL;
        ok = cudaHostAlloc(&memory, sizeof(InputBlock), cudaHostAllocDefault) == cudaSuccess && ok;
        b->slots[i].input = (InputBlock *)memory;
        ok = cudaEventCreateWithFlags(&b->slots[i].uploaded, cudaEventDisableTiming) == cudaSuccess && ok;
    }
    for (int i = 0; i < 2; i++)
        ok = cudaEventCreateWithFlags(&b->staged[i], cudaEventDisableTiming) == cudaSuccess && ok;
    b->input = (InputBlock *)take_zeroed(b, sizeof *b->input);
    b->output = (OutputBlock *)take_zeroed(b, sizeof *b->output);
    b->drafts = (int32_t *)take_zeroed(b, BEE_MAX_PASS_ROWS * sizeof *b->drafts);
    return ok && b->input && b->output && b->drafts;
}

static Backend *backend_new(bee_error *error) {
    Backend *b = (Backend *)calloc(1, sizeof *b);
    const bool ok = b && cudaSetDevice(0) == cudaSuccess &&
                    cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking) == cudaSuccess && open_slots(b);
    cudaGetLastError();
    if (ok) return b;
    backend_free(b);
    bee_fail(error, BEE_ERROR_MEMORY, "the device has no memory left for the work space of an engine");
    return NULL;
}

static uint64_t bytes_taken(const Backend *b) { return b->bytes_taken; }

extern "C" __attribute__((visibility("default"))) const CudaLibrary *bee_cuda_library(void) {
    static const CudaLibrary library = {BEE_VERSION, &cuda_ops, describe, backend_new, backend_free, bytes_taken};
    return &library;
}
