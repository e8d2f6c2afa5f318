/* The operations a forward pass is made of, and what a backend offers to hold its data.
 *
 * A pass is written once, as a function that calls operations in order. `run` executes that function: the CPU
 * backend on every thread of its pool at once, each operation doing its thread's share and ending in a barrier;
 * a device backend on one thread, each operation launching a kernel.
 *
 * Shapes: a pass has `n` rows; activations are float[row][stride], strides and buffers padded to whole groups of 64
 * and zero in the padding. Every operation computes a row's numbers without regard to the other rows. */
#ifndef BEE_OPS_H
#define BEE_OPS_H

#include "activation.h"
#include "cache/cache.h"
#include "file/gguf.h"
#include "recurrence.h"
#include "routing.h"

typedef struct Backend Backend;
typedef struct Worker Worker; /* a thread's view of the backend inside `run` */
typedef struct Weight Weight;
typedef struct Operand Operand;
typedef struct Table Table; /* the embedding: rows of a tensor or a matrix, by token */

enum { MAX_HEAD_SIZE = 1024 }; /* dimensions of a head */

typedef struct Row {
    Cache *cache;
    int32_t token;
    int32_t position;
    int32_t n_visible; /* attends to positions 0 .. n_visible - 1 */
} Row;

/* A matrix and what belongs to its product: scale * (weight in) + bias. */
typedef struct Matrix {
    Weight *weight;
    float *bias; /* one per row; NULL: none */
    float scale;
} Matrix;

typedef struct Product {
    const Matrix *matrix;
    float *out;
    size_t stride;
    bool add; /* add to `out`, or replace it */
} Product;

/* x / sqrt(mean(x^2) + eps) * gain. */
typedef struct Norm {
    const float *gain; /* NULL: 1 */
    float eps;
    bool centred; /* the mean is taken away first */
    bool apart;   /* of parts: each has gains of its own, one behind the other */
} Norm;

/* Rotary positions: pairs of dimensions turn by position * frequency. */
typedef struct Rope {
    int n_rotated;             /* leading dimensions of a head that are turned */
    bool neox;                 /* pairs (i, i + n_rotated / 2); otherwise (2 i, 2 i + 1) */
    float magnitude;           /* of cosines and sines */
    const double *frequencies; /* [n_rotated / 2] radians per position, in a buffer of the backend */
    /* In contexts of more than long_beyond positions these take their place; NULL: none do. */
    const double *long_frequencies;
    int long_beyond;
} Rope;

/* How a layer's queries and keys are shaped, and what they see. */
typedef struct Heads {
    int n_head, n_head_kv, head_size;
    const Rope *rope; /* NULL: no positions */
    float scale;      /* of queries */
    double growth;    /* queries are multiplied by 1 + growth * ln(1 + floor(position / period)) */
    int period;
    float eps;          /* of the norms of heads */
    bool norm_rotated;  /* queries and keys are normed after they are turned, not before */
    bool norm_values;   /* values are normed, without a gain */
    int window;         /* how many positions are seen, the row's own included; 0: all */
    float softcap;      /* scores become softcap * tanh(score / softcap); 0: they stay */
    const float *sinks; /* [n_head] scores without a value that belong to every sum; NULL: none */
    const float *gates; /* [row][gate_stride]: results are multiplied with 1 / (1 + exp(-gate)); NULL: they stay */
    size_t gate_stride;
    bee_kv_type kv_type;
    size_t first_byte; /* where the keys lie among those of a position, in the region of layers like this one */
} Heads;

/* down(activation(gate x) * (up x)) of each expert, or where `gate` is NULL down(activation(up x)); matrices in the
 * order of the experts. Biases of one kind lie one behind the other, each padded. */
typedef struct Experts {
    Activation activation;
    int n_experts, n_used;
    const Matrix *gate, *up, *down;
} Experts;

/* What products of experts need while they run. */
typedef struct ExpertRoom {
    int32_t *ids;      /* [rows][n_used], as route leaves them */
    float *weights;    /* likewise */
    Operand *gathered; /* rows by expert, each expert's at a multiple of EXPERT_ALIGNMENT: expert_rows of them */
    Operand *between;  /* what the down matrices read */
    float *each;       /* [expert_rows][stride]: an expert's answer to a row */
    size_t stride;
    int32_t *places; /* where a device keeps what goes where: expert_places numbers */
} ExpertRoom;

static inline int cache_region(const Heads *heads) { return heads->window > 0; }

/* Where the window of a row begins. */
static inline int first_visible(const Heads *heads, const Row *row) {
    return heads->window && row->position >= heads->window ? row->position - heads->window + 1 : 0;
}

/* A change to one logit: (logit + bias), divided by `repetition` where it is positive and multiplied where it is not,
 * less `penalty`. */
typedef struct LogitEdit {
    int32_t token;
    float bias, repetition, penalty;
} LogitEdit;

/* A token to choose from one row of logits, which edits and mask change in place. */
typedef struct Choice {
    const bee_sampling *sampling;
    int32_t position; /* of the token that is chosen: it fixes the noise */
    int32_t logits_row;
    const uint32_t *mask; /* a bit for each token that may be chosen; NULL: all */
    const LogitEdit *edits;
    int32_t n_edits;
    bee_logprobs *report; /* out: of the row as it was; NULL: not wanted */
    int n_top;            /* most likely tokens in the report */
    float *unchanged;     /* room for the row as it was, where a report is wanted; a device has its own */
    int32_t token;        /* out; -1 where the logits are not finite */
} Choice;

/* What the operations of a run take from the host's memory. A device backend uploads it beforehand, and keeps the run
 * as a graph: the next one of the same function, model and numbers differs in nothing else. Operations may be given
 * these very arrays, and parts of `index`, and no others. */
typedef struct RunInput {
    const void *model; /* the models and buffers that the function works on */
    int variant;       /* where the function does not do the same with all of them: a number for each that it does */
    const Row *rows;
    int n_rows;
    const int32_t *index; /* rows of a buffer, for rms_norm and to_operand */
    int n_index;
    Choice *choices;
    int n_choices;
    int mask_words; /* of their masks */
} RunInput;

/* OPERAND_OWN: what rms_norm and to_operand write, which each worker may compute for itself. */
enum { OPERAND_CODES = 1, OPERAND_VALUES = 2, OPERAND_OWN = 4 };

/* What the machine allows, as measured with all threads. */
typedef struct Rates {
    double read_bytes_per_second;    /* from memory */
    double reread_bytes_per_second;  /* the same bytes again and again: some of them stay in the caches */
    double multiply_adds_per_second; /* 8-bit */
} Rates;

typedef struct DeviceCycle DeviceCycle;

/* Of a session at the beginning of a cycle. */
typedef struct CycleState {
    bee_sampling sampling;
    Cache *cache;             /* it is told where recurrent layers stand when a cycle is read */
    const Cache *draft_cache; /* may be NULL */
    int32_t last_token, n_cached;
    int32_t output_left, context_left; /* tokens that may still come */
    const int32_t *stop_tokens;
    int32_t n_stop_tokens;
    int32_t mask_token;
    bool causal;          /* the drafter */
    const float *profile; /* [BEE_MAX_BLOCK]: bee_engine_measure_cycles; or NULL */
} CycleState;

typedef struct CycleOutcome {
    int32_t n_drafts, n_new;
    int32_t drafts[BEE_MAX_BLOCK], tokens[BEE_MAX_BLOCK]; /* tokens: chosen behind each row, n_drafts + 1 */
} CycleOutcome;

/* What a device backend does beyond the operations: whole cycles of one session without the host. Its state lies on the
 * device; a cycle is a run whose rows and choices are made there. */
typedef struct DeviceOps {
    /* BEE_OK, or the error that made the backend unusable: then nothing that it computed since counts. */
    bee_status (*status)(Backend *backend, bee_error *error);

    DeviceCycle *(*cycle_new)(Backend *backend);
    void (*cycle_free)(Backend *backend, DeviceCycle *cycle);
    /* Where the session stands, before its first cycle and after every pass that the host ran for it. */
    void (*cycle_set)(Backend *backend, DeviceCycle *cycle, const CycleState *state);
    /* Queues a cycle: `body` calls the passes, with these three between them. The numbers of rows are the same for
     * every cycle of so many drafts. Of `input` only the model and the index count, which is 0, 1, 2 ... */
    void (*cycle_queue)(Backend *backend, DeviceCycle *cycle, void (*body)(Worker *worker, void *argument),
                        void *argument, const RunInput *input, int n_drafts);
    void (*cycle_draft_rows)(Worker *worker);
    void (*cycle_verify_rows)(Worker *worker);
    void (*cycle_accept)(Worker *worker);
    int (*cycle_queued)(const DeviceCycle *cycle); /* cycles whose result was not read yet, at most 2 */
    /* The oldest of them. False where the device failed. */
    bool (*cycle_read)(Backend *backend, DeviceCycle *cycle, CycleOutcome *out);
} DeviceOps;

/* Weights and tables whose bytes are at hand as they lie in memory, from an engine before this one. */
typedef struct PackedOps {
    /* A number for how they lie there: bytes of one form are no good in another. */
    uint64_t (*form)(const Backend *backend);
    /* The bytes stay, and are freed by their owner. NULL where memory runs out. */
    Weight *(*weight_at)(Backend *backend, const Tensor *tensor, int n_rows, const uint8_t *data);
    Table *(*table_at)(Backend *backend, const Tensor *tensor, const uint8_t *data);
    /* weight_bytes, or the tensor's size, of them */
    const uint8_t *(*weight_data)(const Weight *weight);
    const uint8_t *(*table_data)(const Table *table);
} PackedOps;

typedef struct Ops {
    /* holding data; all of these return NULL where memory runs out, or where *reason says why: it is BEE_OK before */
    Weight *(*weight_new)(Backend *backend, const Tensor *tensor, const int32_t *row_ids, int n_rows,
                          bee_error *reason);
    void (*weight_free)(Backend *backend, Weight *weight);
    /* Where a device wants matrices of experts in one piece: room for n of one shape, with a scale for each (NULL: 1),
     * and its filling, one by one. The room is the first weight, and freed by its name after the others. NULL: they are
     * weights like others. */
    Weight *(*experts_new)(Backend *backend, TensorType type, int rows, int columns, int n, const float *scales);
    Weight *(*expert_new)(Backend *backend, Weight *experts, int index, const Tensor *tensor);
    size_t (*weight_bytes)(const Weight *weight); /* that a pass reads */
    int (*operand_format)(const Weight *weight);  /* OPERAND_CODES or OPERAND_VALUES */
    Operand *(*operand_new)(Backend *backend, int columns, int max_rows, int formats);
    void (*operand_free)(Backend *backend, Operand *operand);
    float *(*buffer_new)(Backend *backend, size_t count); /* zeroed */
    void (*buffer_free)(Backend *backend, void *buffer);
    /* Between the host's memory and buffers, in the order of the runs. Not inside a run. */
    void (*buffer_write)(Backend *backend, void *to, const void *from, size_t bytes);
    void (*buffer_read)(Backend *backend, void *to, const void *from, size_t bytes);
    void (*buffer_move)(Backend *backend, void *to, const void *from, size_t bytes);
    Table *(*table_new)(Backend *backend, const Tensor *tensor, bee_error *reason);
    /* Of the rows of a matrix, which must stay as long; where the device has rows_of_matrices. */
    Table *(*table_of)(Backend *backend, const Weight *matrix);
    void (*table_free)(Backend *backend, Table *table);
    Cache *(*cache_new)(Backend *backend, const CacheShape *shape, int n_ctx);
    void (*cache_free)(Backend *backend, Cache *cache);
    /* The first n positions of `from` become those of `to`, of the same shape and n_ctx, which holds fewer of them:
     * their whole chunks belong to both from then on, unless the region wraps; the rest is copied. States are not
     * touched. Nobody writes what two caches hold: before one goes back behind it, cache_own. Not inside a run. */
    void (*cache_take)(Backend *backend, Cache *to, const Cache *from, int n);
    /* Positions from n on are the cache's own and may be written; those before stay. False where memory runs out, and
     * the cache then holds n positions as before. */
    bool (*cache_own)(Backend *backend, Cache *cache, int n);

    /* running */
    void (*run)(Backend *backend, void (*body)(Worker *worker, void *argument), void *argument, const RunInput *input);
    int (*worker_index)(const Worker *worker); /* 0 for exactly one worker of a run */

    /* x row i = scale * row rows[i].token of the table */
    void (*embed)(Worker *worker, const Table *table, const Row *rows, int n, float scale, float *x, size_t stride);
    /* out row i = norm of x row (index ? index[i] : i) */
    void (*norm)(Worker *worker, const Norm *norm, const float *x, size_t stride, const int32_t *index, int columns,
                 int n, Operand *out);
    /* In place, each of `parts` slices of so many columns for itself. */
    void (*norm_in_place)(Worker *worker, const Norm *norm, float *x, size_t stride, int columns, int parts, int n);
    /* x = (x + scale * y) * whole; y is normed before, in place, where a norm is given */
    void (*add)(Worker *worker, const Norm *norm, float *y, size_t y_stride, float scale, float whole, int columns,
                int n, float *x, size_t x_stride);
    /* x row += y row / (1 + exp(-gate)), of one gate for each row */
    void (*add_gated)(Worker *worker, const float *gates, size_t gate_stride, const float *y, size_t y_stride,
                      int columns, int n, float *x, size_t x_stride);
    void (*to_operand)(Worker *worker, const float *x, size_t stride, const int32_t *index, int n, Operand *out);
    void (*multiply)(Worker *worker, const Product *products, int n_products, const Operand *in, int n);
    /* angles[row] = magnitude * cos, sin of position * frequency, [n_rotated / 2][2] */
    void (*rope_angles)(Worker *worker, const Rope *rope, const Row *rows, int n, float *angles);
    /* Norms (where gains are given), rotates and scales queries in place; norms, rotates and stores keys; stores
     * values. Without `q` there are no queries; without `k` neither keys nor values; without `v` values are what keys
     * were. */
    void (*rotate_and_store)(Worker *worker, const Heads *heads, const Row *rows, int n, const float *angles,
                             const float *q_gain, const float *k_gain, float *q, size_t q_stride, float *k, float *v,
                             size_t kv_stride);
    void (*attend)(Worker *worker, const Heads *heads, const Row *rows, int n, const float *q, size_t q_stride,
                   Operand *out);
    /* out = activation(gate in) * (up in), or without `gate` activation(up in) */
    void (*gate)(Worker *worker, Activation activation, const Matrix *gate, const Matrix *up, const Operand *in, int n,
                 Operand *out);
    /* out = activation(gate) * up, of values at hand */
    void (*gate_values)(Worker *worker, Activation activation, const float *gate, size_t gate_stride, const float *up,
                        size_t up_stride, int columns, int n, Operand *out);
    /* logits = softcap * tanh(scale * logits / softcap), or scale * logits where softcap is 0 */
    void (*cap)(Worker *worker, float scale, float softcap, float *logits, size_t stride, int columns, int n);
    /* Experts and weights of each row, from the router's logits. */
    void (*route)(Worker *worker, const Routing *routing, const float *logits, size_t stride, int n, ExpertRoom *room);
    /* out row = the sum of its experts' answers, weighted, in the order of route. */
    void (*experts)(Worker *worker, const Experts *experts, const Operand *in, int n, ExpertRoom *room, float *out,
                    size_t stride);
    /* The recurrence of one layer over the rows, which the caches remember: out row = its results, times silu(gates).
     */
    void (*recur)(Worker *worker, const Recurrence *recurrence, const Row *rows, int n, const float *inputs,
                  size_t input_stride, const float *gates, float *out, size_t stride);
    /* The convolution alone, of products of two numbers, times a third: input rows are [first | third | second] of
     * `channels` each. The products may take the place of the first. */
    void (*convolve)(Worker *worker, const Recurrence *recurrence, const Row *rows, int n, float *inputs,
                     size_t input_stride, float *out, size_t stride);
    /* For what is read after the run; no barrier. */
    void (*copy)(Worker *worker, const float *from, size_t from_stride, float *to, size_t to_stride, int columns,
                 int n);
    /* `ids` maps a row of the head to a token, or is NULL; edits are for heads without it. */
    void (*choose)(Worker *worker, float *logits, size_t stride, int n_vocab, const int32_t *ids, Choice *choices,
                   int n);

    /* `reread_bytes`: how many bytes a pass reads again and again. False where memory runs out. Not inside a run. */
    bool (*measure_rates)(Backend *backend, uint64_t reread_bytes, Rates *out);

    /* of a device; NULL on the CPU */
    const DeviceOps *device;
    const PackedOps *packed; /* NULL: packed weights cannot be kept */
} Ops;

/* Columns or rows rounded up to whole padding. */
static inline size_t padded(int64_t n) { return ((size_t)n + 63) / 64 * 64; }

#endif
