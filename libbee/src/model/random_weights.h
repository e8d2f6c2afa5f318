/* Weights for measurements, in place of a file's: random blocks, whose data nobody has to store. */
#ifndef BEE_MADE_UP_H
#define BEE_MADE_UP_H

#include "file/gguf.h"

/* One buffer of random weights, which all smaller tensors of a type share. A list of them belongs to a model. */
typedef struct MadeUp MadeUp;

/* Lets the tensor's data point to random weights, about as large as those of a layer of some thousand columns, or where
 * it is a vector of F32, as norms are, to ones. False where there is no memory. They live until the list is freed. */
bool make_up(MadeUp **list, Tensor *tensor);
void made_up_free(MadeUp *list);

#endif
