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

/* Each adds to the residual stream, work->x. */
void attention(const Pass *pass, int layer);
void gated_feed_forward(const Pass *pass, int layer);

/* Keys and values of what embd_in holds, without queries: a drafter's context. */
void store_context(const Pass *pass, int layer);

#endif
