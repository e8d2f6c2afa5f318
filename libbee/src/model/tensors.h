/* A walk over the tensors of a model: loads them, or, without a backend, checks them and counts bytes: the plan. */
#ifndef BEE_TENSORS_H
#define BEE_TENSORS_H

#include "model.h"
#include "packed_weights.h"

/* Whom to tell of the bytes of weights that are loaded, of one model or several. */
typedef struct LoadProgress {
    bee_progress_function tell; /* may be NULL */
    void *user;
    uint64_t done, total, told;
} LoadProgress;

/* Bytes of a file that it was told will be read. */
typedef struct ReadAhead {
    const bee_file *file;
    uint64_t begin, end;
} ReadAhead;

typedef struct Loader {
    const Ops *ops;
    Backend *backend; /* NULL: plan only */
    const bee_file *file;
    const char **bound; /* names, as the file points to them, of the tensors that the model uses */
    uint64_t n_bound;
    uint64_t weight_bytes;
    const Device *device;
    bee_kv_type kv_type;    /* how the model's keys and values are to be remembered */
    MadeUp **made_up;       /* NULL: the weights are the file's */
    LoadProgress *progress; /* with a backend */
    PackedModel *packed;    /* NULL: packed weights are not kept */
    uint8_t *buffer;        /* of the tensor that is being loaded */
    uint64_t buffer_size;
    ReadAhead ahead;
    bee_error *error;
    bee_status status;
} Loader;

/* A tensor could not be loaded: because of the device, where that failed, or for want of memory. */
void fail_memory(Loader *l, const char *name);
/* The names that a model has used. */
bool is_bound(const Loader *l, const char *name);
void bind_tensor(Loader *l, const char *name);
/* Lets the tensor's data be at hand until the next one is read. */
bool read_tensor(Loader *l, Tensor *tensor);
/* Finds a tensor and checks its shape: columns is shape[0]; rows < 0 accepts any number. False where this, or anything
 * before it, failed. */
bool find_tensor(Loader *l, const char *name, int64_t rows, int64_t columns, Tensor *out);
bool has_tensor(const Loader *l, const char *name, const char *suffix);

/* These return NULL where they failed, and where there is no backend. */
Weight *load_weight(Loader *l, const char *name, const Tensor *tensor, const int32_t *row_ids, int n_rows);
float *load_vector(Loader *l, const char *name, int64_t columns);
/* A matrix as numbers, as a slot of that kind has them. */
float *load_numbers(Loader *l, const char *name, int64_t rows, int64_t columns, int slot_kind);
float load_number(Loader *l, const char *name, float fallback);
Table *load_table(Loader *l, const char *name, const Tensor *tensor);

/* A part of a tensor, as matrix: rows [first, first + rows) of `whole`; or, where `stripe` is above 0, of every two
 * stripes of so many rows the first, or the second one where `odd`. */
typedef struct Part {
    int64_t first, rows, whole, stripe;
    bool odd;
} Part;

/* What "<name>.scale" multiplies. */
typedef enum ScaleUse {
    SCALES_NOTHING, /* what has that name is something else */
    SCALES_PRODUCT,
    SCALES_SUM, /* the bias, too; not that of a matrix in NVFP4, whose scale is a part of its weights */
} ScaleUse;

/* "<name>.weight", with "<name>.bias" and "<name>.scale" where the file has them. */
void load_matrix(Loader *l, const char *name, Part part, int64_t columns, ScaleUse use, Matrix *out);
/* The same part of each expert's matrix in a tensor of three dimensions, with their rows of "<name>.bias" and numbers
 * of "<name>.scale" where the file has them. */
void load_experts(Loader *l, const char *name, Part part, int64_t columns, int n_experts, Matrix **out);
void load_whole_matrix(Loader *l, const char *name, int64_t rows, int64_t columns, Matrix *out);
void matrix_free(const Ops *ops, Backend *backend, Matrix *matrix);
/* The embedding, of as many rows as the file has tokens. It gets a table of its own, unless it is `tied`, being the
 * model's head, too, which is loaded, and the device reads rows of that. */
void find_embedding(Loader *l, Model *m);
void load_embedding_rows(Loader *l, Model *m, bool tied);

#endif
