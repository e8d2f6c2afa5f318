/* Activations of one model's passes of up to BEE_MAX_PASS_ROWS rows. */
#ifndef BEE_WORKSPACE_H
#define BEE_WORKSPACE_H

#include "model/model.h"

/* Strides are in floats. */
typedef struct Workspace {
    size_t embd_stride, query_stride, key_stride, feature_stride, logit_stride, token_stride, route_stride,
        input_stride, result_stride, low_stride, whole_query_stride, value_stride;
    float *x;          /* [rows][embd_stride] the residual stream */
    float *added;      /* [rows][embd_stride] what is to be added to it; NULL where products are added as they are */
    float *q;          /* [rows][query_stride] */
    float *k, *v;      /* [rows][key_stride] */
    float *head_gates; /* [rows][query_stride]; NULL without */
    float *low, *whole_queries, *values; /* of latent attention; NULL without */
    float *inputs;                       /* [rows][input_stride] of recurrent layers; NULL without */
    float *gates, *results;              /* [rows][result_stride] */
    float *angles[MAX_ROPES];            /* [rows][n_rotated] */
    float *features;                     /* [rows][feature_stride], taps side by side; a target's, NULL without taps */
    float *logits;                       /* [rows][logit_stride] */
    float *token, *token_made;           /* [rows][token_stride] layers' own embeddings, side by side; NULL without */
    float *routes;                       /* [rows][route_stride] logits of the router */
    float *shares;                       /* a column of theirs, behind them: of the shared expert */
    ExpertRoom experts;                  /* of mixtures */
    Operand *embd_in, *query_in, *ff_in, *token_in, *result_in;
    Operand *feature_in;  /* a drafter's */
    float *pair, *hidden; /* [rows][pair_stride], [rows][embd_stride] of a block that predicts */
    size_t pair_stride;
    Operand *low_in, *part_in, *row_in, *value_in; /* of latent attention */
} Workspace;

/* `n_taps` x the target's n_embd features: what a target keeps, or a drafter takes. */
bool workspace_new(const Ops *ops, Backend *backend, const Model *model, int n_taps, Workspace *out);
void workspace_free(const Ops *ops, Backend *backend, Workspace *workspace);

#endif
