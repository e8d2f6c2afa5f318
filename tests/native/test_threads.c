/* Tests of the thread pool: every thread takes part in every run, barriers order what they write, and what is shared
 * out while it is done is done once. */
#include "check.h"
#include "cpu/shares.h"
#include "cpu/threads.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>
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

enum { MOST_UNITS = 5000, PIECES = 60 };

typedef struct SharedJob {
    ThreadPool *pool;
    WorkShare shares[MOST_THREADS];
    uint32_t round; /* before the first piece */
    int done[MOST_UNITS], by[MOST_THREADS];
    atomic_int wrong;
} SharedJob;

/* Pieces of work that follow each other with a barrier between them alone. One thread is always late. */
static void share(void *argument, int index) {
    SharedJob *job = argument;
    const int count = thread_pool_size(job->pool);
    for (int piece = 0; piece < PIECES; piece++) {
        const int total = piece * piece % MOST_UNITS, chunk = 1 + piece % 7;
        int last_own = -1;
        if (index == count - 1) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        Sharing s = sharing_begin(job->shares, index, count, job->round + (uint32_t)piece, total, chunk);
        while (sharing_take(&s)) {
            if (s.first < 0 || s.end > total || s.first >= s.end || s.end - s.first > chunk)
                atomic_fetch_add(&job->wrong, 1);
            if (s.whose == index && s.first <= last_own) atomic_fetch_add(&job->wrong, 1); /* its own, in their order */
            if (s.whose == index) last_own = s.first;
            for (int unit = s.first; unit < s.end; unit++) job->done[unit]++;
            job->by[index] += s.end - s.first;
        }
        thread_pool_barrier(job->pool);
        for (int unit = index; unit < total; unit += count) {
            if (job->done[unit] != 1) atomic_fetch_add(&job->wrong, 1);
            job->done[unit] = 0;
        }
        thread_pool_barrier(job->pool);
    }
}

static void test_shares(int threads) {
    static SharedJob job;
    memset(&job, 0, sizeof job);
    job.pool = thread_pool_new(threads);
    job.round = UINT32_MAX - PIECES / 2; /* numbers of rounds begin again at 0 */
    int expected = 0, done = 0;
    for (int piece = 0; piece < PIECES; piece++) expected += piece * piece % MOST_UNITS;
    for (int run = 0; run < 3; run++, job.round += PIECES) thread_pool_run(job.pool, share, &job);
    for (int i = 0; i < threads; i++) done += job.by[i];
    CHECK_EQ(done, 3 * expected);
    CHECK_EQ(atomic_load(&job.wrong), 0);
    thread_pool_free(job.pool);
}

/* More units than a share counts: chunks become larger. */
static void test_many_units(void) {
    static WorkShare shares[2];
    const int total = 3000000;
    int next = 0, n = 0, end = total;
    Sharing mine = sharing_begin(shares, 0, 2, 1, total, 1), other = sharing_begin(shares, 1, 2, 1, total, 1);
    for (; sharing_take(&mine); n++) { /* the other's share is never begun by itself */
        CHECK_EQ(mine.whose ? mine.end : mine.first, mine.whose ? end : next);
        if (mine.whose)
            end = mine.first;
        else
            next = mine.end;
    }
    CHECK_EQ(next, end);
    CHECK(n <= 65535);
    CHECK(!sharing_take(&other));
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
    for (int threads = 1; threads <= MOST_THREADS; threads += threads < 4 ? 1 : 4) test_shares(threads);
    test_many_units();
    test_idle_pools();
    return check_report();
}
