/* What a file says of a model, checked: the numbers of the whole, and one LayerShape per layer. An architecture
 * (architectures/) fills them in; everything else reads them, and asks for no architecture's name. */
#ifndef BEE_SHAPE_H
#define BEE_SHAPE_H

#include "ops.h"

typedef struct Architecture Architecture;

/* What mixes a position with those before it. */
typedef enum Mixer { MIXER_ATTENTION, MIXER_COUNT } Mixer;

/* FEED_FORWARD_GATED: down(activation(gate x) * (up x)) */
typedef enum FeedForward { FEED_FORWARD_GATED, FEED_FORWARD_COUNT } FeedForward;

typedef struct LayerShape {
    Mixer mixer;
    FeedForward feed_forward;
    Heads heads; /* `rope` points into the model once that is loaded */
    int rope;    /* which of Shape.ropes turns the heads; -1: none */
    int n_ff;
} LayerShape;

/* One way in which heads are rotated; a model has as many as its layers differ in. The frequency of pair i is
 * base^(-2 i / n_rotated) / scale, divided by the factor of pair i where the file has such a tensor. */
typedef struct RopeShape {
    int n_rotated;
    bool neox;
    double base, scale;
    const char *factors; /* name of the tensor; the file may lack it */
} RopeShape;

enum { MAX_ROPES = 2 };

typedef struct Shape {
    const Architecture *architecture;
    int n_vocab; /* 0 for a drafter that brings neither embedding nor vocabulary size */
    int n_ctx_train;
    int n_layer, n_embd;
    float eps; /* of all norms */
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
static inline int ff_columns(const LayerShape *l) { return l->n_ff; }

/* What caches for this model hold. */
CacheShape shape_cache(const Shape *shape);

#endif
