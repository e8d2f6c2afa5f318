/* The CUDA backend from the inside: what its files share. device_memory.cu holds data, runs.cu runs what is queued, and
 * backend.cu has the operations and the table of them all. */
#ifndef BEE_CUDA_BACKEND_H
#define BEE_CUDA_BACKEND_H

#include <unistd.h>
#include <unordered_map>

#include "kernels.h"
#include "work_sizes.h"

extern "C" {
#include "error.h"
#include "library.h"
}

enum { N_SLOTS = 4 }; /* uploads under way */

struct Weight {
    DeviceWeight weight;
    float *scales; /* of experts, where this is the first; NULL: 1 */
    bool is_part;  /* of another one's memory */
};

struct Table {
    TensorType type;
    int columns;
    size_t row_bytes, bytes;
    uint8_t *raw;
};

struct Operand {
    DeviceOperand operand;
};

/* What a run reads, uploaded as one piece. */
typedef struct InputBlock {
    DeviceRow rows[BEE_MAX_PASS_ROWS];
    DeviceRun runs[BEE_MAX_PASS_ROWS]; /* of models with recurrent layers */
    int32_t index[BEE_MAX_PASS_ROWS];
    DeviceChoice choices[BEE_MAX_PASS_ROWS];
} InputBlock;

typedef struct OutputBlock {
    int32_t tokens[BEE_MAX_PASS_ROWS];
    DeviceReport reports[BEE_MAX_PASS_ROWS];
} OutputBlock;

/* Everything that a graph's launches depend on, but for addresses that never change. */
typedef struct GraphKey {
    void (*body)(Worker *, void *);
    const void *model;
    const DeviceCycle *cycle;
    int variant, n_rows, n_runs, n_index, n_choices, n_chunks;
    bool truncates, edits, reports;
} GraphKey;

typedef struct Graph {
    GraphKey key;
    cudaGraphExec_t graph; /* NULL: unused */
    uint64_t last_used;
} Graph;

/* A piece of pinned memory and the event behind its upload. */
typedef struct Slot {
    InputBlock *input;
    cudaEvent_t uploaded;
} Slot;

/* What a cycle leaves for the next one, and what the host reads of it. */
struct DeviceCycle {
    DeviceSession *session, *staged;
    CycleResult *results; /* [2], pinned */
    Cache *cache;         /* the session's, of which the host is told where recurrent layers stand */
    uint32_t n_queued, n_read;
    int position; /* that the session has reached at most */
    int n_drafts; /* of the cycle that is being queued */
};

struct Worker {
    Backend *backend;
    const RunInput *input;
    GraphKey key;
    DeviceCycle *cycle; /* NULL: a run of the host's */
    int32_t *tokens;    /* where chosen tokens go */
};

/* Memory of the device that grows with what is asked of it. */
typedef struct Scratch {
    void *memory;
    size_t bytes;
} Scratch;

struct Backend {
    cudaStream_t stream;
    pid_t owner;   /* the process that opened it */
    bool overlaps; /* kernels of a pass begin before the one before them has ended: device.h */
    char note[256];
    bee_status failure;
    char message[512];
    std::unordered_map<void *, size_t> *taken; /* of the device's memory, and how much it is */
    uint64_t bytes_taken;
    Slot slots[N_SLOTS];
    int next_slot;
    InputBlock *input;
    OutputBlock *output, *read;
    int32_t *drafts; /* of a cycle */
    Scratch masks, edits, partials, tickets, attention, choosing, gates;
    size_t need_partials, need_tickets, need_attention, need_choosing, need_gates; /* bytes */
    Graph graphs[MOST_GRAPHS];
    uint64_t n_runs;
    uint8_t *staging[2], *raw[2]; /* of uploads: pinned, and on the device */
    cudaEvent_t staged[2];
    size_t staging_bytes;
};

/* ---- device_memory.cu --------------------------------------------------------------------------- */

/* Keeps the first failure; false after one. `what` completes "the device failed while it". */
bool succeeded(Backend *b, cudaError_t error, const char *what);
bee_status status(Backend *b, bee_error *error);
bool wait_for_stream(Backend *b);

/* NULL where there is not enough; that fails nothing but the call. */
void *take(Backend *b, size_t bytes);
void *take_zeroed(Backend *b, size_t bytes);
void give_back(Backend *b, void *memory);
/* The same of the host's memory that the device reads and writes itself. */
void *take_pinned(Backend *b, size_t bytes);
/* Memory whose address is told anew with every run, and what all passes so far asked for. */
bool reserve_changes(Backend *b, Scratch *scratch, size_t bytes);
bool reserve_needs(Backend *b);
void staging_free(Backend *b);
DeviceHeads device_heads(const Heads *h);

/* Of the table in ops.h: */
float *buffer_new(Backend *b, size_t count);
void buffer_free(Backend *b, void *buffer);
void buffer_write(Backend *b, void *to, const void *from, size_t bytes);
void buffer_read(Backend *b, void *to, const void *from, size_t bytes);
void buffer_move(Backend *b, void *to, const void *from, size_t bytes);
Weight *weight_new(Backend *b, const Tensor *tensor, const int32_t *row_ids, int n_rows, bee_error *reason);
Weight *experts_new(Backend *b, TensorType type, int rows, int columns, int n, const float *scales);
Weight *expert_new(Backend *b, Weight *experts, int index, const Tensor *tensor);
void weight_free(Backend *b, Weight *weight);
size_t weight_bytes(const Weight *weight);
int operand_format(const Weight *weight);
Table *table_new(Backend *b, const Tensor *tensor, bee_error *reason);
void table_free(Backend *b, Table *table);
Operand *operand_new(Backend *b, int columns, int max_rows, int formats);
void operand_free(Backend *b, Operand *operand);
Cache *cache_new(Backend *b, const CacheShape *shape, int n_ctx);
void cache_free(Backend *b, Cache *cache);
void cache_take(Backend *b, Cache *to, const Cache *from, int n);
bool cache_own(Backend *b, Cache *cache, int n);

/* ---- runs.cu ------------------------------------------------------------------------------------ */

void drop_graphs(Backend *b);

/* Of the tables in ops.h: */
void run(Backend *b, void (*body)(Worker *, void *), void *argument, const RunInput *input);
DeviceCycle *cycle_new(Backend *b);
void cycle_free(Backend *b, DeviceCycle *cycle);
void cycle_set(Backend *b, DeviceCycle *cycle, const CycleState *state);
void cycle_queue(Backend *b, DeviceCycle *cycle, void (*body)(Worker *, void *), void *argument, const RunInput *input,
                 int n_drafts);
void cycle_draft_rows(Worker *w);
void cycle_verify_rows(Worker *w);
void cycle_accept(Worker *w);
int cycle_queued(const DeviceCycle *cycle);
bool cycle_read(Backend *b, DeviceCycle *cycle, CycleOutcome *out);

#endif
