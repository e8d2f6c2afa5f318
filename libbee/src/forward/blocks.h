/* The two halves of a layer: what mixes positions, and what follows at each. One function per kind; the loop of
 * forward.c dispatches on the layer's shape. */
#ifndef BEE_BLOCKS_H
#define BEE_BLOCKS_H

#include "workspace.h"

/* A pass as its layers see it: the rows of a worker's pass over one model. */
typedef struct Pass {
    Worker *worker;
    const Ops *ops;
    const Model *model;
    Workspace *work;
    const Row *rows;
    int n;
} Pass;

/* ---- what the halves share ------------------------------------------------------------------------ */

Norm norm_with(const Shape *shape, const float *gain);
/* The residual stream, work->x, into embd_in; normed where there is a gain. */
void read_stream(const Pass *pass, const float *gain);
/* Adds a product, normed where there is a gain, to the residual stream, which is then multiplied by `whole`. */
void add_to_stream(const Pass *pass, const Matrix *matrix, const Operand *in, const float *post_gain, float whole);

/* ---- the halves: each adds to the residual stream ------------------------------------------------- */

void attention(const Pass *pass, int layer);
void latent_attention(const Pass *pass, int layer);
void recurrence(const Pass *pass, int layer);
void convolution(const Pass *pass, int layer);
void gated_feed_forward(const Pass *pass, int layer);
void expert_feed_forward(const Pass *pass, int layer);

/* What a layer's own embedding of the token adds, where layers have them. */
void make_token_embeddings(const Pass *pass);
void add_token_embedding(const Pass *pass, int layer);

/* Keys and values of what embd_in holds, without queries: a drafter's context. */
void store_context(const Pass *pass, int layer);

#endif
