#include "forward.h"

#include <string.h>

/* ---- workspaces --------------------------------------------------------------------------------- */

/* Float weights take their operand as values, the others as codes; the layers of one file may mix both. */
static int formats_for(const Ops *ops, const Weight *const *weights, int n) {
    int formats = 0;
    for (int i = 0; i < n; i++) formats |= ops->operand_format(weights[i]);
    return formats;
}

static bool operands_new(const Ops *ops, Backend *backend, const Model *m, int n_features, Workspace *w) {
    const Shape *s = &m->shape;
    int embd = formats_for(ops, (const Weight *[]){m->head}, 1), query = 0, ff = 0;
    for (int i = 0; i < s->n_layer; i++) {
        const Layer *l = &m->layers[i];
        embd |= formats_for(ops, (const Weight *[]){l->q, l->k, l->v, l->gate, l->up}, 5);
        query |= formats_for(ops, (const Weight *[]){l->attn_output}, 1);
        ff |= formats_for(ops, (const Weight *[]){l->down}, 1);
    }
    w->embd_in = ops->operand_new(backend, s->n_embd, BEE_MAX_PASS_ROWS, embd | OPERAND_OWN);
    w->query_in = ops->operand_new(backend, s->n_head * s->head_size, BEE_MAX_PASS_ROWS, query);
    w->ff_in = ops->operand_new(backend, s->n_ff, BEE_MAX_PASS_ROWS, ff);
    if (m->features_in)
        w->feature_in =
            ops->operand_new(backend, n_features, BEE_MAX_PASS_ROWS, ops->operand_format(m->features_in) | OPERAND_OWN);
    return w->embd_in && w->query_in && w->ff_in && (w->feature_in || !m->features_in);
}

bool workspace_new(const Ops *ops, Backend *backend, const Model *model, int n_taps, Workspace *w) {
    const Shape *s = &model->shape;
    const int rows = BEE_MAX_PASS_ROWS;
    const int query = s->n_head * s->head_size, key = s->n_head_kv * s->head_size, features = n_taps * s->n_embd;
    *w = (Workspace){.embd_stride = padded(s->n_embd),
                     .query_stride = padded(query),
                     .key_stride = padded(key),
                     .feature_stride = padded(features),
                     .logit_stride = padded(model->n_head_rows)};
    w->x = ops->buffer_new(backend, rows * w->embd_stride);
    w->q = ops->buffer_new(backend, rows * w->query_stride);
    w->k = ops->buffer_new(backend, rows * w->key_stride);
    w->v = ops->buffer_new(backend, rows * w->key_stride);
    w->angles = ops->buffer_new(backend, (size_t)rows * s->n_rotated);
    w->logits = ops->buffer_new(backend, rows * w->logit_stride);
    if (features && !model->features_in) w->features = ops->buffer_new(backend, rows * w->feature_stride);
    const bool ok = w->x && w->q && w->k && w->v && w->angles && w->logits &&
                    (w->features || !features || model->features_in) && operands_new(ops, backend, model, features, w);
    if (!ok) workspace_free(ops, backend, w);
    return ok;
}

void workspace_free(const Ops *ops, Backend *backend, Workspace *w) {
    float *buffers[] = {w->x, w->q, w->k, w->v, w->angles, w->features, w->logits};
    Operand *operands[] = {w->embd_in, w->query_in, w->ff_in, w->feature_in};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) ops->buffer_free(backend, buffers[i]);
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++) ops->operand_free(backend, operands[i]);
    memset(w, 0, sizeof *w);
}

/* ---- layers, the same for target and drafter ---------------------------------------------------- */

static void attention_block(Worker *worker, const Ops *ops, const Model *m, Workspace *w, int layer, const Row *rows,
                            int n) {
    const Layer *l = &m->layers[layer];
    ops->rms_norm(worker, w->x, w->embd_stride, NULL, l->attn_norm, m->shape.eps, m->shape.n_embd, n, w->embd_in);
    const Product qkv[] = {
        {l->q, w->q, w->query_stride, false}, {l->k, w->k, w->key_stride, false}, {l->v, w->v, w->key_stride, false}};
    ops->multiply(worker, qkv, 3, w->embd_in, n);
    ops->rotate_and_store(worker, &m->heads, layer, rows, n, w->angles, l->q_norm, l->k_norm, w->q, w->query_stride,
                          w->k, w->v, w->key_stride);
    ops->attend(worker, &m->heads, layer, rows, n, w->q, w->query_stride, w->query_in);
    ops->multiply(worker, &(Product){l->attn_output, w->x, w->embd_stride, true}, 1, w->query_in, n);
}

static void feed_forward_block(Worker *worker, const Ops *ops, const Model *m, Workspace *w, int layer, int n) {
    const Layer *l = &m->layers[layer];
    ops->rms_norm(worker, w->x, w->embd_stride, NULL, l->ffn_norm, m->shape.eps, m->shape.n_embd, n, w->embd_in);
    ops->swiglu(worker, l->gate, l->up, w->embd_in, n, w->ff_in);
    ops->multiply(worker, &(Product){l->down, w->x, w->embd_stride, true}, 1, w->ff_in, n);
}

/* Logits of some rows, and the tokens chosen from them. */
static void head(Worker *worker, const Ops *ops, const Model *m, Workspace *w, const int32_t *head_rows, int n,
                 Choice *choices) {
    if (!n) return;
    ops->rms_norm(worker, w->x, w->embd_stride, head_rows, m->output_norm, m->shape.eps, m->shape.n_embd, n,
                  w->embd_in);
    ops->multiply(worker, &(Product){m->head, w->logits, w->logit_stride, false}, 1, w->embd_in, n);
    if (choices) ops->choose(worker, w->logits, w->logit_stride, m->n_head_rows, m->draft_tokens, choices, n);
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

/* The input of `layer` (after the last one: its output) goes to its place among the features. */
static void tap(Worker *worker, TargetPass *pass, int layer) {
    const int n_embd = pass->model->shape.n_embd;
    for (int i = 0; i < pass->n_taps; i++)
        if (pass->taps[i] == layer)
            pass->ops->copy(worker, pass->work->x, pass->work->embd_stride, pass->work->features + i * n_embd,
                            pass->work->feature_stride, n_embd, pass->n_rows);
}

void target_body(Worker *worker, void *argument) {
    TargetPass *pass = argument;
    const Ops *ops = pass->ops;
    const Model *m = pass->model;
    Workspace *w = pass->work;
    ops->embed(worker, m->table, pass->rows, pass->n_rows, w->x, w->embd_stride);
    ops->rope_angles(worker, &m->heads, pass->rows, pass->n_rows, w->angles);
    for (int layer = 0; layer < m->shape.n_layer; layer++) {
        tap(worker, pass, layer);
        attention_block(worker, ops, m, w, layer, pass->rows, pass->n_rows);
        /* One worker asks and all of them read after a barrier, so that they leave together. */
        if (ops->worker_index(worker) == 0 && pass->cancelled && pass->cancelled(pass->cancel_argument))
            atomic_store_explicit(&pass->stopped, true, memory_order_relaxed);
        feed_forward_block(worker, ops, m, w, layer, pass->n_rows);
        if (atomic_load_explicit(&pass->stopped, memory_order_relaxed)) return;
    }
    tap(worker, pass, m->shape.n_layer);
    head(worker, ops, m, w, pass->head_rows, pass->n_head_rows, pass->choices);
}

void target_forward(Backend *backend, TargetPass *pass) {
    atomic_init(&pass->stopped, false);
    const RunInput input =
        input_of(pass->model, pass->rows, pass->n_rows, pass->head_rows, pass->n_head_rows, pass->choices);
    pass->ops->run(backend, target_body, pass, &input);
}

/* ---- drafter ------------------------------------------------------------------------------------ */

void draft_body(Worker *worker, void *argument) {
    DraftPass *pass = argument;
    const Ops *ops = pass->ops;
    const Model *m = pass->model;
    Workspace *w = pass->work;
    ops->embed(worker, m->table, pass->rows, pass->n_rows, w->x, w->embd_stride);
    ops->rope_angles(worker, &m->heads, pass->rows, pass->n_rows, w->angles);
    for (int layer = 0; layer < m->shape.n_layer; layer++) {
        attention_block(worker, ops, m, w, layer, pass->rows, pass->n_rows);
        feed_forward_block(worker, ops, m, w, layer, pass->n_rows);
    }
    head(worker, ops, m, w, pass->head_rows, pass->n_head_rows, pass->choices);
}

void draft_forward(Backend *backend, DraftPass *pass) {
    const RunInput input =
        input_of(pass->model, pass->rows, pass->n_rows, pass->head_rows, pass->n_head_rows, pass->choices);
    pass->ops->run(backend, draft_body, pass, &input);
}

/* The context of every layer is the same projected feature; only keys and values are needed of it. */
void inject_body(Worker *worker, void *argument) {
    InjectPass *pass = argument;
    const Ops *ops = pass->ops;
    const Model *m = pass->model;
    Workspace *w = pass->work;
    const int n = pass->n_rows;
    ops->to_operand(worker, pass->features, pass->feature_stride, pass->feature_rows, n, w->feature_in);
    ops->multiply(worker, &(Product){m->features_in, w->x, w->embd_stride, false}, 1, w->feature_in, n);
    ops->rope_angles(worker, &m->heads, pass->rows, n, w->angles);
    ops->rms_norm(worker, w->x, w->embd_stride, NULL, m->features_norm, m->shape.eps, m->shape.n_embd, n, w->embd_in);
    for (int layer = 0; layer < m->shape.n_layer; layer++) {
        const Layer *l = &m->layers[layer];
        const Product kv[] = {{l->k, w->k, w->key_stride, false}, {l->v, w->v, w->key_stride, false}};
        ops->multiply(worker, kv, 2, w->embd_in, n);
        ops->rotate_and_store(worker, &m->heads, layer, pass->rows, n, w->angles, NULL, l->k_norm, NULL, 0, w->k, w->v,
                              w->key_stride);
    }
}

void inject_forward(Backend *backend, InjectPass *pass) {
    const RunInput input = input_of(pass->model, pass->rows, pass->n_rows, pass->feature_rows, pass->n_rows, NULL);
    pass->ops->run(backend, inject_body, pass, &input);
}
