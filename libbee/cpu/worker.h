/* The CPU backend from the inside: its threads, and what the files that hold its operations share. */
#ifndef BEE_WORKER_H
#define BEE_WORKER_H

#include "kernels.h"
#include "ops.h"
#include "sampling/sample.h"
#include "shares.h"
#include "threads.h"

/* For so few rows every worker normalises and quantises for itself: that is cheaper than waiting for the others, and
 * leaves the numbers in its own cache. */
enum { OWN_ROWS = 8 };

struct Worker {
    Backend *backend;
    int index, count;
    uint32_t rounds; /* pieces of work that were shared out as they were done */
    float *scratch;  /* rows on their way into operands */
    size_t scratch_floats;
    Best parts[BEE_MAX_PASS_ROWS]; /* of the rows that tokens are chosen from */
};

typedef struct Region Region;

struct Backend {
    const Kernels *kernels;
    ThreadPool *pool;
    Reductions reductions;
    float *partials[2]; /* of attention, for ATTENTION_ROWS rows each: one is written while the other is read */
    size_t partial_floats;
    Region *regions; /* the weights' memory */
    Worker workers[BEE_MAX_THREADS];
    WorkShare shares[BEE_MAX_THREADS];
};

/* Where the share of worker `index` of n units begins. */
static inline int share_begin(const Worker *worker, int n, int index) {
    return (int)((int64_t)n * index / worker->count);
}

/* Chunks take so many bytes of weights: some microseconds of work, beside which taking them costs nothing. */
enum { CHUNK_BYTES = 32 << 10 };

/* Units of so many bytes that the workers take as they get to them, between two barriers. */
static inline Sharing share_units(Worker *worker, int total, size_t unit_bytes) {
    return sharing_begin(worker->backend->shares, worker->index, worker->count, ++worker->rounds, total,
                         (int)(1 + CHUNK_BYTES / (unit_bytes + 1)));
}

static inline void barrier(const Worker *worker) { thread_pool_barrier(worker->backend->pool); }

/* Runs `body` on every thread. Not inside a run. */
void run_all(Backend *backend, void (*body)(Worker *worker, void *argument), void *argument);

/* Every worker's scratch memory has at least so many floats. False where memory runs out. */
bool reserve_scratch(Backend *backend, size_t floats);

/* Blocks [first, last) of a matrix's product with n rows; out[0] is the first of their rows. */
void multiply_blocks(Worker *worker, const Matrix *matrix, int first, int last, const Operand *in, int n, float *out,
                     size_t stride, bool add);

/* As in Ops. */
float *buffer_new(Backend *backend, size_t count);
void buffer_free(Backend *backend, void *buffer);

/* Those of weights.c. Pages are zero, and take memory as they are used. */
void *pages_new(size_t bytes);
void pages_free(void *memory, size_t bytes);
void regions_free(Region *region);
Weight *weight_new(Backend *backend, const Tensor *tensor, const int32_t *row_ids, int n_rows, bee_error *reason);
void weight_free(Backend *backend, Weight *weight);
size_t weight_bytes(const Weight *weight);
int operand_format(const Weight *weight);
Table *table_new(Backend *backend, const Tensor *tensor, bee_error *reason);
Table *table_of_matrix(Backend *backend, const Weight *matrix);
void table_free(Backend *backend, Table *table);
extern const PackedOps packed_ops;
/* A row as floats; returns how many. */
int table_row(const Table *table, int row, float *out);

/* The operations of experts.c. */
void route(Worker *worker, const Routing *routing, const float *logits, size_t stride, int n, ExpertRoom *room);
void experts(Worker *worker, const Experts *experts, const Operand *in, int n, ExpertRoom *room, float *out,
             size_t stride);

/* Those of recurrence.c. */
void recur(Worker *worker, const Recurrence *recurrence, const Row *rows, int n, const float *inputs,
           size_t input_stride, const float *gates, float *out, size_t stride);
void convolve(Worker *worker, const Recurrence *recurrence, const Row *rows, int n, float *inputs, size_t input_stride,
              float *out, size_t stride);

/* Rows of one sequence, side by side in a pass. */
typedef struct Run {
    const Row *rows;
    int first, n;
} Run;

/* The run that begins with row i; empty at the end. */
Run run_at(const Row *rows, int i, int n);

#endif
