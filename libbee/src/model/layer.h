/* The weights of a layer, of whatever architecture. */
#ifndef BEE_LAYER_H
#define BEE_LAYER_H

#include "ops.h"

/* NULL, or a matrix without weight, where the architecture or the file has none; numbers are then 1. */
typedef struct Layer {
    float *attn_norm;
    Matrix q, k, v, attn_output;
    /* of latent attention: k and v are the rotated part of the row, and its others */
    Matrix q_down, q_up; /* in the place of q: the second reads what the first gives, normed */
    float *q_down_norm, *latent_norm;
    Matrix *head_keys, *head_values; /* [n_head] unrotated queries to the row, and from it to values */
    Matrix head_gates;               /* of what heads give, side by side like queries */
    float *sinks;                    /* [n_head] */
    float *q_norm, *k_norm;          /* gains of a head, or of the whole row */
    float *attn_post_norm;           /* of what attention adds */
    /* of a recurrent layer */
    Matrix inputs, rates,
        steps;             /* what it reads: side by side, the steps behind the inputs where they have no matrix */
    Matrix gates, results; /* gates of its results, and what these add to the stream */
    float *taps, *tap_bias, *decay, *step_bias, *skip, *result_norm;
    float *ffn_norm;
    Matrix gate, up, down;
    Matrix router;
    float *router_gain;                            /* of a norm of the stream for the router alone */
    float *router_bias;                            /* which chooses alone */
    Matrix *expert_gate, *expert_up, *expert_down; /* [n_experts] */
    Matrix shared_gate, shared_up, shared_down;
    Matrix shared_share;                   /* one row: how much of the shared expert's answer counts */
    float *expert_norm, *expert_post_norm; /* where experts stand beside gate, up, down: theirs, */
    float *dense_post_norm;                /* and of what these add */
    float *ffn_post_norm;                  /* of what the feed-forward adds */
    Matrix token_gate, token_projection;   /* of the layer's own embedding of the token */
    float *token_norm;
    float output_scale; /* of the residual stream behind the layer */
} Layer;

#endif
