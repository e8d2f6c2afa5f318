/* See emulate.h. */
#include "device.h"
#include "types/float16.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <unistd.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

/* Variables in shared memory, of all kernels; there may be none. */
extern "C" unsigned char __start_bee_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_bee_shared[] __attribute__((weak, visibility("hidden")));

/* ---- fibers ------------------------------------------------------------------------------------- */

namespace {

/* Stacks begin at odd distances: equal ones would share the few lines of the cache that their addresses fall on. */
enum { STACK_BYTES = 64 << 10, MOST_SHIFT = 16 << 10, WARP = 32, MOST_EXCHANGED = 32 };

#if defined(__x86_64__)
/* Saves what a called function must keep, on the stack, and goes on where another fiber did so. */
struct Context {
    void *stack = nullptr;
};
extern "C" void bee_emulated_switch(void **save, void *load);
__asm__(".text\n.globl bee_emulated_switch\n.hidden bee_emulated_switch\n.type bee_emulated_switch,@function\n"
        "bee_emulated_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
void switch_to(Context &from, Context &to) { bee_emulated_switch(&from.stack, to.stack); }
void prepare(Context &c, unsigned char *stack, void (*entry)()) {
    void **top = (void **)(((uintptr_t)stack + STACK_BYTES) & ~(uintptr_t)15);
    *--top = nullptr; /* as if called: the stack is 8 bytes off a multiple of 16 when a function begins */
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    c.stack = top;
}
#else
struct Context {
    ucontext_t context;
};
void switch_to(Context &from, Context &to) { swapcontext(&from.context, &to.context); }
void prepare(Context &c, unsigned char *stack, void (*entry)()) {
    getcontext(&c.context);
    c.context.uc_stack.ss_sp = stack;
    c.context.uc_stack.ss_size = STACK_BYTES;
    c.context.uc_link = nullptr;
    makecontext(&c.context, entry, 0);
}
#endif

/* 16 bytes on their way into shared memory, of the thread's so manieth group. */
struct Copy {
    void *to;
    const void *from;
    unsigned group;
};

struct Fiber {
    Context context;
    EmulatedThread thread;
    bool done;
    bool fenced;        /* since it met the others */
    unsigned exchanges; /* so far: even and odd ones use different buffers */
    unsigned groups;    /* of copies */
    std::vector<Copy> copies;
};

/* Meets of a group of threads: who comes waits until as many are there as are alive. */
struct Meeting {
    int arrived, members;
    unsigned round;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<unsigned char *> stacks;
    std::vector<int> order, place; /* who runs after whom, and where a thread stands in it */
    std::vector<Meeting> warps;
    Meeting all;
    std::vector<unsigned char> exchanged; /* [warp][2][32 lanes x MOST_EXCHANGED] */
    std::vector<unsigned char> shared;
    Context outside;
    int current, n, n_alive;
    bool late;   /* copies arrive when they are waited for */
    bool early;  /* the grid before has not run yet */
    int n_early; /* threads that wait for it */
    const std::function<void()> *kernel;
    ~Block() {
        for (unsigned char *stack : stacks) free(stack);
    }
};

Block *running;

void go_to(Block *b, int next) {
    const int from = b->current;
    if (next == from) return;
    b->current = next;
    emulated_thread = &b->fibers[next].thread;
    switch_to(b->fibers[from].context, b->fibers[next].context);
}

void yield(Block *b) {
    int at = b->place[b->current];
    do at = at + 1 == b->n ? 0 : at + 1;
    while (b->fibers[b->order[at]].done);
    go_to(b, b->order[at]);
}

void meet(Block *b, Meeting &m) {
    const unsigned round = m.round;
    if (++m.arrived == m.members) {
        m.arrived = 0;
        m.round++;
        return;
    }
    long waited = 0;
    while (m.round == round) {
        yield(b);
        if (++waited > 100000000) {
            fprintf(stderr, "emulated CUDA: threads of a block wait for each other forever\n");
            abort();
        }
    }
}

/* A thread that has ended is waited for no longer. */
void leave(Meeting &m) {
    if (--m.members && m.arrived == m.members) {
        m.arrived = 0;
        m.round++;
    }
}

void fiber_main() {
    Block *b = running;
    const int me = b->current;
    (*b->kernel)();
    b->fibers[me].done = true;
    leave(b->all);
    leave(b->warps[me / WARP]);
    if (--b->n_alive)
        yield(b);
    else
        switch_to(b->fibers[me].context, b->outside);
    abort();
}

void arrange(Block *b, unsigned seed) {
    for (int i = 0; i < b->n; i++) b->order[i] = emulated_order == 1 ? b->n - 1 - i : i;
    uint64_t state = seed * 0x9e3779b97f4a7c15u + (unsigned)emulated_order;
    for (int i = b->n - 1; emulated_order > 1 && i > 0; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(b->order[i], b->order[(state >> 33) % (unsigned)(i + 1)]);
    }
    for (int i = 0; i < b->n; i++) b->place[b->order[i]] = i;
}

/* Until all threads have ended, or, of an early block, wait for the grid before. */
void go_on(Block *b) {
    running = b;
    emulated_thread = &b->fibers[b->current].thread;
    switch_to(b->outside, b->fibers[b->current].context);
    running = nullptr;
}

void prepare_block(Block *b, dim3 grid, dim3 block, dim3 index) {
    b->n = b->n_alive = (int)(block.x * block.y * block.z);
    b->fibers.resize(b->n);
    b->order.resize(b->n);
    b->place.resize(b->n);
    b->warps.assign((b->n + WARP - 1) / WARP, {0, WARP, 0});
    if (b->n % WARP) b->warps.back().members = b->n % WARP;
    b->all = {0, b->n, 0};
    b->exchanged.resize(b->warps.size() * 2 * WARP * MOST_EXCHANGED);
    while ((int)b->stacks.size() < b->n) b->stacks.push_back((unsigned char *)malloc(STACK_BYTES + MOST_SHIFT));
    memset(b->shared.data(), 0xff, b->shared.size());
    if (__start_bee_shared) memset(__start_bee_shared, 0xff, (size_t)(__stop_bee_shared - __start_bee_shared));
    static unsigned turn;
    b->late = turn++ % 2;
    arrange(b, index.x + 977 * index.y + 7919 * index.z);
    for (int i = 0; i < b->n; i++) {
        Fiber &f = b->fibers[i];
        f.thread = {dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y)), index, block, grid};
        f.done = f.fenced = false;
        f.exchanges = f.groups = 0;
        f.copies.clear();
        prepare(f.context, b->stacks[i] + i * 320 % MOST_SHIFT, fiber_main);
    }
    b->current = b->order[0];
    b->n_early = 0;
}

} // namespace

EmulatedThread *emulated_thread;
int emulated_order;

unsigned char *emulated_shared_memory() {
    return (unsigned char *)(((uintptr_t)running->shared.data() + 127) & ~(uintptr_t)127);
}

unsigned emulated_lane() { return (unsigned)running->current % WARP; }

void __syncthreads() {
    running->fibers[running->current].fenced = false;
    meet(running, running->all);
}

void __threadfence() { running->fibers[running->current].fenced = true; }

static void fail(const char *what) {
    fprintf(stderr, "emulated CUDA: %s\n", what);
    abort();
}

void emulated_copy_async(void *shared, const void *global) {
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16) fail("a copy into shared memory is not aligned");
    Fiber &me = running->fibers[running->current];
    if (running->late)
        me.copies.push_back({shared, global, me.groups});
    else
        memcpy(shared, global, 16);
}

void emulated_copies_commit() { running->fibers[running->current].groups++; }

void emulated_copies_wait(int left) {
    Fiber &me = running->fibers[running->current];
    size_t n = 0;
    for (; n < me.copies.size() && me.copies[n].group + (unsigned)left < me.groups; n++)
        memcpy(me.copies[n].to, me.copies[n].from, 16);
    me.copies.erase(me.copies.begin(), me.copies.begin() + (long)n);
}

void __syncwarp(unsigned) { meet(running, running->warps[running->current / WARP]); }

const void *emulated_exchange(const void *mine, size_t bytes) {
    Block *b = running;
    if (bytes > MOST_EXCHANGED) abort();
    const int me = b->current, warp = me / WARP;
    unsigned char *all =
        b->exchanged.data() + (size_t)(2 * warp + b->fibers[me].exchanges++ % 2) * WARP * MOST_EXCHANGED;
    memcpy(all + (size_t)(me % WARP) * bytes, mine, bytes);
    meet(b, b->warps[warp]);
    return all;
}

unsigned __ballot_sync(unsigned, int predicate) {
    const int *all = (const int *)emulated_exchange(&predicate, sizeof predicate);
    unsigned votes = 0;
    for (int i = 0; i < WARP; i++) votes |= (unsigned)(all[i] != 0) << i;
    return votes;
}

void wait_for_grid_before() {
    Block *b = running;
    b->n_early++;
    while (b->early) {
        if (b->n_early < b->n_alive) {
            yield(b);
            continue;
        }
        switch_to(b->fibers[b->current].context, b->outside);
        b->early = false;
    }
}

/* ---- the runtime library ------------------------------------------------------------------------ */

/* What a stream does: a grid, or something else. */
struct Task {
    std::function<void()> work; /* of a grid: the kernel */
    bool is_grid, overlaps;
    dim3 grid, block;
    size_t shared_bytes;
};
typedef std::vector<Task> Work;
struct EmulatedGraph {
    Work work;
};
struct EmulatedStream {
    Work work;
    EmulatedGraph *captured;
};
struct EmulatedEvent {
    EmulatedStream *stream;
    size_t after;
};

static std::mutex streams_lock;
static std::set<EmulatedStream *> streams;

/* The places of three blocks: one that runs, one that began early and goes on in the grid that runs, and the early one
 * of the grid behind it. */
static std::mutex one_at_a_time;
static Block running_block, early_blocks[2];

static unsigned n_blocks_of(const Task &task) { return task.grid.x * task.grid.y * task.grid.z; }

static void prepare_block(Block *b, const Task &task, unsigned index) {
    const dim3 grid = task.grid;
    b->kernel = &task.work;
    b->shared.resize(task.shared_bytes + 128);
    prepare_block(b, grid, task.block, dim3(index % grid.x, index / grid.x % grid.y, index / (grid.x * grid.y)));
}

/* Of a grid that may overlap with the one before it, a block begins before that one: what it does until it waits must
 * not need it. */
static unsigned begin_early(Block *b, const Task &task) {
    static unsigned turn;
    const unsigned index = turn++ % n_blocks_of(task);
    prepare_block(b, task, index);
    b->early = true;
    go_on(b);
    if (b->n_alive) return index;
    fprintf(stderr, "emulated CUDA: a kernel that may overlap does not wait for the one before it\n");
    abort();
}

/* early: a block that has begun, and its index. */
static void run_grid(const Task &task, Block *early, unsigned early_index) {
    for (unsigned i = 0; i < n_blocks_of(task); i++) {
        const bool begun = early && i == early_index;
        if (!begun) prepare_block(&running_block, task, i);
        go_on(begun ? early : &running_block);
    }
}

static void finish(EmulatedStream *stream) {
    const std::lock_guard<std::mutex> guard(one_at_a_time);
    Work work;
    std::swap(work, stream->work);
    Block *early = nullptr;
    unsigned early_index = 0;
    for (size_t i = 0; i < work.size(); i++) {
        Block *const next = i + 1 < work.size() && work[i + 1].overlaps ? &early_blocks[i % 2] : nullptr;
        const unsigned next_index = next ? begin_early(next, work[i + 1]) : 0;
        if (work[i].is_grid)
            run_grid(work[i], early, early_index);
        else
            work[i].work();
        early = next;
        early_index = next_index;
    }
}

static void finish_all() {
    std::set<EmulatedStream *> all;
    {
        const std::lock_guard<std::mutex> guard(streams_lock);
        all = streams;
    }
    for (EmulatedStream *stream : all) finish(stream);
}

static void enqueue(cudaStream_t stream, Task task) {
    (stream->captured ? stream->captured->work : stream->work).push_back(std::move(task));
}

static void enqueue(cudaStream_t stream, std::function<void()> work) {
    enqueue(stream, Task{std::move(work), false, false, {}, {}, 0});
}

void emulated_enqueue_grid(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, bool overlaps,
                           std::function<void()> kernel) {
    enqueue(stream, Task{std::move(kernel), true, overlaps, grid, block, shared_bytes});
}

/* BEE_EMULATED_CAPABILITY: "major.minor"; _MEMORY: bytes; _DEVICES: how many, -1 for a driver that is missing or older
 * than _DRIVER (as cudaDriverGetVersion has it); _GRAPHS: that there is memory for; _FAILURE: see wait_for;
 * _FAILED_LAUNCH: the so manieth launch since this was set fails; _REFUSED_OVERLAP: of kernels that may overlap, 1: the
 * launch, 2: the end of a capture, 3: the graph; _CONTEXT: bytes that a process takes as soon as it uses the card. */
static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

static thread_local cudaError_t last_error;
static size_t taken;
static std::map<const unsigned char *, size_t> allocations;
static std::mutex memory_lock;

void emulated_check_fence(const void *at) {
    if (running->fibers[running->current].fenced) return;
    const std::lock_guard<std::mutex> guard(memory_lock);
    const auto behind = allocations.upper_bound((const unsigned char *)at);
    if (behind == allocations.begin()) return;
    const auto found = std::prev(behind);
    if ((const unsigned char *)at < found->first + found->second) fail("a thread counts blocks without a fence");
}
static size_t total_memory() { return (size_t)setting("BEE_EMULATED_MEMORY", 4l << 30); }

/* Of this process, from its first use of the card to its end; a child has none and cannot get one. */
static std::atomic<pid_t> context_owner;
static cudaError_t use_context() {
    pid_t nobody = 0;
    if (context_owner.compare_exchange_strong(nobody, getpid())) {
        const std::lock_guard<std::mutex> guard(memory_lock);
        taken += (size_t)setting("BEE_EMULATED_CONTEXT", 0);
    }
    return context_owner == getpid() ? cudaSuccess : last_error = cudaErrorInitializationError;
}
static bool is_forked() { return context_owner && context_owner != getpid(); }

cudaError_t cudaGetDeviceCount(int *count) {
    if (is_forked()) return last_error = cudaErrorInitializationError;
    *count = (int)setting("BEE_EMULATED_DEVICES", 1);
    return *count < 0 ? cudaErrorInsufficientDriver : *count ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaSetDevice(int) { return use_context(); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int) {
    *out = cudaDeviceProp{"emulated device", total_memory(), 9, 0, 4};
    if (const char *capability = getenv("BEE_EMULATED_CAPABILITY"))
        sscanf(capability, "%d.%d", &out->major, &out->minor);
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = (int)setting("BEE_EMULATED_DRIVER", 13000);
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
bool memory_without_context(const cudaDeviceProp *, size_t *free_bytes, size_t *total_bytes) {
    const std::lock_guard<std::mutex> guard(memory_lock);
    *total_bytes = total_memory();
    *free_bytes = *total_bytes > taken ? *total_bytes - taken : 0;
    return true;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    const cudaError_t error = use_context();
    memory_without_context(nullptr, free_bytes, total_bytes);
    return error;
}
/* Large pieces have pages of their own. */
static size_t in_pages(size_t bytes) {
    const size_t page = 2 << 20;
    return bytes < page / 2 ? bytes : (bytes + page - 1) / page * page;
}
/* The size stands in front; behind the end lies nothing, so that a sanitizer sees what reads on. */
enum { MEMORY_HEAD = 256 };
cudaError_t cudaMalloc(void **out, size_t bytes) {
    *out = nullptr;
    if (use_context() != cudaSuccess) return last_error;
    const std::lock_guard<std::mutex> guard(memory_lock);
    if (taken + in_pages(bytes) > total_memory()) return last_error = cudaErrorMemoryAllocation;
    unsigned char *memory =
        (unsigned char *)aligned_alloc(MEMORY_HEAD, (bytes + 2 * MEMORY_HEAD - 1) / MEMORY_HEAD * MEMORY_HEAD);
    if (!memory) return cudaErrorMemoryAllocation;
    memcpy(memory, &bytes, sizeof bytes);
    memset(memory + MEMORY_HEAD, 0xff, bytes);
    taken += in_pages(bytes);
    allocations[memory + MEMORY_HEAD] = bytes;
    *out = memory + MEMORY_HEAD;
    return cudaSuccess;
}
cudaError_t cudaFree(void *memory) {
    if (!memory) return cudaSuccess;
    finish_all();
    const std::lock_guard<std::mutex> guard(memory_lock);
    size_t bytes;
    memcpy(&bytes, (unsigned char *)memory - MEMORY_HEAD, sizeof bytes);
    taken -= in_pages(bytes);
    allocations.erase((unsigned char *)memory);
    free((unsigned char *)memory - MEMORY_HEAD);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned) {
    *out = calloc(1, bytes ? bytes : 1);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *memory) {
    free(memory);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    enqueue(stream, [=] { memmove(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream) {
    enqueue(stream, [=] { memset(at, value, bytes); });
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    const std::lock_guard<std::mutex> guard(streams_lock);
    streams.insert(*out = new EmulatedStream{});
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    finish(stream);
    const std::lock_guard<std::mutex> guard(streams_lock);
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}
/* After so many waits a kernel has read what is not its own: from then on the device does nothing. */
static cudaError_t wait_for(cudaStream_t stream) {
    static long waits;
    const long most = setting("BEE_EMULATED_FAILURE", 0);
    if (!most) waits = 0;
    if (most && ++waits > most) {
        stream->work.clear();
        return last_error = cudaErrorIllegalAddress;
    }
    finish(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait_for(stream); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return wait_for(stream); }
/* Work of the other stream that this one must wait for is done now. */
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned) {
    if (event->stream) finish(event->stream);
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) { return *out = new EmulatedEvent{}, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return event->stream = stream, cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event->stream) finish(event->stream);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) {
    return *milliseconds = 1, cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    stream->captured = new EmulatedGraph{};
    return cudaSuccess;
}
static bool has_overlap(const Work &work) {
    for (const Task &task : work)
        if (task.overlaps) return true;
    return false;
}
static bool refuses_overlap(long where) { return setting("BEE_EMULATED_REFUSED_OVERLAP", 0) == where; }
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
    *out = stream->captured;
    stream->captured = nullptr;
    if (!has_overlap((*out)->work) || !refuses_overlap(2)) return cudaSuccess;
    delete *out;
    *out = nullptr;
    return last_error = cudaErrorStreamCaptureInvalidated;
}
static std::atomic<long> n_graphs;
enum { KERNEL_BYTES = 1 << 10 }; /* of a graph */
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
    if (n_graphs >= setting("BEE_EMULATED_GRAPHS", LONG_MAX)) return last_error = cudaErrorMemoryAllocation;
    if (has_overlap(graph->work) && refuses_overlap(3)) return last_error = cudaErrorNotSupported;
    n_graphs++;
    *out = new EmulatedGraph(*graph);
    const std::lock_guard<std::mutex> guard(memory_lock);
    taken += graph->work.size() * KERNEL_BYTES;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    const std::lock_guard<std::mutex> guard(memory_lock);
    taken -= graph->work.size() * KERNEL_BYTES;
    return n_graphs--, delete graph, cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    for (const auto &one : graph->work) stream->work.push_back(one);
    return cudaSuccess;
}
static std::mutex allowed_lock;
static std::map<const void *, int> allowed_shared;
static std::set<const void *> preferring; /* a split of shared memory and cache */

static bool launch_fails() {
    static long launches, counted_for;
    const long failing = setting("BEE_EMULATED_FAILED_LAUNCH", 0);
    launches = failing == counted_for ? launches + 1 : 1;
    counted_for = failing;
    return failing && launches == failing;
}

cudaError_t emulated_launch(const void *kernel, dim3 grid, dim3 block, size_t shared_bytes, bool overlaps) {
    enum { OWN_VARIABLES = 1024, USUAL = 48 << 10 };
    const std::lock_guard<std::mutex> guard(allowed_lock);
    if (launch_fails()) return last_error = cudaErrorNoKernelImageForDevice;
    if (setting("BEE_CUDA_CARVEOUT", 0) && !preferring.count(kernel)) return last_error = cudaErrorInvalidValue;
    if (overlaps && refuses_overlap(1)) return last_error = cudaErrorNotSupported;
    const auto found = allowed_shared.find(kernel);
    const size_t most = found == allowed_shared.end() ? (size_t)USUAL - OWN_VARIABLES : (size_t)found->second;
    const bool ok = grid.x && grid.y && grid.z && grid.y <= 65535 && grid.z <= 65535 && block.x && block.y && block.z &&
                    block.x * block.y * block.z <= 1024 && shared_bytes <= most;
    return ok ? cudaSuccess : last_error = cudaErrorInvalidValue;
}
cudaError_t emulated_function_attribute(const void *kernel, int attribute, int value) {
    const std::lock_guard<std::mutex> guard(allowed_lock);
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout && value >= -1 && value <= 100)
        return preferring.insert(kernel), cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > (99 << 10) - 1024)
        return last_error = cudaErrorInvalidValue;
    allowed_shared[kernel] = value;
    return cudaSuccess;
}
cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError: return "cudaErrorInitializationError";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    default: return "cudaErrorEmulated";
    }
}
const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    default: return "emulated error";
    }
}

/* ---- device.h ----------------------------------------------------------------------------------- */

float emulated_float_from_half(uint16_t half) { return float_from_f16(half); }
uint16_t emulated_half_from_float(float value) { return f16_from_float(value); }

namespace {

/* A lane's registers of both operands. */
struct Fragments {
    unsigned a[4], b[2];
};

const Fragments *exchange(const unsigned *a, int n_a, const unsigned *b, int n_b) {
    Fragments mine = {};
    memcpy(mine.a, a, n_a * sizeof *a);
    memcpy(mine.b, b, n_b * sizeof *b);
    return (const Fragments *)emulated_exchange(&mine, sizeof mine);
}

/* An element of a register. */
template <class T> T element(const unsigned *registers, int index) {
    T value;
    memcpy(&value, (const unsigned char *)registers + (size_t)index * sizeof value, sizeof value);
    return value;
}

void multiply_s8(int *d, const Fragments *all, int depth, const int *c) {
    const int lane = (int)emulated_lane(), g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        int sum = c[i];
        for (int k = 0; k < depth; k++) {
            const int quad = k % 16 / 4, half = k / 16, at = k % 4;
            sum += element<int8_t>(&all[4 * (row % 8) + quad].a[2 * half + row / 8], at) *
                   element<int8_t>(&all[4 * column + quad].b[half], at);
        }
        d[i] = sum;
    }
}

/* How a generation adds 16-bit products: so many at a time, with what was there before, each cut off `bits` behind the
 * leading bit that the largest may have, and the sum cut to float. What is known of it comes from experiments: Fasi,
 * Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores" (PeerJ CS 7:e330, 2021), and Khattak,
 * Mikaitis, "Accurate models of NVIDIA tensor cores" (arXiv 2512.07004, 2025). terms 0: one after the other, rounded.
 */
struct Adder {
    const char *name;
    int terms, bits;
};
const Adder adders[] = {{"exact", 0, 0}, {"ampere", 8, 24}, {"hopper", 16, 25}};

const Adder &adder() {
    static const Adder *found = [] {
        const char *wanted = getenv("BEE_EMULATED_SUMS");
        if (!wanted) return &adders[0];
        for (const Adder &one : adders)
            if (!strcmp(one.name, wanted)) return &one;
        fail("BEE_EMULATED_SUMS is none of exact, ampere, hopper");
        return &adders[0];
    }();
    return *found;
}

float add_aligned(const float *a, const float *b, int n, float c, int bits) {
    bool finite = std::isfinite(c);
    for (int i = 0; i < n; i++) finite = finite && std::isfinite(a[i]) && std::isfinite(b[i]);
    if (!finite) { /* what is not finite stays so */
        for (int i = 0; i < n; i++) c += a[i] * b[i];
        return c;
    }
    int largest = c != 0 ? std::ilogb(c) : INT_MIN;
    for (int i = 0; i < n; i++)
        if (a[i] != 0 && b[i] != 0) largest = std::max(largest, std::ilogb(a[i]) + std::ilogb(b[i]));
    if (largest == INT_MIN) return c;
    double sum = std::trunc(std::ldexp((double)c, bits - largest));
    for (int i = 0; i < n; i++) sum += std::trunc(std::ldexp((double)a[i] * (double)b[i], bits - largest));
    const double exact = std::ldexp(sum, largest - bits);
    const float rounded = (float)exact;
    return std::fabs((double)rounded) > std::fabs(exact) ? std::nextafter(rounded, 0.0f) : rounded;
}

template <class Convert> void multiply_16(float *d, const Fragments *all, const float *c, Convert to_float) {
    const int lane = (int)emulated_lane(), g = lane / 4, t = lane % 4;
    const Adder &how = adder();
    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        float a[16], b[16], sum = c[i];
        for (int k = 0; k < 16; k++) {
            const int pair = k % 8 / 2, half = k / 8, at = k % 2;
            a[k] = to_float(element<uint16_t>(&all[4 * (row % 8) + pair].a[2 * half + row / 8], at));
            b[k] = to_float(element<uint16_t>(&all[4 * column + pair].b[half], at));
        }
        for (int k = 0; how.terms && k < 16; k += how.terms) sum = add_aligned(a + k, b + k, how.terms, sum, how.bits);
        for (int k = 0; !how.terms && k < 16; k++) sum += a[k] * b[k];
        d[i] = sum;
    }
}

} // namespace

void mma_s8_k32(int *d, const unsigned *a, const unsigned *b, const int *c) {
    multiply_s8(d, exchange(a, 4, b, 2), 32, c);
}
void mma_s8_k16(int *d, const unsigned *a, unsigned b, const int *c) { multiply_s8(d, exchange(a, 2, &b, 1), 16, c); }
void mma_f16_k16(float *d, const unsigned *a, const unsigned *b, const float *c) {
    multiply_16(d, exchange(a, 4, b, 2), c, float_from_f16);
}
void mma_bf16_k16(float *d, const unsigned *a, const unsigned *b, const float *c) {
    multiply_16(d, exchange(a, 4, b, 2), c, float_from_bf16);
}
