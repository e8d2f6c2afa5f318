#include "forward.h"

#include "blocks.h"

/* ---- the loop, the same for target and drafter ---------------------------------------------------- */

static void (*const mixers[MIXER_COUNT])(const Pass *, int layer) = {[MIXER_ATTENTION] = attention,
                                                                     [MIXER_LATENT_ATTENTION] = latent_attention,
                                                                     [MIXER_RECURRENCE] = recurrence,
                                                                     [MIXER_CONVOLUTION] = convolution,
                                                                     [MIXER_NONE] = NULL};
static void (*const feed_forwards[FEED_FORWARD_COUNT])(const Pass *,
                                                       int layer) = {[FEED_FORWARD_GATED] = gated_feed_forward,
                                                                     [FEED_FORWARD_EXPERTS] = expert_feed_forward,
                                                                     [FEED_FORWARD_NONE] = NULL};

static void begin(const Pass *p) {
    const Model *m = p->model;
    p->ops->embed(p->worker, m->table, p->rows, p->n, m->shape.embedding_scale, p->work->x, p->work->embd_stride);
    for (int i = 0; i < m->shape.n_ropes; i++)
        p->ops->rope_angles(p->worker, &m->ropes[i], p->rows, p->n, p->work->angles[i]);
    make_token_embeddings(p);
}

/* The input of `layer` (after the last one: its output) goes to its place among the features. */
static void tap(const Pass *p, const int32_t *taps, int n_taps, int layer) {
    const int n_embd = p->model->shape.n_embd;
    for (int i = 0; i < n_taps; i++)
        if (taps[i] == layer)
            p->ops->copy(p->worker, p->work->x, p->work->embd_stride, p->work->features + i * n_embd,
                         p->work->feature_stride, n_embd, p->n);
}

/* Behind one half of a layer one worker asks, and behind the next one, which has barriers, all of them read: so they
 * leave together. True where they do. */
static bool is_cancelled(Worker *worker, TargetPass *pass, int n_halves) {
    if (!pass) return false;
    if (n_halves % 2 == 0) return atomic_load_explicit(&pass->stopped, memory_order_relaxed);
    if (pass->ops->worker_index(worker) == 0 && pass->cancelled && pass->cancelled(pass->cancel_argument))
        atomic_store_explicit(&pass->stopped, true, memory_order_relaxed);
    return false;
}

/* `target` is NULL in a drafter's pass. False where the pass was cancelled. */
static bool layers(const Pass *p, TargetPass *target) {
    const Shape *s = &p->model->shape;
    int n_halves = 0;
    for (int layer = 0; layer < s->n_layer; layer++) {
        void (*const halves[])(const Pass *, int) = {mixers[s->layers[layer].mixer],
                                                     feed_forwards[s->layers[layer].feed_forward]};
        if (target) tap(p, target->taps, target->n_taps, layer);
        for (int i = 0; i < 2; i++) {
            if (!halves[i]) continue;
            halves[i](p, layer);
            if (is_cancelled(p->worker, target, ++n_halves)) return false;
        }
        add_token_embedding(p, layer);
    }
    if (target) tap(p, target->taps, target->n_taps, s->n_layer);
    return true;
}

/* Logits of some rows, and the tokens chosen from them. */
static void head(const Pass *p, const int32_t *head_rows, int n, Choice *choices) {
    const Model *m = p->model;
    Workspace *w = p->work;
    if (!n) return;
    const Norm norm = norm_with(&m->shape, m->output_norm);
    p->ops->norm(p->worker, &norm, w->x, w->embd_stride, head_rows, m->shape.n_embd, n, w->embd_in);
    p->ops->multiply(p->worker, &(Product){&m->head, w->logits, w->logit_stride, false}, 1, w->embd_in, n);
    if (m->shape.logit_scale != 1 || m->shape.logit_softcap)
        p->ops->cap(p->worker, m->shape.logit_scale, m->shape.logit_softcap, w->logits, w->logit_stride, m->n_head_rows,
                    n);
    if (choices) p->ops->choose(p->worker, w->logits, w->logit_stride, m->n_head_rows, m->draft_tokens, choices, n);
}

static RunInput input_of(const Model *m, const Row *rows, int n_rows, const int32_t *index, int n_index,
                         Choice *choices) {
    return (RunInput){.model = m,
                      .rows = rows,
                      .n_rows = n_rows,
                      .index = index,
                      .n_index = n_index,
                      .choices = choices,
                      .n_choices = choices ? n_index : 0,
                      .mask_words = (m->shape.n_vocab + 31) / 32};
}

/* ---- target ------------------------------------------------------------------------------------- */

void target_body(Worker *worker, void *argument) {
    TargetPass *t = argument;
    const Pass pass = {worker, t->ops, t->model, t->work, t->rows, t->n_rows};
    begin(&pass);
    if (layers(&pass, t)) head(&pass, t->head_rows, t->n_head_rows, t->choices);
}

void target_forward(Backend *backend, TargetPass *pass) {
    atomic_init(&pass->stopped, false);
    const RunInput input =
        input_of(pass->model, pass->rows, pass->n_rows, pass->head_rows, pass->n_head_rows, pass->choices);
    pass->ops->run(backend, target_body, pass, &input);
}

/* ---- drafter ------------------------------------------------------------------------------------ */

void draft_body(Worker *worker, void *argument) {
    DraftPass *d = argument;
    const Pass pass = {worker, d->ops, d->model, d->work, d->rows, d->n_rows};
    begin(&pass);
    layers(&pass, NULL);
    head(&pass, d->head_rows, d->n_head_rows, d->choices);
}

void draft_forward(Backend *backend, DraftPass *pass) {
    const RunInput input =
        input_of(pass->model, pass->rows, pass->n_rows, pass->head_rows, pass->n_head_rows, pass->choices);
    pass->ops->run(backend, draft_body, pass, &input);
}

static void predict_body(Worker *worker, void *argument) {
    PredictPass *t = argument;
    const Ops *ops = t->ops;
    const Model *m = t->model;
    Workspace *w = t->work;
    const int n_embd = m->shape.n_embd;
    const Pass pass = {worker, ops, m, w, t->rows, t->n_rows};
    const Norm before = norm_with(&m->shape, m->hidden_norm), hidden = norm_with(&m->shape, m->features_norm),
               token = norm_with(&m->shape, m->embedding_norm), last = norm_with(&m->shape, m->output_norm);
    ops->embed(worker, m->table, t->rows, t->n_rows, m->shape.embedding_scale, w->pair, w->pair_stride);
    ops->copy(worker, t->hidden, t->hidden_stride, w->pair + n_embd, w->pair_stride, n_embd, t->n_rows);
    ops->norm_in_place(worker, &token, w->pair, w->pair_stride, n_embd, 1, t->n_rows);
    if (!t->own) ops->norm_in_place(worker, &before, w->pair + n_embd, w->pair_stride, n_embd, 1, t->n_rows);
    ops->norm_in_place(worker, &hidden, w->pair + n_embd, w->pair_stride, n_embd, 1, t->n_rows);
    ops->to_operand(worker, w->pair, w->pair_stride, NULL, t->n_rows, w->feature_in);
    ops->multiply(worker, &(Product){&m->features_in, w->x, w->embd_stride, false}, 1, w->feature_in, t->n_rows);
    for (int i = 0; i < m->shape.n_ropes; i++) ops->rope_angles(worker, &m->ropes[i], t->rows, t->n_rows, w->angles[i]);
    layers(&pass, NULL);
    head(&pass, t->head_rows, t->n_head_rows, t->choices);
    ops->copy(worker, w->x, w->embd_stride, w->hidden, w->embd_stride, n_embd, t->n_rows);
    ops->norm_in_place(worker, &last, w->hidden, w->embd_stride, n_embd, 1, t->n_rows);
}

void predict_forward(Backend *backend, PredictPass *pass) {
    RunInput input = input_of(pass->model, pass->rows, pass->n_rows, pass->head_rows, pass->n_head_rows, pass->choices);
    input.variant = pass->variant;
    pass->ops->run(backend, predict_body, pass, &input);
}

/* The context of every layer is the same projected feature; only keys and values are needed of it. */
void inject_body(Worker *worker, void *argument) {
    InjectPass *in = argument;
    const Ops *ops = in->ops;
    const Model *m = in->model;
    Workspace *w = in->work;
    const Pass pass = {worker, ops, m, w, in->rows, in->n_rows};
    ops->to_operand(worker, in->features, in->feature_stride, in->feature_rows, in->n_rows, w->feature_in);
    ops->multiply(worker, &(Product){&m->features_in, w->x, w->embd_stride, false}, 1, w->feature_in, in->n_rows);
    for (int i = 0; i < m->shape.n_ropes; i++)
        ops->rope_angles(worker, &m->ropes[i], in->rows, in->n_rows, w->angles[i]);
    const Norm norm = norm_with(&m->shape, m->features_norm);
    ops->norm(worker, &norm, w->x, w->embd_stride, NULL, m->shape.n_embd, in->n_rows, w->embd_in);
    for (int layer = 0; layer < m->shape.n_layer; layer++) store_context(&pass, layer);
}

void inject_forward(Backend *backend, InjectPass *pass) {
    const RunInput input = input_of(pass->model, pass->rows, pass->n_rows, pass->feature_rows, pass->n_rows, NULL);
    pass->ops->run(backend, inject_body, pass, &input);
}
