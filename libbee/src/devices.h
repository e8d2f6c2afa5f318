/* Where an engine runs: what stands between models and engines on one side, and cpu/ and cuda/ on the other. Whatever
 * a device says of bytes it says without being there. */
#ifndef BEE_DEVICES_H
#define BEE_DEVICES_H

#include "ops.h"

typedef struct Device {
    bee_device kind;
    /* It is not the host's: a plan must fit. */
    bool own_memory;
    /* It reads tensors by itself, where their data is not at hand. */
    bool reads_tensors;
    /* It finds rows of a table in a matrix: what is both is there once. */
    bool rows_of_matrices;
    /* An expert's gate and up must have the same type. */
    bool gates_alike;

    bee_status (*describe)(bee_device_info *out, bee_error *error);
    /* The operations of its backends; NULL with the reason where there are none. */
    const Ops *(*ops)(bee_error *error);
    /* Threads and instruction set are the CPU's: 0 and NULL are its own choice. */
    Backend *(*backend_new)(int n_threads, const char *instruction_set, bee_error *error);
    void (*backend_free)(Backend *backend);
    const char *(*instruction_set)(const Backend *backend);
    int (*n_threads)(const Backend *backend); /* of the host */
    /* What a backend had to do without since it was opened, for its user; empty: nothing. */
    const char *(*note)(const Backend *backend);

    /* What is taken of its memory: for a matrix's weights, */
    uint64_t (*matrix_bytes)(TensorType type, int rows, int columns);
    /* for matrices of as many experts, */
    uint64_t (*experts_bytes)(TensorType type, int rows, int columns, int n);
    /* for a buffer, */
    uint64_t (*buffer_bytes)(uint64_t bytes);
    /* for an operand of BEE_MAX_PASS_ROWS rows, in every form: which ones a model's matrices read is known when they
     * are loaded, */
    uint64_t (*operand_bytes)(int columns);
    /* for the partial results of attention, which all layers share: the largest counts, */
    uint64_t (*attention_bytes)(const CacheShape *shape, int n_ctx);
    /* for all else that an engine has once, where its largest head and feed-forward have so many rows and its models so
     * many layers, */
    uint64_t (*shared_bytes)(int n_head_rows, int n_ff, int n_layers);
    /* and for the driver itself: an estimate; and what of it is still to come once a backend is open. */
    uint64_t driver_bytes, driver_bytes_to_come;
    uint64_t (*bytes_taken)(const Backend *backend); /* of its memory, now; 0 where nobody counts */
} Device;

extern const Device bee_cpu_device, bee_cuda_device;

/* NULL where `kind` is no device. */
const Device *device_of(bee_device kind);

/* Why a backend could not make something: what made it unusable, or else that memory ran out, as `format` has it. */
bee_status fail_to_make(const Ops *ops, Backend *backend, bee_error *error, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
