/* Models: the weights of a file, in a backend's hands. */
#ifndef BEE_MODEL_H
#define BEE_MODEL_H

#include "devices.h"
#include "file/packed.h"
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
    Matrix head;
    bool owns_head;
    int n_head_rows; /* tokens the head knows: n_vocab, or a drafter's reduced vocabulary */

    /* Layers' own embeddings of tokens, one behind the other in a row: a table, and a projection of the embedding. */
    Table *token_table;
    Matrix token_projection;
    float *token_norm;

    /* drafter */
    Matrix features_in; /* fc: n_taps * n_embd -> n_embd */
    float *features_norm;
    /* One that came with the target: the first half of fc's columns reads the embedding of a token, normed, the second
     * what the target made of the token before it, normed twice: as its own head reads it, and by features_norm. */
    float *embedding_norm; /* NULL: it is none */
    float *hidden_norm;    /* the target's own */
    int32_t *draft_tokens; /* d2t: head row -> token; NULL: the row is the token */
    uint64_t weight_bytes;
    PackedFile *packed; /* that weights are mapped from; NULL: none are */
    MadeUp *made_up;    /* weights that are no file's; the embedding may point to them */
} Model;

#endif
