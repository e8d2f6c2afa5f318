/* Tests of the thread pool: every thread takes part in every run, and barriers order what they write. */
#include "check.h"
#include "cpu/threads.h"

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

enum { MOST_THREADS = 16, ROUNDS = 20 };

typedef struct Job {
    ThreadPool *pool;
    int value[MOST_THREADS]; /* plain: only the barriers make the accesses safe */
    atomic_int wrong, visits[MOST_THREADS];
} Job;

/* Each thread writes its own cell, waits, and reads everybody's. */
static void exchange(void *argument, int index) {
    Job *job = argument;
    const int count = thread_pool_size(job->pool);
    atomic_fetch_add(&job->visits[index], 1);
    for (int round = 1; round <= ROUNDS; round++) {
        job->value[index] = round * 100 + index;
        if ((index + round) % 5 == 0) sched_yield(); /* arrivals in changing order */
        thread_pool_barrier(job->pool);
        for (int i = 0; i < count; i++)
            if (job->value[i] != round * 100 + i) atomic_fetch_add(&job->wrong, 1);
        thread_pool_barrier(job->pool);
    }
}

static void visit(void *argument, int index) {
    Job *job = argument;
    atomic_fetch_add(&job->visits[index], 1);
    job->value[index]++; /* runs are ordered, so a plain counter will do */
}

static void test_pool(int threads) {
    ThreadPool *pool = thread_pool_new(threads);
    if (!CHECK(pool != NULL)) return;
    const int count = thread_pool_size(pool);
    CHECK_EQ(count, threads);
    Job job = {.pool = pool};
    thread_pool_run(pool, exchange, &job);
    thread_pool_run(pool, exchange, &job);
    CHECK_EQ(atomic_load(&job.wrong), 0);
    for (int i = 0; i < MOST_THREADS; i++) CHECK_EQ(atomic_load(&job.visits[i]), i < count ? 2 : 0);

    job = (Job){.pool = pool};
    for (int run = 0; run < 50; run++) {
        /* Longer than a thread waits awake, now and then: it must be woken. */
        if (run % 10 == 9) nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
        thread_pool_run(pool, visit, &job);
        int visits = 0;
        for (int i = 0; i < count; i++) visits += job.value[i]; /* all have returned: no race */
        CHECK_EQ(visits, (run + 1) * count);
    }
    thread_pool_free(pool);
}

/* A pool that never ran, and one that idles, are freed without waiting for work. */
static void test_idle_pools(void) {
    thread_pool_free(NULL);
    for (int i = 0; i < 20; i++) thread_pool_free(thread_pool_new(1 + i % 4));
    ThreadPool *pool = thread_pool_new(3);
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    thread_pool_free(pool);
}

int main(void) {
    CHECK(threads_available() >= 1);
    for (int threads = 1; threads <= MOST_THREADS; threads += threads < 4 ? 1 : 4) test_pool(threads);
    test_idle_pools();
    return check_report();
}
