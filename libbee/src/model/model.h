/* Models: the weights of a file, in a backend's hands. */
#ifndef BEE_MODEL_H
#define BEE_MODEL_H

#include "devices.h"
#include "layer.h"
#include "random_weights.h"
#include "shape.h"

typedef struct Model {
    Shape shape;
    Rope ropes[MAX_ROPES]; /* their frequencies and draft_tokens are buffers of the backend */
    Tensor embedding;
    Table *table; /* the embedding, as the backend reads it */
    bool owns_table;
    Layer *layers;
    float *output_norm;
    Weight *head;
    bool owns_head;
    int n_head_rows; /* tokens the head knows: n_vocab, or a drafter's reduced vocabulary */

    /* drafter */
    Weight *features_in; /* fc: n_taps * n_embd -> n_embd */
    float *features_norm;
    int32_t *draft_tokens; /* d2t: head row -> token; NULL: the row is the token */
    uint64_t weight_bytes;
    MadeUp *made_up; /* weights that are no file's; the embedding may point to them */
} Model;

/* Whom to tell of the bytes of weights that are loaded, of one model or several. */
typedef struct LoadProgress {
    bee_progress_function tell; /* may be NULL */
    void *user;
    uint64_t done, total;
} LoadProgress;

/* Loads the weights. `target` is NULL for a target; a drafter takes from it, and from `target_file`, what its own file
 * lacks, after a check that the two fit. made_up: weights are random, not the file's. Returns NULL with the reason.
 * Both files must outlive the model. */
Model *model_load(const Device *device, const Ops *ops, Backend *backend, const bee_file *file, const Model *target,
                  const bee_file *target_file, bool made_up, LoadProgress *progress, bee_error *error);
/* The same walk over the tensors without a backend, for what the device would hold: shape, number of head rows
 * and weight_bytes are filled in, everything else stays NULL. `target` may be NULL for a drafter, too: what it would
 * take from its target is then left out. The shape is to be freed. */
bee_status model_plan(const bee_file *file, const Device *device, const Model *target, const bee_file *target_file,
                      Model *out, bee_error *error);
/* What a pass over one row reads and computes. */
bee_pass_needs model_needs(const Ops *ops, const Model *model);
void model_free(const Ops *ops, Backend *backend, Model *model);

#endif
