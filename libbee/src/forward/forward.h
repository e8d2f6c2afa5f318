/* The forward passes of target and drafter, written once against the operations of ops.h. */
#ifndef BEE_FORWARD_H
#define BEE_FORWARD_H

#include <stdatomic.h>

#include "model/model.h"

/* Activations of one model's passes of up to BEE_MAX_PASS_ROWS rows. Strides are in floats. */
typedef struct Workspace {
    size_t embd_stride, query_stride, key_stride, feature_stride, logit_stride;
    float *x;        /* [rows][embd_stride] the residual stream */
    float *q;        /* [rows][query_stride] */
    float *k, *v;    /* [rows][key_stride] */
    float *angles;   /* [rows][n_rotated] */
    float *features; /* [rows][feature_stride], taps side by side; a target's, NULL without taps */
    float *logits;   /* [rows][logit_stride] */
    Operand *embd_in, *query_in, *ff_in;
    Operand *feature_in; /* a drafter's */
} Workspace;

/* `n_taps` x the target's n_embd features: what a target keeps, or a drafter takes. */
bool workspace_new(const Ops *ops, Backend *backend, const Model *model, int n_taps, Workspace *out);
void workspace_free(const Ops *ops, Backend *backend, Workspace *workspace);

/* One pass of the target over its rows. */
typedef struct TargetPass {
    const Ops *ops;
    const Model *model;
    Workspace *work;
    const Row *rows;
    int n_rows;
    const int32_t *taps; /* layers whose inputs go to work->features */
    int n_taps;
    const int32_t *head_rows; /* rows that need logits */
    int n_head_rows;
    Choice *choices;                   /* tokens to choose from those logits; may be NULL */
    bool (*cancelled)(void *argument); /* asked once per layer */
    void *cancel_argument;
    atomic_bool stopped; /* out: the pass ended early, its results are void */
} TargetPass;

void target_forward(Backend *backend, TargetPass *pass);

/* One pass of the drafter over blocks of [last committed token, mask, mask, ...]. */
typedef struct DraftPass {
    const Ops *ops;
    const Model *model;
    Workspace *work;
    const Row *rows;
    int n_rows;
    const int32_t *head_rows; /* the masks */
    int n_head_rows;
    Choice *choices; /* one per head row; may be NULL */
} DraftPass;

void draft_forward(Backend *backend, DraftPass *pass);

/* Projects target features into the drafter's cache: row i takes target->features[feature_rows[i]]. */
typedef struct InjectPass {
    const Ops *ops;
    const Model *model;
    Workspace *work;
    const float *features;
    size_t feature_stride;
    const int32_t *feature_rows;
    const Row *rows;
    int n_rows;
} InjectPass;

void inject_forward(Backend *backend, InjectPass *pass);

/* What those three run, for a run that is made of several: the argument is the pass. */
void target_body(Worker *worker, void *pass);
void draft_body(Worker *worker, void *pass);
void inject_body(Worker *worker, void *pass);

#endif
