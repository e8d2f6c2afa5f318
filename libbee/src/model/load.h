/* Models come out of files. */
#ifndef BEE_LOAD_H
#define BEE_LOAD_H

#include "model.h"
#include "tensors.h"

typedef struct LoadOptions {
    bee_kv_type kv_type; /* how keys and values are to be remembered */
    bool made_up;        /* weights are random, not the file's */
    LoadProgress *progress;
    PackedCache *cache;
} LoadOptions;

/* Loads the weights. `target` is NULL for a target; a drafter takes from it, and from `target_file`, what its own file
 * lacks, after a check that the two fit. A target's own file, given once more, is its block that predicts a further
 * token, as a drafter. Returns NULL with the reason. */
Model *model_load(const Device *device, const Ops *ops, Backend *backend, const bee_file *file, const Model *target,
                  const bee_file *target_file, const LoadOptions *options, bee_error *error);
/* The same walk over the tensors without a backend, for what the device would hold: shape, number of head rows
 * and weight_bytes are filled in, everything else stays NULL. `target` may be NULL for a drafter, too: what it would
 * take from its target is then left out. The shape is to be freed. */
bee_status model_plan(const bee_file *file, const Device *device, const Model *target, const bee_file *target_file,
                      bee_kv_type kv_type, Model *out, bee_error *error);
/* What a pass over one row reads and computes. */
bee_pass_needs model_needs(const Ops *ops, const Model *model);
void model_free(const Ops *ops, Backend *backend, Model *model);

#endif
