/* A pool of threads that run one function together, with a barrier inside it. */
#ifndef BEE_THREADS_H
#define BEE_THREADS_H

#include <stdbool.h>

typedef struct ThreadPool ThreadPool;

/* Cores this process may use: its affinity mask, and its cgroup's limit where there is one. */
int threads_available(void);

/* `count` threads, the calling one included. Fewer where the system gives no more; NULL where memory ran out. */
ThreadPool *thread_pool_new(int count);
void thread_pool_free(ThreadPool *pool);
int thread_pool_size(const ThreadPool *pool);

/* Runs body(argument, index) on every thread, index 0 on the caller, all in the default floating-point environment;
 * returns when all have returned.
 * One run at a time: callers serialise. */
void thread_pool_run(ThreadPool *pool, void (*body)(void *argument, int index), void *argument);

/* Waits, inside a run, until every thread of it is here; what they wrote before is visible after. */
void thread_pool_barrier(ThreadPool *pool);

#endif
