/* An architecture is a description: what its metadata say, and which tensors a layer has. */
#ifndef BEE_ARCHITECTURE_H
#define BEE_ARCHITECTURE_H

#include <stddef.h>

#include "model/layer.h"
#include "model/metadata.h"

/* How long a side of a tensor is, or where a part of one begins. */
typedef enum Extent {
    EXTENT_NONE,
    EXTENT_ONE,
    EXTENT_EMBD,
    EXTENT_QUERY,
    EXTENT_KEY,
    EXTENT_QUERY_KEY,
    EXTENT_QUERY_KEY_VALUE,
    EXTENT_FF,
    EXTENT_TWO_FF,
    EXTENT_HEAD,  /* dimensions of a head */
    EXTENT_HEADS, /* their number */
    EXTENT_EXPERTS,
    EXTENT_FF_EXPERT,
    EXTENT_TWO_FF_EXPERT,
    EXTENT_FF_SHARED,
    EXTENT_TOKEN, /* a layer's own embedding of a token */
    EXTENT_TWO_QUERY,
    /* of latent attention */
    EXTENT_QUERY_RANK,
    EXTENT_WHOLE_QUERY, /* of all heads, before it meets the row */
    EXTENT_UNROTATED,   /* of a head of it */
    EXTENT_ROTATED,
    EXTENT_LATENT, /* numbers of the row */
    EXTENT_VALUE,  /* of a head */
    EXTENT_VALUES,
    /* of a recurrent layer */
    EXTENT_CHANNELS, /* inputs that are convolved */
    EXTENT_THREE_CHANNELS,
    EXTENT_CHANNELS_STEPS, /* and a step for each head */
    EXTENT_RESULTS,        /* of all heads */
    EXTENT_RESULTS_CHANNELS_STEPS,
    EXTENT_RESULT_GROUP, /* a part of them that is normed for itself */
    EXTENT_GROUPS,       /* the number of parts */
    EXTENT_RESULT,       /* of a head */
    EXTENT_STATES,       /* the number of heads */
    EXTENT_TWO_STATES,
    EXTENT_STATES_OF_KEY, /* that share a head of keys */
    EXTENT_KERNEL,
} Extent;

typedef enum SlotKind {
    SLOT_VECTOR,  /* a float * */
    SLOT_MATRIX,  /* a Matrix, with "<name>.bias" and "<name>.scale" where the file has them */
    SLOT_NUMBER,  /* a float */
    SLOT_ROWS,    /* a float *: a matrix, row by row */
    SLOT_COLUMNS, /* a float *: column by column */
    SLOT_DECAY,   /* a float *: row by row; random ones are -1, as states would grow of others */
    SLOT_EXPERTS, /* a Matrix *: one of each expert, of a tensor of three dimensions */
    SLOT_HEADS,   /* the same of heads */
} SlotKind;

typedef enum Condition {
    ALWAYS,
    OPTIONAL,
    MIXING,             /* the layer has something that mixes positions */
    FEEDING,            /* it has nothing but a feed-forward */
    ATTENDING,          /* the layer attends */
    RECURRENT,          /* it does not */
    RECURRENT_OPTIONAL, /* and even then the file may lack it */
    OWN_CACHE,          /* the layer has keys and values of its own */
    OWN_CACHE_OPTIONAL, /* the same, and even then the file may lack it */
    LOW_RANK,           /* queries are the product of two matrices */
    FULL_RANK,          /* they are not */
    DENSE,              /* the layer has no experts */
    MIXTURE,            /* it has */
    MIXTURE_OPTIONAL,   /* and even then the file may lack it */
    SHARED,             /* it has one that serves all rows */
    TOKEN_EMBEDDINGS,   /* layers have embeddings of their own */
} Condition;

/* One tensor of a layer, "blk.<layer>.<name>.weight", and where it goes. This table serves loading, freeing, the plan
 * and the formats of operands: a matrix reads the operand of its `columns`. */
typedef struct TensorSlot {
    const char *name;
    size_t field; /* of a Layer */
    SlotKind kind;
    Extent rows, columns; /* a vector has one row */
    Condition when;
    /* A matrix may be a part of another tensor instead: its rows from `begin` on, of `whole`. */
    const char *fused;
    Extent begin, whole;
    bool unscaled; /* what the file calls the matrix's scale is something else */
    /* Or stripes of it, of so many rows each: the first, third, ... or, where `odd`, the second, fourth, ... */
    Extent stripe;
    bool odd;
    bool bare; /* the name is whole: no ".weight" is put behind it */
} TensorSlot;

#define VECTOR(name_, field_, columns_, ...) \
    {.name = name_, .field = offsetof(Layer, field_), .kind = SLOT_VECTOR, .columns = columns_, __VA_ARGS__}
#define NUMBERS(name_, kind_, field_, rows_, columns_, ...) \
    {.name = name_, .field = offsetof(Layer, field_), .kind = kind_, .rows = rows_, .columns = columns_, __VA_ARGS__}
#define NUMBER(name_, field_) {.name = name_, .field = offsetof(Layer, field_), .kind = SLOT_NUMBER, .when = OPTIONAL}
#define MATRIX(name_, field_, rows_, columns_, ...) \
    {.name = name_,                                 \
     .field = offsetof(Layer, field_),              \
     .kind = SLOT_MATRIX,                           \
     .rows = rows_,                                 \
     .columns = columns_,                           \
     __VA_ARGS__}
#define EXPERTS(name_, field_, rows_, columns_, ...) \
    {.name = name_,                                  \
     .field = offsetof(Layer, field_),               \
     .kind = SLOT_EXPERTS,                           \
     .rows = rows_,                                  \
     .columns = columns_,                            \
     .when = MIXTURE,                                \
     __VA_ARGS__}
#define PART_OF(tensor, begin_, whole_) .fused = tensor, .begin = begin_, .whole = whole_

/* Queries, keys, values and output of attention; of layers that attend to another one's cache, no keys and values. */
#define QKV_SLOTS                                                                                                    \
    MATRIX("attn_q", q, EXTENT_QUERY, EXTENT_EMBD, PART_OF("attn_qkv", EXTENT_NONE, EXTENT_QUERY_KEY_VALUE)),        \
        MATRIX("attn_k", k, EXTENT_KEY, EXTENT_EMBD, PART_OF("attn_qkv", EXTENT_QUERY, EXTENT_QUERY_KEY_VALUE)),     \
        MATRIX("attn_v", v, EXTENT_KEY, EXTENT_EMBD, PART_OF("attn_qkv", EXTENT_QUERY_KEY, EXTENT_QUERY_KEY_VALUE)), \
        MATRIX("attn_output", attn_output, EXTENT_EMBD, EXTENT_QUERY)
#define HEAD_NORM_SLOTS VECTOR("attn_q_norm", q_norm, EXTENT_HEAD), VECTOR("attn_k_norm", k_norm, EXTENT_HEAD)
#define GATED_SLOTS                                                                                 \
    MATRIX("ffn_gate", gate, EXTENT_FF, EXTENT_EMBD), MATRIX("ffn_up", up, EXTENT_FF, EXTENT_EMBD), \
        MATRIX("ffn_down", down, EXTENT_EMBD, EXTENT_FF)
/* Gate and up may be one tensor, gate rows first. */
#define ROUTED_EXPERT_SLOTS                                                           \
    EXPERTS("ffn_gate_exps", expert_gate, EXTENT_FF_EXPERT, EXTENT_EMBD,              \
            PART_OF("ffn_gate_up_exps", EXTENT_NONE, EXTENT_TWO_FF_EXPERT)),          \
        EXPERTS("ffn_up_exps", expert_up, EXTENT_FF_EXPERT, EXTENT_EMBD,              \
                PART_OF("ffn_gate_up_exps", EXTENT_FF_EXPERT, EXTENT_TWO_FF_EXPERT)), \
        EXPERTS("ffn_down_exps", expert_down, EXTENT_EMBD, EXTENT_FF_EXPERT)
/* A feed-forward or experts, layer by layer. */
#define EXPERT_SLOTS                                                     \
    MATRIX("ffn_gate", gate, EXTENT_FF, EXTENT_EMBD, .when = DENSE),     \
        MATRIX("ffn_up", up, EXTENT_FF, EXTENT_EMBD, .when = DENSE),     \
        MATRIX("ffn_down", down, EXTENT_EMBD, EXTENT_FF, .when = DENSE), \
        MATRIX("ffn_gate_inp", router, EXTENT_EXPERTS, EXTENT_EMBD, .when = MIXTURE), ROUTED_EXPERT_SLOTS
#define SHARED_EXPERT_SLOTS                                                               \
    MATRIX("ffn_gate_shexp", shared_gate, EXTENT_FF_SHARED, EXTENT_EMBD, .when = SHARED), \
        MATRIX("ffn_up_shexp", shared_up, EXTENT_FF_SHARED, EXTENT_EMBD, .when = SHARED), \
        MATRIX("ffn_down_shexp", shared_down, EXTENT_EMBD, EXTENT_FF_SHARED, .when = SHARED)
/* The same, and a row that says how much of its answer counts. */
#define GATED_SHARED_EXPERT_SLOTS \
    SHARED_EXPERT_SLOTS, MATRIX("ffn_gate_inp_shexp", shared_share, EXTENT_ONE, EXTENT_EMBD, .when = SHARED)
/* Gate rows first, in one tensor. */
#define FUSED_GATED_SLOTS                                                                               \
    MATRIX("ffn_gate", gate, EXTENT_FF, EXTENT_EMBD, PART_OF("ffn_up", EXTENT_NONE, EXTENT_TWO_FF)),    \
        MATRIX("ffn_up.half", up, EXTENT_FF, EXTENT_EMBD, PART_OF("ffn_up", EXTENT_FF, EXTENT_TWO_FF)), \
        MATRIX("ffn_down", down, EXTENT_EMBD, EXTENT_FF)
/* The same of layers that attend among others that do not. */
#define ATTENDING_SLOTS                                                        \
    MATRIX("attn_q", q, EXTENT_QUERY, EXTENT_EMBD, .when = ATTENDING,          \
           PART_OF("attn_qkv", EXTENT_NONE, EXTENT_QUERY_KEY_VALUE)),          \
        MATRIX("attn_k", k, EXTENT_KEY, EXTENT_EMBD, .when = ATTENDING,        \
               PART_OF("attn_qkv", EXTENT_QUERY, EXTENT_QUERY_KEY_VALUE)),     \
        MATRIX("attn_v", v, EXTENT_KEY, EXTENT_EMBD, .when = ATTENDING,        \
               PART_OF("attn_qkv", EXTENT_QUERY_KEY, EXTENT_QUERY_KEY_VALUE)), \
        MATRIX("attn_output", attn_output, EXTENT_EMBD, EXTENT_QUERY, .when = ATTENDING)
#define ATTENDING_NORM_SLOTS                                       \
    VECTOR("attn_q_norm", q_norm, EXTENT_HEAD, .when = ATTENDING), \
        VECTOR("attn_k_norm", k_norm, EXTENT_HEAD, .when = ATTENDING)
#define STRIPES_OF(tensor, stripe_, whole_, odd_) .fused = tensor, .whole = whole_, .stripe = stripe_, .odd = odd_
/* Queries and gates of what heads give, head by head in one tensor. */
#define GATED_ATTENDING_SLOTS                                                      \
    MATRIX("attn_q", q, EXTENT_QUERY, EXTENT_EMBD, .when = ATTENDING,              \
           STRIPES_OF("attn_q", EXTENT_HEAD, EXTENT_TWO_QUERY, false)),            \
        MATRIX("attn_q", head_gates, EXTENT_QUERY, EXTENT_EMBD, .when = ATTENDING, \
               STRIPES_OF("attn_q", EXTENT_HEAD, EXTENT_TWO_QUERY, true)),         \
        MATRIX("attn_k", k, EXTENT_KEY, EXTENT_EMBD, .when = ATTENDING),           \
        MATRIX("attn_v", v, EXTENT_KEY, EXTENT_EMBD, .when = ATTENDING),           \
        MATRIX("attn_output", attn_output, EXTENT_EMBD, EXTENT_QUERY, .when = ATTENDING)
/* Gated delta net, but for its rates and steps. */
#define DELTA_NET_SLOTS                                                                                  \
    MATRIX("attn_qkv", inputs, EXTENT_CHANNELS, EXTENT_EMBD, .when = RECURRENT),                         \
        MATRIX("attn_gate", gates, EXTENT_RESULTS, EXTENT_EMBD, .when = RECURRENT),                      \
        MATRIX("ssm_out", results, EXTENT_EMBD, EXTENT_RESULTS, .when = RECURRENT),                      \
        NUMBERS("ssm_conv1d", SLOT_COLUMNS, taps, EXTENT_CHANNELS, EXTENT_KERNEL, .when = RECURRENT),    \
        NUMBERS("ssm_a", SLOT_DECAY, decay, EXTENT_ONE, EXTENT_STATES, .bare = true, .when = RECURRENT), \
        VECTOR("ssm_dt.bias", step_bias, EXTENT_STATES, .when = RECURRENT),                              \
        VECTOR("ssm_norm", result_norm, EXTENT_RESULT, .when = RECURRENT)
#define MAMBA_SLOTS                                                                                      \
    MATRIX("ssm_in.gates", gates, EXTENT_RESULTS, EXTENT_EMBD, .when = RECURRENT,                        \
           PART_OF("ssm_in", EXTENT_NONE, EXTENT_RESULTS_CHANNELS_STEPS)),                               \
        MATRIX("ssm_in.inputs", inputs, EXTENT_CHANNELS_STEPS, EXTENT_EMBD, .when = RECURRENT,           \
               PART_OF("ssm_in", EXTENT_RESULTS, EXTENT_RESULTS_CHANNELS_STEPS)),                        \
        MATRIX("ssm_out", results, EXTENT_EMBD, EXTENT_RESULTS, .when = RECURRENT),                      \
        NUMBERS("ssm_conv1d", SLOT_COLUMNS, taps, EXTENT_CHANNELS, EXTENT_KERNEL, .when = RECURRENT),    \
        VECTOR("ssm_conv1d.bias", tap_bias, EXTENT_CHANNELS, .when = RECURRENT_OPTIONAL),                \
        NUMBERS("ssm_a", SLOT_DECAY, decay, EXTENT_STATES, EXTENT_ONE, .bare = true, .when = RECURRENT), \
        NUMBERS("ssm_d", SLOT_ROWS, skip, EXTENT_STATES, EXTENT_ONE, .bare = true, .when = RECURRENT),   \
        VECTOR("ssm_dt.bias", step_bias, EXTENT_STATES, .when = RECURRENT),                              \
        NUMBERS("ssm_norm", SLOT_ROWS, result_norm, EXTENT_GROUPS, EXTENT_RESULT_GROUP, .when = RECURRENT)
/* The norm before the one half that a layer has. */
#define ONE_HALF_NORM_SLOTS                                      \
    VECTOR("attn_norm", attn_norm, EXTENT_EMBD, .when = MIXING), \
        VECTOR("attn_norm", ffn_norm, EXTENT_EMBD, .when = FEEDING)
#define SHORT_CONVOLUTION_SLOTS                                                                 \
    MATRIX("shortconv.in_proj", inputs, EXTENT_THREE_CHANNELS, EXTENT_EMBD, .when = RECURRENT), \
        MATRIX("shortconv.out_proj", results, EXTENT_EMBD, EXTENT_RESULTS, .when = RECURRENT),  \
        NUMBERS("shortconv.conv", SLOT_COLUMNS, taps, EXTENT_CHANNELS, EXTENT_KERNEL, .when = RECURRENT)
/* Norms before attention and feed-forward, which is what most families do. */
#define PRE_NORM_SLOTS VECTOR("attn_norm", attn_norm, EXTENT_EMBD), VECTOR("ffn_norm", ffn_norm, EXTENT_EMBD)
/* Norms of what attention and feed-forward add. */
#define POST_NORM_SLOTS \
    VECTOR("post_attention_norm", attn_post_norm, EXTENT_EMBD), VECTOR("post_ffw_norm", ffn_post_norm, EXTENT_EMBD)

/* Whether logits are made by "output" or by the embedding. */
typedef enum Head { HEAD_IF_PRESENT, HEAD_REQUIRED, HEAD_TIED } Head;

struct Architecture {
    bee_architecture about;
    /* Fills in everything but n_layer and architecture, which are known; layers are zeroed. */
    void (*read)(MetadataReader *r, Shape *shape);
    const TensorSlot *slots;
    int n_slots;
    Head head;
    bool predicts;           /* blocks behind the layers are such a layer, and predict a further token (MTP) */
    const char *output_norm; /* what the file calls the norm behind the last layer; NULL: "output_norm.weight" */
};

#define SLOTS(table) .slots = table, .n_slots = sizeof table / sizeof *table

#endif
