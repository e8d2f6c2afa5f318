/* An architecture is a description: what its metadata say, and which tensors a layer has. */
#ifndef BEE_ARCHITECTURE_H
#define BEE_ARCHITECTURE_H

#include <stddef.h>

#include "model/layer.h"
#include "model/metadata.h"

/* How long a side of a tensor is. */
typedef enum Extent { EXTENT_EMBD, EXTENT_QUERY, EXTENT_KEY, EXTENT_FF, EXTENT_HEAD } Extent;

/* One tensor of a layer, "blk.<layer>.<name>.weight", and where it goes. This table serves loading, freeing, the plan
 * and the formats of operands: a matrix reads the operand of its `columns`. */
typedef struct TensorSlot {
    const char *name;
    size_t field; /* of a Layer: a Weight *, or a float * of a vector */
    bool is_vector;
    Extent rows, columns; /* a vector has one row */
} TensorSlot;

#define VECTOR(name_, field_, columns_) \
    {.name = name_, .field = offsetof(Layer, field_), .is_vector = true, .columns = columns_}
#define MATRIX(name_, field_, rows_, columns_) \
    {.name = name_, .field = offsetof(Layer, field_), .rows = rows_, .columns = columns_}

/* What nearly every decoder has. */
#define ATTENTION_SLOTS                                                                             \
    VECTOR("attn_norm", attn_norm, EXTENT_EMBD), MATRIX("attn_q", q, EXTENT_QUERY, EXTENT_EMBD),    \
        MATRIX("attn_k", k, EXTENT_KEY, EXTENT_EMBD), MATRIX("attn_v", v, EXTENT_KEY, EXTENT_EMBD), \
        MATRIX("attn_output", attn_output, EXTENT_EMBD, EXTENT_QUERY)
#define HEAD_NORM_SLOTS VECTOR("attn_q_norm", q_norm, EXTENT_HEAD), VECTOR("attn_k_norm", k_norm, EXTENT_HEAD)
#define FEED_FORWARD_SLOTS                                                                       \
    VECTOR("ffn_norm", ffn_norm, EXTENT_EMBD), MATRIX("ffn_gate", gate, EXTENT_FF, EXTENT_EMBD), \
        MATRIX("ffn_up", up, EXTENT_FF, EXTENT_EMBD), MATRIX("ffn_down", down, EXTENT_EMBD, EXTENT_FF)

struct Architecture {
    const char *name; /* general.architecture */
    const char *runs; /* who is built like this, for lists */
    bool is_drafter;
    /* Fills in everything but n_layer and architecture, which are known; layers are zeroed. */
    void (*read)(MetadataReader *r, Shape *shape);
    const TensorSlot *slots;
    int n_slots;
};

#define SLOTS(table) .slots = table, .n_slots = sizeof table / sizeof *table

#endif
