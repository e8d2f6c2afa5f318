/* What the backend keeps on the card: errors, memory, weights on their way there, operands, caches. */
#include "backend.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <unordered_set>

/* ---- errors ------------------------------------------------------------------------------------- */

/* The first failure is kept: those that follow are its consequences. */
bool succeeded(Backend *b, cudaError_t error, const char *what) {
    if (error == cudaSuccess) return !b->failure;
    if (b->failure) return false;
    b->failure = error == cudaErrorMemoryAllocation ? BEE_ERROR_MEMORY : BEE_ERROR_DEVICE;
    snprintf(b->message, sizeof b->message, "the device failed while it %s: %s (%s)", what, cudaGetErrorString(error),
             cudaGetErrorName(error));
    return false;
}

bee_status status(Backend *b, bee_error *error) {
    if (b->owner != getpid())
        return bee_fail(
            error, BEE_ERROR_DEVICE,
            "this process was forked from the one that opened the engine, and CUDA does not survive a fork: "
            "open engines in the process that uses them (multiprocessing: \"spawn\")");
    succeeded(b, cudaGetLastError(), "ran a kernel");
    if (!b->failure) return BEE_OK;
    return bee_fail(
        error, BEE_ERROR_DEVICE,
        "%s; this engine is unusable: close it and use the CPU (device=\"cpu\"); after an error in a kernel, "
        "the card can be used again by a new process alone",
        b->message);
}

bool wait_for_stream(Backend *b) { return succeeded(b, cudaStreamSynchronize(b->stream), "finished its work"); }

/* ---- launches ----------------------------------------------------------------------------------- */

/* Launches are recorded, so that this is asked once for every place in a graph. */
void ask_for_shared_memory(const void *kernel) {
    static std::mutex lock;
    static std::unordered_set<const void *> asked;
    const char *wanted = getenv("BEE_CUDA_CARVEOUT");
    if (!wanted || strcmp(wanted, "1")) return;
    const std::lock_guard<std::mutex> guard(lock);
    if (asked.insert(kernel).second)
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100 /* per cent */);
}

/* ---- memory ------------------------------------------------------------------------------------- */

/* NULL where there is not enough; that fails nothing but the call. What else goes wrong fails the backend. */
static void *taken(Backend *b, cudaError_t error, void *memory) {
    if (error == cudaSuccess) return memory;
    cudaGetLastError(); /* or the next question would find it again */
    if (error != cudaErrorMemoryAllocation) succeeded(b, error, "made room");
    return NULL;
}

/* Others may have chosen another device for this thread. */
void *take(Backend *b, size_t bytes) {
    void *memory = NULL;
    if (b->failure) return NULL;
    cudaError_t error = cudaSetDevice(0);
    if (error == cudaSuccess) error = cudaMalloc(&memory, bytes ? (bytes + 255) / 256 * 256 : 256);
    if (!taken(b, error, memory)) return NULL;
    (*b->taken)[memory] = device_bytes(bytes);
    b->bytes_taken += device_bytes(bytes);
    return memory;
}

void *take_zeroed(Backend *b, size_t bytes) {
    void *memory = take(b, bytes);
    if (memory) succeeded(b, cudaMemsetAsync(memory, 0, bytes, b->stream), "cleared memory");
    return memory;
}

void give_back(Backend *b, void *memory) {
    const auto found = b->taken->find(memory);
    if (found == b->taken->end()) return;
    cudaFree(memory);
    b->bytes_taken -= found->second;
    b->taken->erase(found);
}

void *take_pinned(Backend *b, size_t bytes) {
    void *memory = NULL;
    if (b->failure) return NULL;
    const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocDefault);
    return taken(b, error, memory);
}

/* True where it has grown, or was large enough. Graphs know the old address. */
static bool reserve(Backend *b, Scratch *scratch, size_t bytes, bool zeroed) {
    if (scratch->bytes >= bytes) return true;
    wait_for_stream(b);
    give_back(b, scratch->memory);
    drop_graphs(b);
    scratch->memory = zeroed ? take_zeroed(b, bytes) : take(b, bytes);
    scratch->bytes = scratch->memory ? bytes : 0;
    return scratch->memory != NULL;
}

/* Addresses of these are told anew with every run: graphs need not know. */
bool reserve_changes(Backend *b, Scratch *scratch, size_t bytes) {
    if (scratch->bytes >= bytes) return true;
    wait_for_stream(b);
    give_back(b, scratch->memory);
    scratch->memory = take(b, bytes);
    scratch->bytes = scratch->memory ? bytes : 0;
    if (!scratch->memory) succeeded(b, cudaErrorMemoryAllocation, "made room for masks");
    return scratch->memory != NULL;
}

static void grow_to(size_t *need, size_t bytes) {
    if (*need < bytes) *need = bytes;
}

/* What the passes so far asked for. Nothing is lost where it fails: a run says so then. */
bool reserve_needs(Backend *b) {
    return reserve(b, &b->partials, b->need_partials, false) && reserve(b, &b->tickets, b->need_tickets, true) &&
           reserve(b, &b->attention, b->need_attention, false) && reserve(b, &b->choosing, b->need_choosing, true) &&
           reserve(b, &b->gates, b->need_gates, false);
}

float *buffer_new(Backend *b, size_t count) { return (float *)take_zeroed(b, count * sizeof(float)); }

void buffer_free(Backend *b, void *buffer) { give_back(b, buffer); }

void buffer_write(Backend *b, void *to, const void *from, size_t bytes) {
    if (succeeded(b, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, b->stream), "took data"))
        wait_for_stream(b);
}

void buffer_read(Backend *b, void *to, const void *from, size_t bytes) {
    if (succeeded(b, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, b->stream), "gave data"))
        wait_for_stream(b);
}

void buffer_move(Backend *b, void *to, const void *from, size_t bytes) {
    succeeded(b, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, b->stream), "moved data");
}

/* ---- weights ------------------------------------------------------------------------------------ */

void staging_free(Backend *b) {
    for (int i = 0; i < 2; i++) {
        if (b->staging[i]) cudaFreeHost(b->staging[i]);
        give_back(b, b->raw[i]);
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
        b->staging[i] = (uint8_t *)take_pinned(b, bytes);
        b->raw[i] = (uint8_t *)take(b, bytes);
        ok = ok && b->staging[i] && b->raw[i];
    }
    b->staging_bytes = bytes;
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

void weight_free(Backend *b, Weight *weight) {
    if (!weight) return;
    if (!weight->is_part) give_back(b, weight->weight.data);
    give_back(b, weight->scales);
    free(weight);
}

Weight *experts_new(Backend *b, TensorType type, int rows, int columns, int n, const float *scales) {
    Weight *first = (Weight *)calloc(1, sizeof *first);
    if (!first) return NULL;
    const size_t bytes = (size_t)n * sizeof *scales;
    first->weight = device_weight_layout(type, rows, columns);
    first->weight.data = (uint8_t *)take(b, (size_t)n * device_weight_bytes(&first->weight));
    if (scales) first->scales = (float *)take(b, bytes);
    if (first->scales) buffer_write(b, first->scales, scales, bytes);
    if (first->weight.data && (first->scales || !scales)) return first;
    weight_free(b, first);
    return NULL;
}

Weight *expert_new(Backend *b, Weight *experts, int index, const Tensor *tensor) {
    Weight *weight = index ? (Weight *)calloc(1, sizeof *weight) : experts;
    if (!weight) return NULL;
    weight->is_part = index > 0;
    weight->weight = experts->weight;
    weight->weight.data = experts->weight.data + (size_t)index * device_weight_bytes(&experts->weight);
    if (upload_weight(b, &weight->weight, tensor, NULL)) return weight;
    if (index) free(weight);
    return NULL;
}

Weight *weight_new(Backend *b, const Tensor *tensor, const int32_t *row_ids, int n_rows, bee_error *) {
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

size_t weight_bytes(const Weight *weight) { return device_weight_bytes(&weight->weight); }

int operand_format(const Weight *weight) { return weight_format(weight->weight.type); }

void table_free(Backend *b, Table *table) {
    if (!table) return;
    give_back(b, table->raw);
    free(table);
}

Table *table_new(Backend *b, const Tensor *tensor, bee_error *) {
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

void operand_free(Backend *b, Operand *operand) {
    if (!operand) return;
    DeviceOperand *o = &operand->operand;
    void *parts[] = {o->codes, o->scales, o->f16, o->bf16, o->f16_factors, o->bf16_factors, o->values};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) give_back(b, parts[i]);
    free(operand);
}

Operand *operand_new(Backend *b, int columns, int max_rows, int formats) {
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

void cache_free(Backend *b, Cache *cache) {
    for (int r = 0; cache && r < CACHE_REGIONS; r++) {
        give_back(b, cache->keys[r]);
        give_back(b, cache->values[r]);
    }
    if (cache) {
        give_back(b, cache->states);
        give_back(b, cache->kept);
        free(cache->ends);
    }
    free(cache);
}

DeviceHeads device_heads(const Heads *h) {
    DeviceHeads d = {};
    d.n_head = h->n_head;
    d.n_head_kv = h->n_head_kv;
    d.head_size = h->head_size;
    d.region = cache_region(h);
    d.kv_type = h->kv_type;
    d.first_byte = h->first_byte;
    d.head_bytes = cache_head_bytes(h->kv_type, h->head_size);
    d.n_rotated = h->rope ? h->rope->n_rotated : 0;
    d.neox = h->rope && h->rope->neox;
    d.norm_rotated = h->norm_rotated;
    d.norm_values = h->norm_values;
    d.scale = h->scale;
    d.eps = h->eps;
    d.softcap = h->softcap;
    d.growth = h->growth;
    d.period = h->period;
    d.window = h->window;
    d.sinks = h->sinks;
    return d;
}

Cache *cache_new(Backend *b, const CacheShape *shape, int n_ctx) {
    Cache *cache = (Cache *)calloc(1, sizeof *cache);
    if (!cache) return NULL;
    *cache = cache_layout(shape, n_ctx);
    bool ok = true;
    for (int r = 0; r < CACHE_REGIONS; r++) {
        if (!cache->position_bytes[r]) continue;
        ok = (cache->keys[r] = (uint8_t *)take(b, cache_half_bytes(cache, r))) && ok;
        ok = (cache->values[r] = (uint8_t *)take(b, cache_half_bytes(cache, r))) && ok;
    }
    if (cache->n_states) {
        ok = (cache->states = (float *)take(b, shape->state_floats * sizeof(float))) && ok;
        ok = (cache->kept = (float *)take(b, shape->kept_floats * sizeof(float))) && ok;
        ok = (cache->ends = (StateEnd *)calloc((size_t)cache->n_states, sizeof *cache->ends)) && ok;
    }
    const size_t before = b->need_attention;
    grow_to(&b->need_attention, attention_bytes(shape->n_head, shape->query_columns, attention_chunks(shape, n_ctx)));
    if (ok && reserve_needs(b)) return cache;
    cache_free(b, cache);
    b->need_attention = before; /* the others go on as before */
    reserve_needs(b);
    return NULL;
}

/* Chunk by chunk from a region's first place on: one piece, of keys and of values. */
void cache_take(Backend *b, Cache *to, const Cache *from, int n) {
    for (int r = 0; r < CACHE_REGIONS; r++) {
        const int first = cache_first_chunk(from, r, n), most = cache_chunks(n) - first;
        const size_t bytes = to->position_bytes[r] * (size_t)most * CACHE_CHUNK;
        if (!bytes) continue;
        buffer_move(b, to->keys[r], from->keys[r], bytes);
        buffer_move(b, to->values[r], from->values[r], bytes);
    }
}

bool cache_own(Backend *, Cache *, int) { return true; }
