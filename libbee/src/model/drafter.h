/* What a drafter's file lacks it takes from its target, after a check that the two fit. */
#ifndef BEE_DRAFTER_H
#define BEE_DRAFTER_H

#include "tensors.h"

/* All but the layers. `target` may be NULL: then what it would give is left out. */
void load_drafter(Loader *l, Model *m, const Model *target, const bee_file *target_file);

/* The block behind the target's layers, in the target's own file. */
enum { PREDICTED_BLOCK = 6 }; /* the last token and five more, which it drafts one by one */
bool predictor_shape(const Shape *target, Shape *out);
void load_predictor(Loader *l, Model *m, const Model *target);

#endif
