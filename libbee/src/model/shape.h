/* What a file says of a model, checked: the numbers of the whole, and one LayerShape per layer. An architecture
 * (architectures/) fills them in; everything else reads them, and asks for no architecture's name. */
#ifndef BEE_SHAPE_H
#define BEE_SHAPE_H

#include "ops.h"

typedef struct Architecture Architecture;

/* What mixes a position with those before it. */
typedef enum Mixer {
    MIXER_ATTENTION,
    MIXER_LATENT_ATTENTION,
    MIXER_RECURRENCE,
    MIXER_CONVOLUTION,
    MIXER_NONE,
    MIXER_COUNT
} Mixer;

/* GATED: down(activation(gate x) * (up x)), or without `gate` down(activation(up x)). EXPERTS: the weighted sum of a
 * few such, and of one for all rows where n_ff_shared is above 0. */
typedef enum FeedForward {
    FEED_FORWARD_GATED,
    FEED_FORWARD_EXPERTS,
    FEED_FORWARD_NONE,
    FEED_FORWARD_COUNT
} FeedForward;

/* Attention whose keys and values are one compressed row of `rank` numbers for all heads, and `n_rotated` that know
 * positions (arXiv 2405.04434). As Heads have it, a head is the rotated numbers and then those of the row; what it
 * gives is decompressed to `value_size`. */
typedef struct Latent {
    int rank, n_rotated;
    int query_rank; /* of a product of two matrices; 0: queries are one */
    int query_size; /* of a head, before it meets the row: the rotated numbers are the last of them */
    int value_size;
} Latent;

typedef struct LayerShape {
    Mixer mixer;
    FeedForward feed_forward;
    Heads heads;           /* `rope` points into the model once that is loaded */
    int rope;              /* which of Shape.ropes turns the heads; -1: none */
    int cache_of;          /* the layer whose keys and values it attends to: its own number, or one before */
    bool whole_norms;      /* queries and keys are normed as whole rows, not head by head */
    float attention_scale; /* of what attention adds to the stream */
    bool gated_heads;      /* what heads give is multiplied by gates of its own */
    Recurrence recurrence; /* of layers that do not attend; its numbers are the layer's */
    Latent latent;         /* of latent attention */
    int n_norm_groups;     /* its results are normed in so many parts of a row, each with gains of its own; 0: not */
    int n_ff;              /* of a gated feed-forward */
    Activation activation;
    Routing routing; /* its bias is the layer's */
    int n_ff_expert, n_ff_shared;
} LayerShape;

/* One way in which heads are rotated; a model has as many as its layers differ in. The frequency of pair i is
 * base^(-2 i / n_rotated) / scale, divided by the factor of pair i where the file has such a tensor. YaRN (arXiv
 * 2309.00071) leaves fast pairs unscaled. */
typedef struct RopeShape {
    int n_rotated;
    bool neox;
    double base, scale;
    float magnitude;             /* of cosines and sines */
    int yarn_context;            /* positions before YaRN's scaling; 0: no YaRN */
    double yarn_fast, yarn_slow; /* turns over that context: above the first unscaled, below the second scaled */
    const char *factors;         /* name of the tensor; the file may lack it; NULL: none is looked for */
    const char *long_factors;    /* of contexts of more than long_beyond positions */
    int long_beyond;
    int sections[4]; /* interleaved multimodal RoPE: pairs of positions, rows, columns; all 0: none */
} RopeShape;

enum { MAX_ROPES = 2, MAX_LAYERS = 1024 };

typedef struct Shape {
    const Architecture *architecture;
    int n_vocab; /* 0 for a drafter that brings neither embedding nor vocabulary size */
    int n_ctx_train;
    int n_layer, n_embd;
    int n_blocks; /* of the file: the layers, and behind them blocks that predict further tokens, which are not run */
    int first_block;                                    /* of the file: the first layer */
    float eps;                                          /* of all norms */
    bool centred;                                       /* norms are layer norms: they take the mean away */
    bool parallel;                                      /* attention and feed-forward read the same normed row */
    float embedding_scale, residual_scale, logit_scale; /* of rows, of what a layer adds, of logits; 1: none */
    float logit_softcap;                                /* 0: none */
    int n_token;                                        /* values of a layer's own embedding of each token; 0: none */
    LayerShape *layers;
    RopeShape ropes[MAX_ROPES];
    int n_ropes;

    /* of a drafter */
    int block_size; /* rows of a draft pass: the last committed token and block_size - 1 masks */
    int n_taps;
    int32_t taps[BEE_MAX_TAPS];
    int mask_token;
    bool causal;
} Shape;

/* Reads and checks the metadata. On success `out` is to be freed. */
bee_status shape_read(const bee_file *file, Shape *out, bee_error *error);
void shape_free(Shape *shape);

/* The largest number over the layers. */
int shape_widest(const Shape *shape, int (*number)(const LayerShape *layer));
static inline int query_columns(const LayerShape *l) { return l->heads.n_head * l->heads.head_size; }
static inline int key_columns(const LayerShape *l) { return l->heads.n_head_kv * l->heads.head_size; }
static inline int whole_query_columns(const LayerShape *l) { return l->heads.n_head * l->latent.query_size; }
static inline int value_columns(const LayerShape *l) { return l->heads.n_head * l->latent.value_size; }
static inline int query_rank_of(const LayerShape *l) { return l->latent.query_rank; }
static inline int unrotated_columns(const LayerShape *l) { return l->latent.query_size - l->latent.n_rotated; }
static inline int ff_columns(const LayerShape *l) { return l->n_ff > l->n_ff_shared ? l->n_ff : l->n_ff_shared; }
static inline int expert_columns(const LayerShape *l) { return l->n_ff_expert; }
static inline int n_experts_of(const LayerShape *l) { return l->routing.n_experts; }
static inline int n_used_of(const LayerShape *l) { return l->routing.n_used; }

static inline bool is_recurrent(const LayerShape *l) {
    return l->mixer == MIXER_RECURRENCE || l->mixer == MIXER_CONVOLUTION;
}
/* Of a recurrent layer: what it reads of a row, and what it gives. */
static inline int input_columns(const LayerShape *l) {
    return l->mixer == MIXER_CONVOLUTION ? 3 * l->recurrence.channels : l->recurrence.input_floats;
}
static inline int result_columns(const LayerShape *l) {
    const Recurrence *r = &l->recurrence;
    return r->n_heads ? r->n_heads * r->value_size : r->channels;
}

/* Gates of heads. */
static inline int gate_columns(const LayerShape *l) { return l->gated_heads ? query_columns(l) : 0; }

/* Whether it is one of them. */
bee_status kv_type_check(bee_kv_type type, bee_error *error);
/* Each layer is told how and where its keys and values lie; then, what caches for this model hold. */
void shape_place_caches(Shape *shape, bee_kv_type kv_type);
CacheShape shape_cache(const Shape *shape);

#endif
