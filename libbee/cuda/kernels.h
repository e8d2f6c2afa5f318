/* The kernels of the CUDA backend: what each computes, and the functions that queue them. All pointers are to device
 * memory unless a comment says otherwise. Every function computes a row's numbers without regard to the other rows, to
 * their number: design section 3. */
#ifndef BEE_CUDA_KERNELS_H
#define BEE_CUDA_KERNELS_H

#include "activation.h"
#include "bee.h"
#include "device.h"
#include "file/gguf.h"
#include "layout.h"
#include "operand.h"
#include "recurrence.h"
#include "routing.h"

/* A sequence's keys and values: layout.h. A region's position p lies where p % n_positions does. */
typedef struct DeviceCache {
    uint8_t *keys[CACHE_REGIONS], *values[CACHE_REGIONS];
    int32_t n_positions[CACHE_REGIONS];   /* whole chunks */
    int32_t n_ctx;                        /* as it was asked for */
    size_t position_bytes[CACHE_REGIONS]; /* of all layers */
    float *states, *kept;                 /* of recurrent layers: recurrence.cu */
} DeviceCache;

/* One row of a pass. position < 0: the row is idle; nothing is stored for it, and what is computed of it is never used
 * (its token is any of the vocabulary, and its cache a real one, of which it sees nothing). */
typedef struct DeviceRow {
    DeviceCache cache; /* of its sequence */
    int32_t token, position, n_visible;
} DeviceRow;

/* Rows of one sequence, side by side in a pass, for recurrent layers, which need not know more of it. */
typedef struct DeviceRun {
    float *states, *kept;
    int32_t first, n; /* rows of the pass; 0: the run is idle, and nothing is written */
    StateEnd end;     /* before the pass; n_kept: of the rows that are kept, those before its first */
} DeviceRun;

/* As Heads in ops.h. */
typedef struct DeviceHeads {
    int n_head, n_head_kv, head_size;
    bee_kv_type kv_type;
    int region;        /* of the cache */
    size_t first_byte; /* of the layer in it, and what a head of one position takes */
    size_t head_bytes;
    int n_rotated;
    bool neox, norm_rotated, norm_values;
    float scale, eps, softcap;
    double growth;
    int period, window;
    const float *sinks;
} DeviceHeads;

/* The run of n rows from `first` on, the first of which stands at `position`, where layers stood at `end`. */
static inline __host__ __device__ DeviceRun device_run(const DeviceCache *cache, StateEnd end, int first, int n,
                                                       int position) {
    const int late = position - end.position;
    DeviceRun run;
    run.states = cache->states;
    run.kept = cache->kept;
    run.first = first;
    run.n = n;
    run.end.position = end.position;
    run.end.n_kept = late < 0 ? 0 : late < end.n_kept ? late : end.n_kept;
    return run;
}

/* ---- weights: weights.cu ------------------------------------------------------------------------- */

/* Rows [first_row, first_row + n_rows) of the weight, from `raw`: the file's blocks, rows side by side, row_bytes each.
 * first_row is a multiple of 16, and so is n_rows but for the last rows. Padding is written, too. */
void queue_pack(cudaStream_t stream, const DeviceWeight *weight, TensorType type, const uint8_t *raw, size_t row_bytes,
                int first_row, int n_rows);

/* ---- products: matmul.cu ------------------------------------------------------------------------- */

/* out[row][weight row] (+)= scale * product + bias; stride in floats. Columns of `out` beyond the weight's rows are not
 * written. */
typedef struct DeviceProduct {
    DeviceWeight weight;
    float *out;
    size_t stride;
    bool add;
    const float *bias = NULL; /* one per row of the weight; NULL: none */
    float scale = 1;
} DeviceProduct;

/* What products split over K need while they run. */
typedef struct ProductScratch {
    float *partials;
    size_t partial_floats;
    unsigned *tickets; /* zero before and after every kernel */
    int n_tickets;
} ProductScratch;

/* What of it these products need. */
void product_scratch_size(const DeviceWeight *weights, int n_weights, int max_rows, size_t *partial_floats,
                          int *n_tickets);

/* 1 to 4 products of the same operand. n is 1 to BEE_MAX_PASS_ROWS. */
void queue_multiply(cudaStream_t stream, const DeviceProduct *products, int n_products, const DeviceOperand *in, int n,
                    const ProductScratch *scratch);
/* out = activation(gate) * up, as an operand, of two products that are not wider than it. Where their `out` points is
 * memory for them on the way; their strides are equal. Without `gate` activation(up), which needs no memory. */
void queue_gate(cudaStream_t stream, Activation activation, const DeviceProduct *gate, const DeviceProduct *up,
                const DeviceOperand *in, int n, const DeviceOperand *out, const ProductScratch *scratch);

/* Matrices of one shape, an expert's each, one behind the other; likewise their biases. */
typedef struct DeviceExperts {
    DeviceWeight weight; /* the first */
    const float *bias;   /* [expert][bias_stride]; NULL: none */
    size_t bias_stride;
    const float *scales; /* [expert]; NULL: 1 */
} DeviceExperts;

/* Rows that go to one expert: EXPERT_ALIGNMENT at most. */
typedef struct ExpertTile {
    int32_t expert, first, n, unused; /* the rows of gathered operands */
} ExpertTile;

/* What goes where: made by queue_route. */
typedef struct DevicePlaces {
    int32_t *n_tiles;
    ExpertTile *tiles;
    int32_t *of; /* [row][n_used] rows of gathered operands */
} DevicePlaces;

/* Products of gathered rows, each with its expert's matrix: for n rows with n_used experts each, of which at most
 * n_tiles tiles come. out[gathered row][row of the matrix] = scale * product + bias. */
void queue_expert_multiply(cudaStream_t stream, const DeviceExperts *experts, const DevicePlaces *places, int n_tiles,
                           const DeviceOperand *in, int n, float *out, size_t stride);
/* out = activation(gate) * up, as an operand of the same rows. Both have the same type. Without `gate` activation(up).
 */
void queue_expert_gate(cudaStream_t stream, Activation activation, const DeviceExperts *gate, const DeviceExperts *up,
                       const DevicePlaces *places, int n_tiles, const DeviceOperand *in, int n,
                       const DeviceOperand *out);

/* ---- mixtures of experts: experts.cu --------------------------------------------------------------- */

/* Experts and weights of each row, [n][n_used], and where its copies go. The bias is the device's. */
void queue_route(cudaStream_t stream, const Routing *routing, const float *logits, size_t stride, int n, int32_t *ids,
                 float *weights, const DevicePlaces *places);
/* Rows of an operand to their places, in the formats that `out` has. */
void queue_gather(cudaStream_t stream, const DeviceOperand *in, int n, int n_used, const DevicePlaces *places,
                  const DeviceOperand *out);
/* out row = the weighted sum of what its experts answered, in the order of route. */
void queue_sum_answers(cudaStream_t stream, const float *each, size_t each_stride, const float *weights,
                       const DevicePlaces *places, int n_used, int columns, int n, float *out, size_t stride);

/* ---- rows: rows.cu ------------------------------------------------------------------------------- */

/* x / sqrt(mean(x^2) + eps) * gain. */
typedef struct DeviceNorm {
    const float *gain; /* NULL: 1 */
    float eps;
    bool centred;       /* the mean is taken away first */
    bool apart = false; /* of parts: each has gains of its own, one behind the other */
} DeviceNorm;

typedef struct DeviceRope {
    int n_rotated;
    float magnitude; /* of cosines and sines */
    const double *frequencies;
    const double *long_frequencies; /* for caches of more than long_beyond positions; NULL: none */
    int long_beyond;
} DeviceRope;

/* x row i = scale * row rows[i].token of the table: the file's blocks; zero from `columns` to `stride`. */
void queue_embed(cudaStream_t stream, TensorType type, const uint8_t *raw, size_t row_bytes, int columns,
                 const DeviceRow *rows, int n, float scale, float *x, size_t stride);
/* out row i = norm of x row (index ? index[i] : i). */
void queue_norm(cudaStream_t stream, const DeviceNorm *norm, const float *x, size_t stride, const int32_t *index,
                int columns, int n, const DeviceOperand *out);
/* In place, each of `parts` slices of so many columns for itself. */
void queue_norm_in_place(cudaStream_t stream, const DeviceNorm *norm, float *x, size_t stride, int columns, int parts,
                         int n);
/* x = (x + scale * y) * whole; y is normed before, in place, where there is a norm. */
void queue_add(cudaStream_t stream, const DeviceNorm *norm, float *y, size_t y_stride, float scale, float whole,
               int columns, int n, float *x, size_t x_stride);
/* x row += y row / (1 + exp(-gate)), of one gate for each row. */
void queue_add_gated(cudaStream_t stream, const float *gates, size_t gate_stride, const float *y, size_t y_stride,
                     int columns, int n, float *x, size_t x_stride);
void queue_to_operand(cudaStream_t stream, const float *x, size_t stride, const int32_t *index, int n,
                      const DeviceOperand *out);
/* out = activation(gate) * up; zero beyond the columns. */
void queue_gate_values(cudaStream_t stream, Activation activation, const float *gate, size_t gate_stride,
                       const float *up, size_t up_stride, int columns, int n, const DeviceOperand *out);
/* logits = softcap * tanh(scale * logits / softcap), or scale * logits where softcap is 0. */
void queue_cap(cudaStream_t stream, float scale, float softcap, float *logits, size_t stride, int columns, int n);
/* angles[row] = magnitude * cos, sin of position * frequency, these in double precision, [n_rotated / 2][2]. */
void queue_rope_angles(cudaStream_t stream, const DeviceRope *rope, const DeviceRow *rows, int n, float *angles);
void queue_copy(cudaStream_t stream, const float *from, size_t from_stride, float *to, size_t to_stride, int columns,
                int n);

/* ---- attention: attention.cu --------------------------------------------------------------------- */

/* Norms (where gains are given), rotates and scales queries in place; norms, rotates and stores keys, which may change
 * `k`; stores values. Without `q` there are no queries; without `k` neither keys nor values; without `v` values are
 * what keys were. */
void queue_rotate_and_store(cudaStream_t stream, const DeviceHeads *heads, const DeviceRow *rows, int n,
                            const float *angles, const float *q_gain, const float *k_gain, float *q, size_t q_stride,
                            float *k, const float *v, size_t kv_stride);
/* n_chunks: of 128 positions, at least as many as any row sees; it decides the grid, never a number. Results are
 * multiplied with 1 / (1 + exp(-gate)) where there are gates, [row][gate_stride]. `scratch` has attention_row_bytes
 * (work_sizes.h) for each row. */
void queue_attend(cudaStream_t stream, const DeviceHeads *heads, const DeviceRow *rows, int n, int n_chunks,
                  const float *q, size_t q_stride, const float *gates, size_t gate_stride, float *scratch,
                  const DeviceOperand *out);

/* ---- recurrent layers: recurrence.cu --------------------------------------------------------------- */

/* The recurrence of one layer over the n rows of a pass, which are those of the runs, and what it remembers of them:
 * out row = its results, times silu(gates). */
void queue_recur(cudaStream_t stream, const Recurrence *recurrence, const DeviceRun *runs, int n_runs, int n,
                 const float *inputs, size_t input_stride, const float *gates, float *out, size_t stride);
/* The convolution alone, of products of two numbers, times a third: input rows are [first | third | second]. */
void queue_convolve(cudaStream_t stream, const Recurrence *recurrence, const DeviceRun *runs, int n_runs,
                    const float *inputs, size_t input_stride, float *out, size_t stride);

/* ---- tokens: choose.cu --------------------------------------------------------------------------- */

typedef struct DeviceEdit {
    int32_t token;
    float bias, repetition, penalty;
} DeviceEdit;

/* The most likely tokens of a row before edits and masks, and what turns logits into logarithms of probabilities. */
typedef struct DeviceReport {
    int32_t n_top;
    int32_t top_tokens[BEE_MAX_TOP_LOGPROBS];
    float top_logits[BEE_MAX_TOP_LOGPROBS];
    float chosen_logit;
    double log_sum;
} DeviceReport;

/* A token to choose from one row of logits. */
typedef struct DeviceChoice {
    bee_sampling sampling;
    int32_t position, logits_row;
    const uint32_t *mask;    /* NULL: all */
    const DeviceEdit *edits; /* only for heads without ids */
    int32_t n_edits;
    int32_t n_top; /* -1: no report is wanted */
} DeviceChoice;

enum { CHOICE_PARTS = 32 }; /* a row is looked through in so many parts */

/* Bytes of scratch for n choices; it must be zero before the first use, and is left as it must be. */
size_t choice_scratch_size(int n, int n_vocab);
/* tokens[i]: what choices[i] comes to, -1 where the logits are not finite. `ids`: the token of a row of the head, or
 * NULL. `truncates`: whether any choice may have a temperature with top_k, top_p or min_p; `edits`: whether any has
 * edits or a mask or wants a report: what none needs is not queued. `reports` may be NULL. */
void queue_choose(cudaStream_t stream, float *logits, size_t stride, int n_vocab, const int32_t *ids,
                  const DeviceChoice *choices, int n, bool truncates, bool edits, void *scratch, int32_t *tokens,
                  DeviceReport *reports);

/* ---- the cycle: cycle.cu ------------------------------------------------------------------------- */

/* A session's state between cycles, on the device. */
typedef struct DeviceSession {
    bee_sampling sampling;
    int32_t last_token; /* committed, not in the cache yet: it stands at position n_cached */
    int32_t n_cached;
    int32_t output_left;  /* tokens that may still be generated */
    int32_t context_left; /* positions behind n_cached that the context still has */
    int32_t n_stop_tokens;
    int32_t stop_tokens[BEE_MAX_STOP_TOKENS];
    int32_t n_new;    /* tokens that the last cycle gained */
    int32_t finished; /* nothing may follow: later cycles do nothing */
    int32_t mask_token;
    int32_t causal; /* the drafter */
    DeviceCache cache, draft_cache;
    StateEnd end; /* where recurrent layers stand */
    /* Accepted drafts are drawn from this profile instead, where it is given: [k] is the share of cycles that accept
     * more than k drafts. For measurements with made-up weights. */
    int32_t has_profile;
    float profile[BEE_MAX_BLOCK];
    uint32_t cycles; /* so far: what the host waits for */
} DeviceSession;

/* What the host reads of a cycle, in pinned memory. `cycle` is written last. */
typedef struct CycleResult {
    int32_t n_drafts, n_new, finished;
    StateEnd end; /* where recurrent layers stand behind it */
    int32_t drafts[BEE_MAX_BLOCK];
    int32_t tokens[BEE_MAX_BLOCK]; /* what the target chose behind each row: n_drafts + 1 */
    volatile uint32_t cycle;
} CycleResult;

/* Rows and choices of the draft: the last token and n_drafts masks. A finished session's rows are idle. */
void queue_draft_rows(cudaStream_t stream, const DeviceSession *session, int n_drafts, DeviceRow *rows,
                      DeviceChoice *choices);
/* Of the verification: the last token and the drafts (negative ones become token 0), and the run that they are. */
void queue_verify_rows(cudaStream_t stream, const DeviceSession *session, int n_drafts, const int32_t *drafts,
                       DeviceRow *rows, DeviceChoice *choices, DeviceRun *run);
/* Accepts the longest prefix of drafts that agrees with the chosen tokens, and one token more, up to a stop token and
 * the limits; moves the session on; writes the result (host memory, mapped) into results[cycle % 2]. Then rows of the
 * accepted positions in the drafter's cache, for the injection; the others are idle. `inject_rows` may be NULL. */
void queue_accept(cudaStream_t stream, DeviceSession *session, int n_drafts, int32_t *drafts, const int32_t *chosen,
                  CycleResult *results, DeviceRow *inject_rows);

#endif
