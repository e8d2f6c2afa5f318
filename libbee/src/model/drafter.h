/* What a drafter's file lacks it takes from its target, after a check that the two fit. */
#ifndef BEE_DRAFTER_H
#define BEE_DRAFTER_H

#include "tensors.h"

/* All but the layers. `target` may be NULL: then what it would give is left out. */
void load_drafter(Loader *l, Model *m, const Model *target, const bee_file *target_file);

/* The block behind a target's layers, which predicts a further token (MTP): in the target's own file, or in one of its
 * own ("mtp-*.gguf"), which repeats the target's metadata, vocabulary, embedding and head. */
enum { PREDICTED_BLOCK = 6 }; /* the last token and five more, which it drafts one by one */

/* Whether the file has a block, and how to run it is known. */
bool model_predicts(const bee_file *file, const Shape *model);
/* Whether a file of that shape has a block and no layers before it. */
bool is_block_alone(const bee_file *file, const Shape *model);
/* What a file is that is no model by itself, in words; NULL: it is a model. */
const char *drafter_kind(const bee_file *file, const Shape *shape);
/* The shape of a block, which is to be freed; after a check that it is this target's. `target` may be NULL. */
bool read_block(Loader *l, Shape *out, const Model *target, const bee_file *target_file);
/* All but the layer. */
void load_predictor(Loader *l, Model *m, const Model *target, const bee_file *target_file);

#endif
