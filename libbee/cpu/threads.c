#define _GNU_SOURCE
#include "threads.h"

#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

/* A barrier comes within microseconds when every thread has a core, and while a generation is under way a pass follows
 * the last within some hundred microseconds: sleeping and being woken would cost as much. So a waiter looks for a while
 * before it sleeps, and after the first few microseconds it lets others have the core in between. */
enum { LOOKS = 64, PATIENCE_NS = 300000 };

/* A number that threads wait on: first awake, then asleep. */
typedef struct Gate {
    _Alignas(64) atomic_uint value;
    atomic_int sleepers;
    pthread_mutex_t mutex; /* guards only the sleep */
    pthread_cond_t moved;
} Gate;

typedef struct Thread {
    ThreadPool *pool;
    pthread_t handle;
    int index;
} Thread;

struct ThreadPool {
    int count;
    bool patient;
    Gate runs;                       /* number of runs begun */
    Gate generation;                 /* number of barriers passed */
    _Alignas(64) atomic_int arrived; /* at the next barrier */
    atomic_bool closing;
    void (*body)(void *, int);
    void *argument;
    Thread threads[];
};

static void gate_init(Gate *gate) {
    atomic_init(&gate->value, 0);
    atomic_init(&gate->sleepers, 0);
    pthread_mutex_init(&gate->mutex, NULL);
    pthread_cond_init(&gate->moved, NULL);
}

static void gate_destroy(Gate *gate) {
    pthread_cond_destroy(&gate->moved);
    pthread_mutex_destroy(&gate->mutex);
}

/* What was written before is visible to those who wait. */
static void gate_advance(Gate *gate) {
    atomic_fetch_add(&gate->value, 1);
    /* A waiter counts itself before it looks at the value for the last time: one of the two sees the other. */
    if (!atomic_load(&gate->sleepers)) return;
    pthread_mutex_lock(&gate->mutex);
    pthread_cond_broadcast(&gate->moved);
    pthread_mutex_unlock(&gate->mutex);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static bool gate_look(Gate *gate, unsigned old) {
    for (int i = 0; i < LOOKS; i++) {
        if (atomic_load_explicit(&gate->value, memory_order_acquire) != old) return true;
        PAUSE();
    }
    return false;
}

static void gate_wait(Gate *gate, unsigned old, bool patient) {
    if (patient) {
        if (gate_look(gate, old)) return;
        for (const int64_t end = now_ns() + PATIENCE_NS; now_ns() < end; sched_yield())
            if (gate_look(gate, old)) return;
    }
    pthread_mutex_lock(&gate->mutex);
    atomic_fetch_add(&gate->sleepers, 1);
    while (atomic_load(&gate->value) == old) pthread_cond_wait(&gate->moved, &gate->mutex);
    atomic_fetch_sub(&gate->sleepers, 1);
    pthread_mutex_unlock(&gate->mutex);
}

/* The CPU quota of cgroup v2 in cores, or 0 where there is none. */
static int cgroup_cores(void) {
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!file) return 0;
    long quota = 0, period = 0;
    const int fields = fscanf(file, "%ld %ld", &quota, &period);
    fclose(file);
    return fields == 2 && quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int threads_available(void) {
    int cores = 0;
#if defined(__linux__)
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) cores = CPU_COUNT(&set);
#endif
    if (cores < 1) cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    const int limit = cgroup_cores();
    if (limit && limit < cores) cores = limit;
    return cores < 1 ? 1 : cores;
}

void thread_pool_barrier(ThreadPool *pool) {
    if (pool->count == 1) return;
    const unsigned generation = atomic_load_explicit(&pool->generation.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) < pool->count - 1) {
        gate_wait(&pool->generation, generation, pool->patient);
        return;
    }
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    gate_advance(&pool->generation);
}

static void *thread_main(void *argument) {
    const Thread *self = argument;
    ThreadPool *pool = self->pool;
    fesetenv(FE_DFL_ENV); /* not the creator's */
    for (unsigned run = 0;; run++) {
        gate_wait(&pool->runs, run, pool->patient);
        if (atomic_load(&pool->closing)) return NULL;
        pool->body(pool->argument, self->index);
        thread_pool_barrier(pool);
    }
}

ThreadPool *thread_pool_new(int count) {
    ThreadPool *pool = aligned_alloc(64, (sizeof *pool + sizeof(Thread) * (size_t)count + 63) / 64 * 64);
    if (!pool) return NULL;
    gate_init(&pool->runs);
    gate_init(&pool->generation);
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->closing, false);
    /* With more threads than cores, whoever looks keeps the awaited thread from running. */
    pool->patient = count <= threads_available();
    pool->count = 1;
    for (int i = 1; i < count; i++) {
        pool->threads[i] = (Thread){.pool = pool, .index = i};
        if (pthread_create(&pool->threads[i].handle, NULL, thread_main, &pool->threads[i])) break;
        pool->count++;
    }
    return pool;
}

void thread_pool_free(ThreadPool *pool) {
    if (!pool) return;
    atomic_store(&pool->closing, true);
    gate_advance(&pool->runs);
    for (int i = 1; i < pool->count; i++) pthread_join(pool->threads[i].handle, NULL);
    gate_destroy(&pool->runs);
    gate_destroy(&pool->generation);
    free(pool);
}

int thread_pool_size(const ThreadPool *pool) { return pool->count; }

void thread_pool_run(ThreadPool *pool, void (*body)(void *, int), void *argument) {
    /* The caller may round otherwise or flush small numbers to zero, as code built with -ffast-math asks the processor
     * to do: the numbers would depend on which thread computes them. */
    fenv_t callers;
    fegetenv(&callers);
    fesetenv(FE_DFL_ENV);
    pool->body = body;
    pool->argument = argument;
    if (pool->count > 1) gate_advance(&pool->runs);
    body(argument, 0);
    thread_pool_barrier(pool);
    fesetenv(&callers);
}
