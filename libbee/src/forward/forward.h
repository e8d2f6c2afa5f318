/* The forward passes of target and drafter, written once against the operations of ops.h. */
#ifndef BEE_FORWARD_H
#define BEE_FORWARD_H

#include <stdatomic.h>

#include "workspace.h"

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

/* One pass of a block that predicts, over single tokens behind what the target, or the block itself, made of the token
 * before each. */
typedef struct PredictPass {
    const Ops *ops;
    const Model *model;
    Workspace *work;
    const Row *rows;
    int n_rows;
    const float *hidden; /* [rows][hidden_stride] */
    size_t hidden_stride;
    bool own;    /* made by the block itself: work->hidden */
    int variant; /* of the run: another one for other places of `hidden` and of the logits */
    const int32_t *head_rows;
    int n_head_rows;
    Choice *choices; /* one per head row */
} PredictPass;

/* Leaves in work->hidden what the next pass goes on from. */
void predict_forward(Backend *backend, PredictPass *pass);

/* What those three run, for a run that is made of several: the argument is the pass. */
void target_body(Worker *worker, void *pass);
void draft_body(Worker *worker, void *pass);
void inject_body(Worker *worker, void *pass);

#endif
