/* The weights of a layer, of whatever architecture. */
#ifndef BEE_LAYER_H
#define BEE_LAYER_H

#include "ops.h"

/* NULL where the architecture, or the file, has none. */
typedef struct Layer {
    float *attn_norm, *ffn_norm, *q_norm, *k_norm;
    Weight *q, *k, *v, *attn_output;
    Weight *gate, *up, *down;
} Layer;

#endif
