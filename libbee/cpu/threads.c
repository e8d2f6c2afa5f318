#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

/* Rounds of PAUSE before a waiter gives its core away. A barrier comes within microseconds when every thread has a
 * core; a run follows the last within tens of microseconds while a generation is under way. */
enum { BARRIER_SPINS = 2000, RUN_SPINS = 2000 };

typedef struct Thread {
    ThreadPool *pool;
    pthread_t handle;
    int index;
} Thread;

struct ThreadPool {
    int count;
    int barrier_spins;
    /* barrier: arrivals of this generation, and the number of generations passed */
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint generation;
    /* run: number of runs begun, and threads still busy with the current one */
    _Alignas(64) atomic_uint runs;
    atomic_int busy;
    atomic_bool closing;
    void (*body)(void *, int);
    void *argument;
    pthread_mutex_t mutex; /* guards only the sleep on `wake` */
    pthread_cond_t wake;
    Thread threads[];
};

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
    const unsigned generation = atomic_load_explicit(&pool->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->count - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->generation, generation + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&pool->generation, memory_order_acquire) == generation; spins++) {
        if (spins < pool->barrier_spins)
            PAUSE();
        else
            sched_yield(); /* the thread that is awaited may need this core */
    }
}

/* Waits for a run after `last`, first awake, then asleep. Returns false when the pool closes. */
static bool wait_for_run(ThreadPool *pool, unsigned last) {
    for (int spins = 0; spins < RUN_SPINS; spins++) {
        if (atomic_load_explicit(&pool->runs, memory_order_acquire) != last) return true;
        if (atomic_load_explicit(&pool->closing, memory_order_acquire)) return false;
        PAUSE();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load(&pool->runs) == last && !atomic_load(&pool->closing))
        pthread_cond_wait(&pool->wake, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    return !atomic_load(&pool->closing);
}

static void *thread_main(void *argument) {
    Thread *self = argument;
    ThreadPool *pool = self->pool;
    for (unsigned seen = 0; wait_for_run(pool, seen);) {
        seen = atomic_load_explicit(&pool->runs, memory_order_acquire);
        pool->body(pool->argument, self->index);
        atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_release);
    }
    return NULL;
}

static void wake_all(ThreadPool *pool) {
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

ThreadPool *thread_pool_new(int count) {
    ThreadPool *pool = aligned_alloc(64, (sizeof *pool + sizeof(Thread) * (size_t)count + 63) / 64 * 64);
    if (!pool) return NULL;
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->generation, 0);
    atomic_init(&pool->runs, 0);
    atomic_init(&pool->busy, 0);
    atomic_init(&pool->closing, false);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->count = 1;
    for (int i = 1; i < count; i++) {
        pool->threads[i] = (Thread){.pool = pool, .index = i};
        if (pthread_create(&pool->threads[i].handle, NULL, thread_main, &pool->threads[i])) break;
        pool->count++;
    }
    pool->barrier_spins = pool->count > threads_available() ? 0 : BARRIER_SPINS;
    return pool;
}

void thread_pool_free(ThreadPool *pool) {
    if (!pool) return;
    atomic_store(&pool->closing, true);
    wake_all(pool);
    for (int i = 1; i < pool->count; i++) pthread_join(pool->threads[i].handle, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

int thread_pool_size(const ThreadPool *pool) { return pool->count; }

void thread_pool_run(ThreadPool *pool, void (*body)(void *, int), void *argument) {
    pool->body = body;
    pool->argument = argument;
    if (pool->count > 1) {
        atomic_store_explicit(&pool->busy, pool->count - 1, memory_order_relaxed);
        atomic_fetch_add(&pool->runs, 1);
        wake_all(pool);
    }
    body(argument, 0);
    for (int spins = 0; atomic_load_explicit(&pool->busy, memory_order_acquire) > 0; spins++) {
        if (spins < pool->barrier_spins)
            PAUSE();
        else
            sched_yield();
    }
}
