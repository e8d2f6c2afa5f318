/* Packed weights that are kept in files from one engine to the next (file/packed.h): which file is a model's, whether
 * it fits, and what goes into a new one. Off unless the user names a directory. */
#ifndef BEE_PACKED_WEIGHTS_H
#define BEE_PACKED_WEIGHTS_H

#include "file/packed.h"
#include "ops.h"

/* Of an engine. */
typedef struct PackedCache {
    const char *directory;                 /* NULL: nothing is kept */
    const char *model_path, *drafter_path; /* the latter may be NULL */
    uint64_t mapped_bytes;                 /* of weights that were not packed, as a file had them */
    bool failed;                           /* a file could not be written */
    char note[256];                        /* what was written, or why not */
} PackedCache;

/* Of a model that is being loaded. */
typedef struct PackedModel PackedModel;

/* Looks for the model's file, and checks it with all threads. NULL where nothing is to be kept, or can be. */
PackedModel *packed_model_new(PackedCache *cache, const Ops *ops, Backend *backend, const bee_file *file,
                              const bee_file *target_file);
/* The bytes of the weight that comes next, of such rows of a tensor; NULL where they must be made. Whatever they come
 * from, they are told of by `packed_model_add`, and stay where they are until the end. */
const uint8_t *packed_model_next(PackedModel *model, const Tensor *tensor, const int32_t *row_ids, int n_rows,
                                 uint64_t bytes);
void packed_model_add(PackedModel *model, const uint8_t *data, uint64_t bytes);
/* Writes a new file where the old one did not have all, if `loaded`. Returns the file that weights are mapped from, to
 * be closed after them; NULL: none. */
PackedFile *packed_model_end(PackedModel *model, bool loaded);

#endif
