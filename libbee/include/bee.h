/* libbee: run a GGUF language model with DFlash speculative decoding.
 *
 * Conventions
 *   - Every fallible function takes a `bee_error *` last and returns a status, or NULL for a handle.
 *     The error is the caller's: it may be NULL, it is written only on failure.
 *   - The library keeps no global state, never exits, and never writes to stdout or stderr.
 *   - An engine runs one pass at a time. Calls on one engine from several threads are serialised inside;
 *     `bee_session_cancel` is the exception: it returns at once and stops a pass that runs.
 *   - Tokens are int32 ids of the model's vocabulary. Text never enters this library.
 *
 * This header is read by the C compiler and, with its '#' lines and BEE_API removed, by Python's cffi:
 * keep it to plain declarations, and let constants be enumerators. */
#ifndef BEE_H
#define BEE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define BEE_API __declspec(dllexport)
#else
#define BEE_API __attribute__((visibility("default")))
#endif

/* ---- errors ------------------------------------------------------------------------------------- */

typedef enum bee_status {
    BEE_OK = 0,
    BEE_ERROR_ARGUMENT = 1,    /* a parameter is out of range; the message names it and the range */
    BEE_ERROR_FILE = 2,        /* a file cannot be opened or read */
    BEE_ERROR_FORMAT = 3,      /* not a GGUF file, or a broken one; the message names the field */
    BEE_ERROR_UNSUPPORTED = 4, /* a valid file that this library cannot run */
    BEE_ERROR_MISMATCH = 5,    /* the drafter was made for another target */
    BEE_ERROR_CONTEXT = 6,     /* more tokens than the session's context holds */
    BEE_ERROR_MEMORY = 7,      /* an allocation failed, or would: the message has the numbers */
    BEE_ERROR_DEVICE = 8,      /* there is no such device, or it failed; the message says what is missing */
    BEE_ERROR_CANCELLED = 9    /* a progress function asked for it */
} bee_status;

typedef struct bee_error {
    bee_status status;
    char message[1024]; /* UTF-8, one line, NUL-terminated */
} bee_error;

/* Version of the library, "major.minor.patch". */
BEE_API const char *bee_version(void);

/* ---- files -------------------------------------------------------------------------------------- */

/* A GGUF v3 file, mapped read-only and checked in full: whatever these functions hand out lies inside the
 * file. Format: the GGUF specification in ggml's docs. */
typedef struct bee_file bee_file;

/* GGUF's own numbering of metadata types. */
typedef enum bee_value_type {
    BEE_VALUE_UINT8 = 0,
    BEE_VALUE_INT8 = 1,
    BEE_VALUE_UINT16 = 2,
    BEE_VALUE_INT16 = 3,
    BEE_VALUE_UINT32 = 4,
    BEE_VALUE_INT32 = 5,
    BEE_VALUE_FLOAT32 = 6,
    BEE_VALUE_BOOL = 7,
    BEE_VALUE_STRING = 8,
    BEE_VALUE_ARRAY = 9,
    BEE_VALUE_UINT64 = 10,
    BEE_VALUE_INT64 = 11,
    BEE_VALUE_FLOAT64 = 12
} bee_value_type;

typedef struct bee_metadata {
    const char *key; /* not NUL-terminated */
    uint64_t key_length;
    bee_value_type type;         /* BEE_VALUE_ARRAY for arrays */
    bee_value_type element_type; /* of an array; otherwise equal to type */
    uint64_t count;              /* elements of an array; otherwise 1 */
    const void *data;            /* first element, little-endian, unaligned; a string is a u64 length and its bytes */
    uint64_t size;               /* bytes from `data` to the end of the last element */
} bee_metadata;

typedef struct bee_tensor_info {
    const char *name; /* not NUL-terminated */
    uint64_t name_length;
    const char *type_name; /* "Q4_0", ...; a name is given also for types that this library cannot run */
    int32_t type;          /* ggml's number of the type */
    bool supported;        /* this library can run the type */
    int32_t n_dimensions;
    uint64_t shape[4]; /* as in the file: shape[0] is contiguous; 1 beyond n_dimensions */
    uint64_t offset;   /* of the data, from the start of the file, or of the part of a split model that holds it */
    uint64_t size;     /* bytes of data; 0 for a type of unknown layout */
} bee_tensor_info;

/* A GGUF file. Any part of a split model (NAME-00002-of-00005.gguf) opens the whole: all parts must lie beside it. */
BEE_API bee_file *bee_file_open(const char *path, bee_error *error);
BEE_API void bee_file_close(bee_file *file);
BEE_API uint64_t bee_file_size(const bee_file *file);
BEE_API uint64_t bee_file_metadata_count(const bee_file *file);
BEE_API bee_status bee_file_metadata(const bee_file *file, uint64_t index, bee_metadata *out, bee_error *error);
BEE_API uint64_t bee_file_tensor_count(const bee_file *file);
BEE_API bee_status bee_file_tensor(const bee_file *file, uint64_t index, bee_tensor_info *out, bee_error *error);

/* How keys and values are remembered. 8 bits take about half the memory, and a pass reads half as much of it; answers
 * may then differ a little from those with float16, but still not with speculation on and off. */
typedef enum bee_kv_type {
    BEE_KV_F16 = 0, /* float16 */
    BEE_KV_Q8_0 = 1 /* 8-bit integers with a float16 scale for every 32 dimensions of a head and position */
} bee_kv_type;

/* What running a file would take, found from its header alone. Fails with BEE_ERROR_UNSUPPORTED or
 * BEE_ERROR_FORMAT, and the reason, where `bee_engine_open` would. */
typedef struct bee_plan {
    uint64_t weight_bytes;       /* packed weights in memory */
    uint64_t kv_bytes_per_token; /* key-value cache of one session, per position of context */
    uint64_t state_bytes;        /* of one session's recurrent layers, whatever its context; saved states among them */
    int32_t n_vocab;
    int32_t n_ctx_train; /* context length the model was trained for */
    int32_t n_layer;
    int32_t n_embd;
    int32_t n_left_out; /* blocks "blk.<n_layer>" and on, which predict further tokens (MTP), and are not run */
    bool predicts;      /* there is such a block, and it drafts where the engine has no drafter */
    bool is_drafter;    /* "dflash", or such a block alone: give it to an engine as the drafter */
} bee_plan;

BEE_API bee_status bee_file_plan(const bee_file *file, bee_kv_type kv_type, bee_plan *out, bee_error *error);

/* ---- devices ------------------------------------------------------------------------------------ */

typedef enum bee_device {
    BEE_DEVICE_CPU = 0,
    BEE_DEVICE_CUDA = 1, /* an NVIDIA card of compute capability 8.0 or newer; needs libbee_cuda beside this library */
    BEE_DEVICE_AUTO = 2  /* CUDA where a card is there and the plan fits it, otherwise CPU */
} bee_device;

typedef struct bee_device_info {
    char name[128];
    int32_t capability_major, capability_minor; /* 0 for the CPU */
    int32_t n_multiprocessors;                  /* 0 for the CPU */
    int32_t driver_version;                     /* of CUDA, 1000 major + 10 minor; 0 for the CPU */
    uint64_t total_bytes, free_bytes;           /* of its memory, now */
} bee_device_info;

/* Fails with BEE_ERROR_DEVICE, and what is missing: library, driver, device, capability. AUTO is no device. */
BEE_API bee_status bee_device_describe(bee_device device, bee_device_info *out, bee_error *error);

/* What an engine with one session of n_ctx positions takes of the device's memory. */
typedef struct bee_memory_plan {
    uint64_t target_bytes;  /* packed weights, with the embedding where the device keeps it */
    uint64_t drafter_bytes; /* the same; 0 without one */
    uint64_t cache_bytes;   /* keys and values of target and drafter, for n_ctx positions */
    uint64_t work_bytes;    /* activations, logits, and what kernels need */
    uint64_t total_bytes;
} bee_memory_plan;

/* Found from the headers alone, and with or without a device. `drafter` may be NULL. */
BEE_API bee_status bee_plan_memory(const bee_file *target, const bee_file *drafter, bee_device device, int32_t n_ctx,
                                   bee_kv_type kv_type, bee_memory_plan *out, bee_error *error);

/* ---- engine ------------------------------------------------------------------------------------- */

/* A target model, optionally its drafter, and the threads that run them. */
typedef struct bee_engine bee_engine;

enum {
    BEE_MAX_BLOCK = 16,   /* tokens of one session in a verify pass: the last committed one and 15 drafts */
    BEE_MAX_TAPS = 16,    /* target layers whose inputs can be kept as features */
    BEE_MAX_THREADS = 64, /* threads of one engine */
    BEE_MAX_STOP_TOKENS = 32,
    BEE_MAX_TOP_LOGPROBS = 20,
    BEE_MAX_PASS_ROWS = 128 /* rows (session, position, token) of one pass; longer prompts take several */
};

typedef void (*bee_log_function)(void *user, const char *message);
/* While an engine opens: bytes of weights, as they will lie in memory, that have been read, packed and, for a device,
 * sent there. `done` grows up to `total`; where a card is given up for the CPU, both begin anew. False gives up:
 * BEE_ERROR_CANCELLED. */
typedef bool (*bee_progress_function)(void *user, uint64_t done, uint64_t total);

/* What passes and drafts cost, from which draft lengths are chosen. All in seconds; 0 where nothing is known. */
typedef struct bee_costs {
    double pass[11];  /* of the target, over 1, 2, 3, 4, 6, 8, 12, 16, 32, 64 and 128 rows */
    double draft[16]; /* [k]: k drafts of the drafter */
} bee_costs;

typedef struct bee_engine_params {
    bee_device device;
    int32_t n_ctx;       /* positions that a device's memory is planned for; 0: what the model was trained for */
    int32_t n_threads;   /* 0: the cores this process may use */
    bee_kv_type kv_type; /* of target and drafter */
    const char *instruction_set; /* NULL: the best here; a name of bee_instruction_sets() forces one */
    const bee_costs *costs; /* as `bee_engine_costs` gave them before, or NULL to measure for some tenths of a second */
    int32_t n_taps;         /* without a drafter: keep the inputs of these target layers as features */
    int32_t taps[16];
    bee_log_function log; /* may be NULL */
    void *log_user;
    bee_progress_function progress; /* may be NULL */
    void *progress_user;
    /* A directory where packed weights are kept between engines on the CPU, a file for each model: they are mapped from
     * it then, not packed again. What is wrong with such a file, or where it cannot be written, only costs time. NULL,
     * or empty: off. */
    const char *packed_cache;
    bool unshared;        /* for measurements: what several sessions begin with, each computes and keeps for itself */
    bool made_up_weights; /* for measurements: the files' tensor data is not read; weights are random, norms are 1 */
} bee_engine_params;

typedef struct bee_engine_info {
    int32_t n_vocab;
    int32_t n_ctx_train;
    int32_t n_layer;
    int32_t n_embd;
    int32_t n_threads;
    int32_t n_taps;
    int32_t taps[16]; /* entry i means the input of that target layer */
    bool has_drafter;
    bool predicts;         /* the model's own block drafts; the next two are then of it */
    int32_t block_size;    /* of the drafter: the largest number of tokens it drafts is one less; 0 without one */
    int32_t n_draft_vocab; /* rows of the drafter's head; 0 without one */
    int32_t mask_token;    /* -1 without a drafter */
    uint64_t weight_bytes; /* target and drafter, packed */
    bee_kv_type kv_type;
    const char *instruction_set; /* of the CPU; "cuda" on a card */
    bee_device device;           /* where it runs: CPU or CUDA */
    bee_device_info device_info;
    /* AUTO: why the card is not used, empty where there is none; on a card: what it had to do without so far. */
    char device_note[256];
    uint64_t mapped_bytes; /* of the weights: mapped from files of packed_cache */
    bool packed_failed;    /* such a file could not be written */
    char packed_note[256]; /* which were written and why, or why not; empty: none had to be */
} bee_engine_info;

/* `drafter_path`: DFlash, or the model's block that predicts further tokens (MTP); both may be NULL. */
BEE_API bee_engine *bee_engine_open(const char *model_path, const char *drafter_path, const bee_engine_params *params,
                                    bee_error *error);
BEE_API void bee_engine_close(bee_engine *engine); /* its sessions must be closed before */
BEE_API void bee_engine_describe(const bee_engine *engine, bee_engine_info *out);

/* The costs that the engine began with. They hold for the same files, threads, instruction set and machine. */
BEE_API void bee_engine_costs(const bee_engine *engine, bee_costs *out);

/* Names of the instruction sets that this machine can run, best first, NULL-terminated. */
BEE_API const char *const *bee_instruction_sets(void);

typedef struct bee_architecture {
    const char *name; /* general.architecture of its files */
    const char *runs; /* the models that are built like this, in words */
    bool is_drafter;
} bee_architecture;

/* The families that can be run, by name: NULL from the `index` on that is their number. */
BEE_API const bee_architecture *bee_architecture_at(size_t index);

/* ---- sessions ----------------------------------------------------------------------------------- */

/* One sequence: its tokens and the key-value caches of target and drafter. */
typedef struct bee_session bee_session;

typedef struct bee_sampling {
    float temperature; /* 0: greedy. Otherwise argmax(logits / temperature + Gumbel noise of the position) */
    int32_t top_k;     /* 0: off. Truncations apply in the order top_k, top_p, min_p, before the temperature */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    uint64_t seed;
} bee_sampling;

/* Changes to a token's logit before anything else looks at it. */
typedef struct bee_logit_bias {
    int32_t token; /* each at most once */
    float bias;    /* -1000 to 1000, added */
} bee_logit_bias;

/* What was said before makes less likely what it repeats, as in llama.cpp: the logit of a token that stands c > 0 times
 * among the last `last_n` tokens, prompt included, is divided by `repetition` (multiplied where it is negative), and
 * loses c * frequency + presence. */
typedef struct bee_penalties {
    int32_t last_n;   /* -1: all tokens; 0: penalties are off */
    float repetition; /* above 0 to 100; 1: off */
    float frequency;  /* -100 to 100; 0: off */
    float presence;   /* -100 to 100; 0: off */
} bee_penalties;

enum {
    BEE_CONSTRAINT_FAILED = -2,  /* the request ends with BEE_FINISH_CONSTRAINT */
    BEE_CONSTRAINT_FREE = -1,    /* any token may follow */
    BEE_CONSTRAINT_REFUSED = 0,  /* this token may not follow */
    BEE_CONSTRAINT_MASKED = 1,   /* a mask says what may follow */
    BEE_CONSTRAINT_COMPLETE = 2, /* nothing may follow */
    BEE_CONSTRAINT_WATCHING = 3  /* any token may follow, and only some tokens are of interest */
};

/* Decides which tokens may follow. `bee_engine_step` calls these functions on its own thread, around its passes: begin,
 * then advance with -1, with the first draft, with the second ..., and commit. A mask has one bit per token of the
 * vocabulary: bit t % 32 of word t / 32. It must allow some token. What is decided may depend on the committed tokens
 * alone, never on drafts: else the output would depend on speculation. */
typedef struct bee_constraint {
    void *user;
    /* A cycle begins after all committed tokens, whatever was advanced over before. Returns how many tokens are certain
     * to follow, of which it writes at most `room` to `forced`, or FREE: no mask is asked for in this cycle. */
    int32_t (*begin)(void *user, int32_t *forced, int32_t room);
    /* Goes on over a draft, or with -1 nowhere. Returns MASKED and writes the mask of the token that follows; FREE
     * where any may follow; or REFUSED, which leaves everything as it was. */
    int32_t (*advance)(void *user, int32_t draft, uint32_t *mask);
    /* These tokens were chosen. Returns how many of them stay; the others are void, and chosen anew by a cycle that
     * begins behind the ones that stay. `next` may be set to FREE, where the next cycle need not ask, because any token
     * may follow; to WATCHING, where in addition cycles need not be told of as long as none of their tokens is in
     * `watched`; or to COMPLETE: the request ends with the tokens that stay. */
    int32_t (*commit)(void *user, const int32_t *tokens, int32_t n_tokens, int32_t *next);
    const uint32_t *watched; /* a bit for each token, as in a mask; NULL: all are of interest */
} bee_constraint;

/* Where drafts come from. The tokens are the same in every mode. */
typedef enum bee_speculation {
    BEE_SPECULATION_OFF = 0,    /* nothing is drafted */
    BEE_SPECULATION_AUTO = 1,   /* each cycle what promises most per second: the drafter, a copy, or nothing */
    BEE_SPECULATION_DFLASH = 2, /* the drafter, which the engine must have */
    BEE_SPECULATION_COPY = 3,   /* what followed the last tokens where they stood before, in prompt or output */
    BEE_SPECULATION_MTP = 4     /* the block that predicts further tokens, which the model must have */
} bee_speculation;

typedef struct bee_request {
    const int32_t *prompt;
    int32_t n_prompt;   /* at least 1 */
    int32_t max_tokens; /* at least 1 */
    bee_speculation speculation;
    /* Drafts per cycle. -1: what promises most per second, with DFLASH the drafter's whole block. 0 to 15 (block_size -
     * 1 where AUTO or DFLASH has a drafter): that many whenever there is a source; AUTO then chooses the source alone.
     * Less near the end of output or context. Without effect where speculation is OFF. */
    int32_t draft_length;
    const int32_t *stop_tokens; /* generation ends after one of these */
    int32_t n_stop_tokens;
    bee_sampling sampling;
    const bee_constraint *constraint; /* NULL: none. What its `user` points to must outlive the request */
    /* The rest takes the full logit path where it is asked for. */
    const bee_logit_bias *biases;
    int32_t n_biases;
    bee_penalties penalties;
    bool logprobs;          /* keep log-probabilities of each step's tokens */
    int32_t n_top_logprobs; /* and of the most likely tokens in their places, 0 to 20 */
} bee_request;

typedef enum bee_finish {
    BEE_FINISH_NONE = 0,
    BEE_FINISH_STOP = 1,    /* a stop token; it is the last token of the step */
    BEE_FINISH_LENGTH = 2,  /* max_tokens reached */
    BEE_FINISH_CONTEXT = 3, /* the session's context is full */
    BEE_FINISH_CANCELLED = 4,
    BEE_FINISH_NOT_FINITE = 5, /* the model's logits are not finite: the file's weights are broken. Without tokens */
    BEE_FINISH_COMPLETE = 6,   /* the constraint is complete */
    BEE_FINISH_CONSTRAINT = 7  /* the constraint failed. Without tokens */
} bee_finish;

/* What one step did for one session. */
typedef struct bee_step {
    bee_finish finish;
    int32_t n_tokens; /* newly generated; 0 while the prompt is read */
    int32_t tokens[16];
    int32_t n_prompt_left; /* prompt tokens that still wait for a pass */
} bee_step;

/* Statistics of the current or last request of a session. */
typedef struct bee_stats {
    int32_t prompt_tokens;
    int32_t reused_tokens; /* of the prompt, found in a cache */
    int32_t shared_tokens; /* of those, found in other sessions' */
    int32_t output_tokens;
    int32_t cycles;          /* decode passes */
    int32_t drafted_tokens;  /* proposed to the target */
    int32_t accepted_tokens; /* of those, kept */
    int32_t copied_tokens;   /* of the drafted ones, those that were copied */
    int32_t copied_accepted; /* of those, kept */
    int32_t forced_tokens;   /* of the drafted ones, those that the constraint forced; the others are the drafter's */
    int32_t reduced_cycles;  /* cycles whose choice needed nothing but the logits themselves */
    int32_t masked_cycles;   /* cycles with a constraint's masks */
    int32_t full_cycles;     /* cycles with biases, penalties or log-probabilities, masks or not */
    int32_t accepted_histogram[16]; /* [k]: cycles that accepted k drafts */
    int32_t drafted_histogram[16];  /* [k]: cycles that verified k drafts, whatever their source */
    int32_t drafter_histogram[16];  /* [k]: cycles for which the drafter's model ran and drafted k; [0]: it did not */
    double prefill_seconds;
    double decode_seconds; /* in steps; on a device, cycles that were queued ahead also run between them */
} bee_stats;

BEE_API bee_session *bee_session_open(bee_engine *engine, int32_t n_ctx, bool keep_features, bee_error *error);
BEE_API void bee_session_close(bee_session *session);

/* Start a request. The longest prefix of the prompt that the caches hold is reused. No pass is run yet. */
BEE_API bee_status bee_session_begin(bee_session *session, const bee_request *request, bee_error *error);

/* Run one pass for all the given sessions (of one engine, each begun and not finished): a chunk of the prompt
 * or one draft-verify-accept cycle each. `steps` has one entry per session. How a request ends concerns its session
 * alone. A failure is one of the arguments: nothing was run then, `steps` says nothing, and all requests stand as they
 * stood. */
BEE_API bee_status bee_engine_step(bee_engine *engine, bee_session *const *sessions, int32_t n_sessions,
                                   bee_step *steps, bee_error *error);

/* Stop the session's request: a pass that runs for it returns within a layer, with finish CANCELLED.
 * Safe from any thread and from a signal handler. The next bee_session_begin clears it. */
BEE_API void bee_session_cancel(bee_session *session);

/* Of token i of the session's last step: the logarithm of its probability, and the most likely tokens in its place with
 * theirs, most likely first, as the model has them before biases, penalties, masks, truncation and temperature. */
typedef struct bee_logprobs {
    float logprob;
    int32_t n_top;
    int32_t top_tokens[20];
    float top_logprobs[20];
} bee_logprobs;

BEE_API bee_status bee_session_logprobs(const bee_session *session, int32_t i, bee_logprobs *out, bee_error *error);

BEE_API void bee_session_stats(const bee_session *session, bee_stats *out);

/* Tokens whose keys and values the session holds; the pointer is valid until the next call on the session. */
BEE_API int32_t bee_session_tokens(const bee_session *session, const int32_t **tokens);

/* ---- looking inside: for tests, training and measurement ---------------------------------------- */

/* Forget the session's content, run `n` tokens from position 0 in passes of `rows_per_pass`, and write all
 * logits: float[n][n_vocab], or nothing where `logits` is NULL. */
BEE_API bee_status bee_session_evaluate(bee_session *session, const int32_t *tokens, int32_t n, int32_t rows_per_pass,
                                        float *logits, bee_error *error);

/* Features of positions [from, from + n): float[n][n_taps][n_embd]. The session must have been opened with
 * keep_features, and hold those positions. */
BEE_API bee_status bee_session_features(const bee_session *session, int32_t from, int32_t n, float *out,
                                        bee_error *error);

/* Greedy drafts after the session's tokens followed by `last_token`, with the drafter's logits:
 * int32[n], and float[n][n_draft_vocab] where `logits` is not NULL. */
BEE_API bee_status bee_session_draft(bee_session *session, int32_t last_token, int32_t n, int32_t *drafts,
                                     float *logits, bee_error *error);

/* Fills `out` with random blocks of a weight type (ggml's number): weights with a mean of 0 and a deviation of 1/64,
 * for files whose size and speed are those of a model. */
BEE_API bee_status bee_random_weights(int32_t type, void *out, size_t bytes, bee_error *error);

/* Seconds of one target pass over `n_rows` tokens at position `n_past` of a scratch session, and of one draft
 * of n_rows - 1 tokens, to which the projection of two committed tokens' features belongs (0 without a drafter, for
 * one row, and beyond the drafter's block_size): medians over `repeats`. */
BEE_API bee_status bee_engine_measure(bee_engine *engine, int32_t n_rows, int32_t n_past, int32_t repeats,
                                      double *pass_seconds, double *draft_seconds, bee_error *error);

/* The same of passes alone, over n_rows[i] tokens each: medians, [n_sizes], of `repeats` turns, in each of which every
 * size has one pass, in one scratch session: a long context is read once for all. */
BEE_API bee_status bee_engine_measure_passes(bee_engine *engine, const int32_t *n_rows, int32_t n_sizes, int32_t n_past,
                                             int32_t repeats, double *pass_seconds, bee_error *error);

/* What a cycle takes and yields. What `seconds` has beyond `device_seconds` the device spent waiting for the host. */
typedef struct bee_cycle_cost {
    double seconds;        /* as a generation has it, where the host reads each cycle's tokens */
    double device_seconds; /* of a device where all cycles were queued at once; 0 on the CPU */
    double tokens;
} bee_cycle_cost;

/* One decode cycle of n_drafts drafts of the drafter's (0: nothing is drafted), greedy: means over n_cycles of a
 * scratch session's after n_past made-up tokens. `profile`: NULL, or float[BEE_MAX_BLOCK], falling from 1 to 0 at most:
 * on a device, cycles accept more than k drafts with probability profile[k], whatever was drafted. The CPU refuses one.
 */
BEE_API bee_status bee_engine_measure_cycles(bee_engine *engine, int32_t n_drafts, int32_t n_past, int32_t n_cycles,
                                             const float *profile, bee_cycle_cost *out, bee_error *error);

/* What a pass needs. A pass over n rows at context p reads weight_bytes + p * kv_bytes_per_position, and does n times
 * multiply_adds + p * attention_multiply_adds, and head_multiply_adds for each row that needs logits. */
typedef struct bee_pass_needs {
    uint64_t weight_bytes;            /* packed weights, read once for all rows */
    uint64_t kv_bytes_per_position;   /* of one sequence */
    uint64_t multiply_adds;           /* of the weights, for a row */
    uint64_t head_multiply_adds;      /* of the head's weights, for a row that needs logits */
    uint64_t attention_multiply_adds; /* for a row, by position */
} bee_pass_needs;

/* What this machine allows, measured with the engine's threads and instruction set. No pass takes less than the larger
 * of its bytes over a rate of reading and its multiply-adds over multiply_adds_per_second. Passes read the same weights
 * again and again: what the caches keep of them comes faster than memory gives it. */
typedef struct bee_limits {
    double read_bytes_per_second;    /* from memory: a buffer of 256 MiB */
    double reread_bytes_per_second;  /* a buffer as large as the target's weights, at most 256 MiB, again and again */
    double multiply_adds_per_second; /* 8-bit, from registers */
    bee_pass_needs target;
    bee_pass_needs drafter; /* a draft, without the projection of features; zero without a drafter */
} bee_limits;

/* Measures for some tenths of a second, during which no pass runs. */
BEE_API bee_status bee_engine_limits(bee_engine *engine, bee_limits *out, bee_error *error);

#ifdef __cplusplus
}
#endif
#endif
