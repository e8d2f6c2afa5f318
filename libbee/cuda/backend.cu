/* The CUDA backend: the operations of ops.h on one card, in one stream. A run's operations become a graph, which is
 * kept (runs.cu). */
#include "backend.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <new>

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

static void embed(Worker *w, const Table *table, const Row *, int n, float scale, float *x, size_t stride) {
    queue_embed(w->backend->stream, table->type, table->raw, table->row_bytes, table->columns, w->backend->input->rows,
                n, scale, x, stride);
}

static DeviceNorm device_norm(const Norm *norm) { return {norm->gain, norm->eps, norm->centred, norm->apart}; }

static void norm(Worker *w, const Norm *norm, const float *x, size_t stride, const int32_t *index, int columns, int n,
                 Operand *out) {
    const DeviceNorm of = device_norm(norm);
    queue_norm(w->backend->stream, &of, x, stride, device_index(w, index), columns, n, &out->operand);
}

static void norm_in_place(Worker *w, const Norm *norm, float *x, size_t stride, int columns, int parts, int n) {
    const DeviceNorm of = device_norm(norm);
    queue_norm_in_place(w->backend->stream, &of, x, stride, columns, parts, n);
}

static void add(Worker *w, const Norm *norm, float *y, size_t y_stride, float scale, float whole, int columns, int n,
                float *x, size_t x_stride) {
    const DeviceNorm of = norm ? device_norm(norm) : DeviceNorm{};
    queue_add(w->backend->stream, norm ? &of : NULL, y, y_stride, scale, whole, columns, n, x, x_stride);
}

static void add_gated(Worker *w, const float *gates, size_t gate_stride, const float *y, size_t y_stride, int columns,
                      int n, float *x, size_t x_stride) {
    queue_add_gated(w->backend->stream, gates, gate_stride, y, y_stride, columns, n, x, x_stride);
}

static void to_operand(Worker *w, const float *x, size_t stride, const int32_t *index, int n, Operand *out) {
    queue_to_operand(w->backend->stream, x, stride, device_index(w, index), n, &out->operand);
}

static DeviceProduct product_of(const Matrix *matrix, float *out, size_t stride, bool add) {
    return {matrix->weight->weight, out, stride, add, matrix->bias, matrix->scale};
}

static void multiply(Worker *w, const Product *products, int n_products, const Operand *in, int n) {
    DeviceProduct device[PRODUCTS_TOGETHER];
    for (int i = 0; i < n_products; i++)
        device[i] = product_of(products[i].matrix, products[i].out, products[i].stride, products[i].add);
    const ProductScratch scratch = product_scratch(w->backend);
    queue_multiply(w->backend->stream, device, n_products, &in->operand, n, &scratch);
}

static void rope_angles(Worker *w, const Rope *rope, const Row *, int n, float *angles) {
    const DeviceRope of = {rope->n_rotated, rope->magnitude, rope->frequencies, rope->long_frequencies,
                           rope->long_beyond};
    queue_rope_angles(w->backend->stream, &of, w->backend->input->rows, n, angles);
}

static void rotate_and_store(Worker *w, const Heads *heads, const Row *, int n, const float *angles,
                             const float *q_gain, const float *k_gain, float *q, size_t q_stride, float *k, float *v,
                             size_t kv_stride) {
    const DeviceHeads h = device_heads(heads);
    queue_rotate_and_store(w->backend->stream, &h, w->backend->input->rows, n, angles, q_gain, k_gain, q, q_stride, k,
                           v, kv_stride);
}

/* As many rows at a time as there is memory for their partial results. */
static void attend(Worker *w, const Heads *heads, const Row *, int n, const float *q, size_t q_stride, Operand *out) {
    const DeviceHeads h = device_heads(heads);
    const Scratch *scratch = &w->backend->attention;
    const int n_chunks = chunks_at_once(w->key.n_chunks, h.window);
    const int together =
        attention_rows_together(scratch->bytes, attention_row_bytes(h.n_head, h.n_head * h.head_size, n_chunks));
    for (int first = 0; first < n; first += together) {
        DeviceOperand part = operand_from(&out->operand, first);
        const float *const gates = heads->gates ? heads->gates + (size_t)first * heads->gate_stride : NULL;
        queue_attend(w->backend->stream, &h, w->backend->input->rows + first,
                     n - first < together ? n - first : together, n_chunks, q + (size_t)first * q_stride, q_stride,
                     gates, heads->gate_stride, (float *)scratch->memory, &part);
    }
}

static void gate(Worker *w, Activation activation, const Matrix *gate, const Matrix *up, const Operand *in, int n,
                 Operand *out) {
    Backend *b = w->backend;
    const ProductScratch scratch = product_scratch(b);
    float *values = (float *)b->gates.memory;
    const size_t stride = padded(up->weight->weight.rows);
    const DeviceProduct ups = product_of(up, values + BEE_MAX_PASS_ROWS * stride, stride, false);
    const DeviceProduct gates = gate ? product_of(gate, values, stride, false) : DeviceProduct{};
    queue_gate(b->stream, activation, gate ? &gates : NULL, &ups, &in->operand, n, &out->operand, &scratch);
}

static void gate_values(Worker *w, Activation activation, const float *gate, size_t gate_stride, const float *up,
                        size_t up_stride, int columns, int n, Operand *out) {
    queue_gate_values(w->backend->stream, activation, gate, gate_stride, up, up_stride, columns, n, &out->operand);
}

static void cap(Worker *w, float scale, float softcap, float *logits, size_t stride, int columns, int n) {
    queue_cap(w->backend->stream, scale, softcap, logits, stride, columns, n);
}

static DevicePlaces device_places(const ExpertRoom *room, int n_experts, int n_used) {
    static_assert(sizeof(ExpertTile) == 4 * sizeof(int32_t), "expert_places counts them so");
    const int most = expert_tiles(BEE_MAX_PASS_ROWS, n_experts, n_used);
    return {room->places, (ExpertTile *)(room->places + 4), room->places + 4 + 4 * most};
}

static void route(Worker *w, const Routing *routing, const float *logits, size_t stride, int n, ExpertRoom *room) {
    const DevicePlaces places = device_places(room, routing->n_experts, routing->n_used);
    queue_route(w->backend->stream, routing, logits, stride, n, room->ids, room->weights, &places);
}

static DeviceExperts device_experts(const Matrix *matrices) {
    const DeviceWeight *weight = &matrices->weight->weight;
    return {*weight, matrices->bias, padded(weight->rows), matrices->weight->scales};
}

static void experts(Worker *w, const Experts *e, const Operand *in, int n, ExpertRoom *room, float *out,
                    size_t stride) {
    cudaStream_t stream = w->backend->stream;
    const DevicePlaces places = device_places(room, e->n_experts, e->n_used);
    const DeviceExperts gates = e->gate ? device_experts(e->gate) : DeviceExperts{};
    const DeviceExperts ups = device_experts(e->up), downs = device_experts(e->down);
    const int n_tiles = expert_tiles(n, e->n_experts, e->n_used);
    queue_gather(stream, &in->operand, n, e->n_used, &places, &room->gathered->operand);
    queue_expert_gate(stream, e->activation, e->gate ? &gates : NULL, &ups, &places, n_tiles, &room->gathered->operand,
                      n, &room->between->operand);
    queue_expert_multiply(stream, &downs, &places, n_tiles, &room->between->operand, n, room->each, room->stride);
    queue_sum_answers(stream, room->each, room->stride, room->weights, &places, e->n_used, downs.weight.rows, n, out,
                      stride);
}

static void recur(Worker *w, const Recurrence *r, const Row *, int n, const float *inputs, size_t input_stride,
                  const float *gates, float *out, size_t stride) {
    const Backend *b = w->backend;
    queue_recur(b->stream, r, b->input->runs, w->key.n_runs, n, inputs, input_stride, gates, out, stride);
}

static void convolve(Worker *w, const Recurrence *r, const Row *, int, float *inputs, size_t input_stride, float *out,
                     size_t stride) {
    const Backend *b = w->backend;
    queue_convolve(b->stream, r, b->input->runs, w->key.n_runs, inputs, input_stride, out, stride);
}

static void copy(Worker *w, const float *from, size_t from_stride, float *to, size_t to_stride, int columns, int n) {
    queue_copy(w->backend->stream, from, from_stride, to, to_stride, columns, n);
}

static void choose(Worker *w, float *logits, size_t stride, int n_vocab, const int32_t *ids, Choice *, int n) {
    Backend *b = w->backend;
    queue_choose(b->stream, logits, stride, n_vocab, ids, b->input->choices, n, w->key.truncates, w->key.edits,
                 b->choosing.memory, w->tokens, w->key.reports ? b->output->reports : NULL);
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
    give_back(b, from);
    give_back(b, to);
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
    weight_new,       weight_free,  experts_new, expert_new,   weight_bytes, operand_format,
    operand_new,      operand_free, buffer_new,  buffer_free,  buffer_write, buffer_read,
    buffer_move,      table_new,    NULL,        table_free,   cache_new,    cache_free,
    cache_take,       cache_own,    run,         worker_index, embed,        norm,
    norm_in_place,    add,          add_gated,   to_operand,   multiply,     rope_angles,
    rotate_and_store, attend,       gate,        gate_values,  cap,          route,
    experts,          recur,        convolve,    copy,         choose,       measure_rates,
    &device_ops,      NULL,
};

/* The process that used a card first; its children cannot. */
static std::atomic<pid_t> first_user;

static bee_status no_device(cudaError_t error, bee_error *out) {
    int driver = 0, runtime = 0;
    const pid_t user = first_user;
    if (user && user != getpid())
        return bee_fail(
            out, BEE_ERROR_DEVICE,
            "no CUDA device can be used: this process was forked from one that used the card, and CUDA does "
            "not survive a fork (multiprocessing: \"spawn\")");
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

#if !defined(BEE_EMULATE)
/* As NVML (nvml.h) has them. */
typedef struct NvmlMemory {
    unsigned long long total, free, used;
} NvmlMemory;
typedef int NvmlVoid(void), NvmlHandle(const char *, void **), NvmlMemoryInfo(void *, NvmlMemory *);

static bool ask_nvml(void *nvml, const char *bus_id, NvmlMemory *out) {
    NvmlVoid *const init = (NvmlVoid *)dlsym(nvml, "nvmlInit_v2"), *const end = (NvmlVoid *)dlsym(nvml, "nvmlShutdown");
    NvmlHandle *const handle = (NvmlHandle *)dlsym(nvml, "nvmlDeviceGetHandleByPciBusId_v2");
    NvmlMemoryInfo *const info = (NvmlMemoryInfo *)dlsym(nvml, "nvmlDeviceGetMemoryInfo");
    if (!init || !end || !handle || !info || init()) return false;
    void *device = NULL;
    const bool ok = !handle(bus_id, &device) && !info(device, out);
    end();
    return ok;
}

/* Without a context, which would take some of the memory, and keep it until the process ends. False where nobody says,
 * or where the card is a part of the one that is known by this number. */
static bool memory_without_context(const cudaDeviceProp *card, size_t *free_bytes, size_t *total_bytes) {
    char bus_id[32];
    snprintf(bus_id, sizeof bus_id, "%08x:%02x:%02x.0", (unsigned)card->pciDomainID, (unsigned)card->pciBusID,
             (unsigned)card->pciDeviceID);
    void *const nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    NvmlMemory memory = {0, 0, 0};
    const bool ok = nvml && ask_nvml(nvml, bus_id, &memory) && memory.total / 8 * 7 < card->totalGlobalMem;
    if (nvml) dlclose(nvml);
    *free_bytes = memory.free;
    *total_bytes = memory.total;
    return ok;
}
#endif

static bee_status describe(bee_device_info *out, bee_error *error) {
    int count = 0;
    cudaDeviceProp card;
    size_t free_bytes = 0, total_bytes = 0;
    *out = {};
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result == cudaSuccess && !count) result = cudaErrorNoDevice;
    if (result == cudaSuccess) result = cudaGetDeviceProperties(&card, 0);
    if (result == cudaSuccess && card.major < 8)
        return bee_fail(error, BEE_ERROR_DEVICE,
                        "%.64s has compute capability %d.%d, and 8.0 is needed (Ampere: RTX 30, A100 and newer)",
                        card.name, card.major, card.minor);
    if (result == cudaSuccess && !memory_without_context(&card, &free_bytes, &total_bytes)) {
        result = cudaSetDevice(0);
        if (result == cudaSuccess) result = cudaMemGetInfo(&free_bytes, &total_bytes);
    }
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
    if (!b->taken) {
        free(b);
        return;
    }
    if (b->stream) cudaStreamSynchronize(b->stream);
    drop_graphs(b);
    staging_free(b);
    Scratch *scratch[] = {&b->masks, &b->edits, &b->partials, &b->tickets, &b->attention, &b->choosing, &b->gates};
    for (size_t i = 0; i < sizeof scratch / sizeof *scratch; i++) give_back(b, scratch[i]->memory);
    for (int i = 0; i < 2; i++)
        if (b->staged[i]) cudaEventDestroy(b->staged[i]);
    for (int i = 0; i < N_SLOTS; i++) {
        if (b->slots[i].uploaded) cudaEventDestroy(b->slots[i].uploaded);
        if (b->slots[i].input) cudaFreeHost(b->slots[i].input);
    }
    if (b->read) cudaFreeHost(b->read);
    void *own[] = {b->input, b->output, b->drafts};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) give_back(b, own[i]);
    if (b->stream) cudaStreamDestroy(b->stream);
    delete b->taken;
    free(b);
}

static bool open_slots(Backend *b) {
    bool ok = (b->read = (OutputBlock *)take_pinned(b, sizeof *b->read));
    for (int i = 0; i < N_SLOTS; i++) {
        ok = (b->slots[i].input = (InputBlock *)take_pinned(b, sizeof(InputBlock))) && ok;
        ok = succeeded(b, cudaEventCreateWithFlags(&b->slots[i].uploaded, cudaEventDisableTiming), "opened") && ok;
    }
    for (int i = 0; i < 2; i++)
        ok = succeeded(b, cudaEventCreateWithFlags(&b->staged[i], cudaEventDisableTiming), "opened") && ok;
    b->input = (InputBlock *)take_zeroed(b, sizeof *b->input);
    b->output = (OutputBlock *)take_zeroed(b, sizeof *b->output);
    b->drafts = (int32_t *)take_zeroed(b, BEE_MAX_PASS_ROWS * sizeof *b->drafts);
    return ok && b->input && b->output && b->drafts;
}

/* Graphs hold such kernels since CUDA 12.3; code that was compiled for an older card does not wait, wherever it runs.
 * BEE_CUDA_OVERLAP=0: to measure what it brings. */
static bool overlaps_kernels() {
    const char *wanted = getenv("BEE_CUDA_OVERLAP");
    cudaDeviceProp card;
    cudaFuncAttributes code;
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver < 12030 || runtime < 12030 || (wanted && !strcmp(wanted, "0"))) return false;
    return cudaGetDeviceProperties(&card, 0) == cudaSuccess && card.major >= 9 &&
           cudaFuncGetAttributes(&code, multiply_on) == cudaSuccess && code.ptxVersion >= 90;
}

static Backend *backend_new(bee_error *error) {
    Backend *b = (Backend *)calloc(1, sizeof *b);
    pid_t nobody = 0;
    first_user.compare_exchange_strong(nobody, getpid());
    if (b) b->owner = getpid();
    if (b) b->taken = new (std::nothrow) std::unordered_map<void *, size_t>;
    const bool ok = b && b->taken && succeeded(b, cudaSetDevice(0), "opened") &&
                    succeeded(b, cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), "opened") &&
                    open_slots(b);
    cudaGetLastError();
    if (ok) b->overlaps = overlaps_kernels();
    if (ok) return b;
    if (b && b->failure == BEE_ERROR_DEVICE)
        bee_fail(error, BEE_ERROR_DEVICE, "%s", b->message);
    else
        bee_fail(error, BEE_ERROR_MEMORY, "the device has no memory left for the work space of an engine");
    backend_free(b);
    return NULL;
}

static const char *note(const Backend *b) { return b->note; }

static uint64_t bytes_taken(const Backend *b) { return b->bytes_taken; }

extern "C" __attribute__((visibility("default"))) const CudaLibrary *bee_cuda_library(void) {
    static const CudaLibrary library = {BEE_VERSION, &cuda_ops, describe, backend_new, backend_free, bytes_taken, note};
    return &library;
}
