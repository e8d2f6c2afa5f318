/* The rates that a pass runs against: reading memory, and 8-bit dot products. Both are the best of several sweeps: what
 * else the machine does can only slow one down. */
#define _GNU_SOURCE
#include "rates.h"

#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    READ_BYTES = 256 << 20, /* far more than a second-level cache holds */
    LEAST_SWEEP = 32 << 20, /* what is smaller is read several times, or the clock would show */
    PAGE = 4096,
    READ_SWEEPS = 8,
    DOT_ROUNDS = 20000,
    DOT_SWEEPS = 8
};

typedef struct Measurement {
    ThreadPool *pool;
    const Kernels *kernels;
    uint8_t *memory;
    size_t reread_share; /* of each thread */
    double start;        /* of the sweep; the first thread's */
    Rates *best;
} Measurement;

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void begin_sweep(Measurement *m, int index) {
    thread_pool_barrier(m->pool);
    if (!index) m->start = seconds_now();
}

/* `amount` is what all threads did together. */
static void end_sweep(Measurement *m, int index, double amount, double *best) {
    thread_pool_barrier(m->pool);
    if (index) return;
    const double rate = amount / (seconds_now() - m->start);
    if (rate > *best) *best = rate;
}

/* What a thread reads of `bytes` in whole pages, at least one. */
static size_t share_of(uint64_t bytes, int count) {
    const size_t share = (size_t)(bytes < READ_BYTES ? bytes : READ_BYTES) / (size_t)count / PAGE * PAGE;
    return share ? share : PAGE;
}

/* Each thread reads its own `share` bytes. */
static void measure_reading(Measurement *m, int index, uint8_t *part, size_t share, double *best) {
    const int count = thread_pool_size(m->pool), times = (int)(1 + LEAST_SWEEP / count / share);
    for (int i = 0; i < READ_SWEEPS; i++) {
        begin_sweep(m, index);
        for (int t = 0; t < times; t++) m->kernels->read_all(part, share);
        end_sweep(m, index, (double)count * times * (double)share, best);
    }
}

static void measure_all(void *argument, int index) {
    Measurement *m = argument;
    const int count = thread_pool_size(m->pool);
    const size_t share = share_of(READ_BYTES, count);
    uint8_t *part = m->memory + (size_t)index * share;
    memset(part, 0, share); /* pages that nobody wrote are all one and the same */
    measure_reading(m, index, part, share, &m->best->read_bytes_per_second);
    measure_reading(m, index, part, m->reread_share, &m->best->reread_bytes_per_second);
    for (int i = 0; i < DOT_SWEEPS; i++) {
        begin_sweep(m, index);
        const int64_t done = m->kernels->dot_products(DOT_ROUNDS);
        end_sweep(m, index, (double)count * (double)done, &m->best->multiply_adds_per_second);
    }
}

bool rates_measure(ThreadPool *pool, const Kernels *kernels, uint64_t reread_bytes, Rates *out) {
    void *memory = mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
#ifdef MADV_HUGEPAGE
    madvise(memory, READ_BYTES, MADV_HUGEPAGE); /* as the weights have them */
#endif
    *out = (Rates){0, 0, 0};
    Measurement measurement = {pool, kernels, memory, share_of(reread_bytes, thread_pool_size(pool)), 0, out};
    thread_pool_run(pool, measure_all, &measurement);
    munmap(memory, READ_BYTES);
    return true;
}
