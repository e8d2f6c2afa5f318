/* GGUF v3 reader: what the rest of the library asks of a file. The public part is in bee.h. */
#ifndef BEE_GGUF_H
#define BEE_GGUF_H

#include "bee.h"
#include "types/list.h"

/* A tensor of a file, or a part of one; valid while the file is open. */
typedef struct Tensor {
    const char *name; /* not NUL-terminated; for messages */
    int name_length;
    TensorType type;
    int n_dimensions;
    int64_t columns; /* shape[0]: contiguous in memory */
    int64_t rows;    /* product of the other dimensions */
    int64_t shape[4];
    const bee_file *holder;
    uint64_t offset;     /* of its data in that file */
    const uint8_t *data; /* whoever read it says how long; NULL: nobody did */
    uint64_t size;
} Tensor;

/* The tensor called `name`. `gguf_tensor` fails where it is missing or of a type that cannot be run. */
bool gguf_has_tensor(const bee_file *file, const char *name);
bee_status gguf_tensor(const bee_file *file, const char *name, Tensor *out, bee_error *error);

/* Reads the tensor's data, `size` bytes. Fails where the file has become shorter. */
bee_status gguf_read(const Tensor *tensor, uint8_t *out, bee_error *error);

/* Bytes [begin, end) of a tensor's file will be read soon; the system may fetch them meanwhile. */
void gguf_read_ahead(const bee_file *holder, uint64_t begin, uint64_t end);

/* What tells a model's file from another, or from itself before it was changed, without reading all of it: its size,
 * the time of its last change, and checksums of its beginning (metadata and the list of tensors) and of a page of each
 * tensor. Of a split model, those of all parts. */
typedef struct FileIdentity {
    uint64_t size, time, beginning, samples;
} FileIdentity;

bee_status gguf_identity(const bee_file *file, FileIdentity *out, bee_error *error);

/* Metadata by key. `gguf_find` returns false where the key is absent. The typed readers convert between integer
 * widths, check the range, and name the key where type or range are wrong; an absent key is an error that names
 * it, unless `required` is false, in which case *out stays as it was. */
bool gguf_find(const bee_file *file, const char *key, bee_metadata *out);
bee_status gguf_int(const bee_file *file, const char *key, bool required, int64_t low, int64_t high, int64_t *out,
                    bee_error *error);
bee_status gguf_float(const bee_file *file, const char *key, bool required, double *out, bee_error *error);
bee_status gguf_bool(const bee_file *file, const char *key, bool required, bool *out, bee_error *error);
/* Copies the string, NUL-terminated; one longer than capacity - 1 or holding a NUL is an error. */
bee_status gguf_string(const bee_file *file, const char *key, bool required, char *out, size_t capacity,
                       bee_error *error);
/* Copies up to `capacity` integers of an array; more are an error. A scalar counts as an array of one. */
bee_status gguf_ints(const bee_file *file, const char *key, bool required, int32_t *out, int capacity, int *count,
                     bee_error *error);

/* FNV-1a hash (64 bits) of tokenizer.ggml.tokens: over the count as u64, then each string's length as u64 and its
 * bytes, all little-endian, as in the file. Equal vocabularies, equal hash. 0 where the file has none; *count
 * receives the number of tokens. */
uint64_t gguf_vocabulary_hash(const bee_file *file, uint64_t *count);

#endif
