#include "blocks.h"

Norm norm_with(const Shape *shape, const float *gain) {
    return (Norm){.gain = gain, .eps = shape->eps, .centred = shape->centred};
}

void read_stream(const Pass *p, const float *gain) {
    const Shape *s = &p->model->shape;
    const Workspace *w = p->work;
    const Norm norm = norm_with(s, gain);
    if (gain)
        p->ops->norm(p->worker, &norm, w->x, w->embd_stride, NULL, s->n_embd, p->n, w->embd_in);
    else
        p->ops->to_operand(p->worker, w->x, w->embd_stride, NULL, p->n, w->embd_in);
}

void add_to_stream(const Pass *p, const Matrix *matrix, const Operand *in, const float *post_gain, float whole) {
    const Shape *s = &p->model->shape;
    Workspace *w = p->work;
    const bool plain = !post_gain && s->residual_scale == 1 && whole == 1;
    const Product product = {matrix, plain ? w->x : w->added, w->embd_stride, plain};
    p->ops->multiply(p->worker, &product, 1, in, p->n);
    if (plain) return;
    const Norm norm = norm_with(s, post_gain);
    p->ops->add(p->worker, post_gain ? &norm : NULL, w->added, w->embd_stride, s->residual_scale, whole, s->n_embd,
                p->n, w->x, w->embd_stride);
}

/* Products of embd_in: queries, their gates, and keys and values where the layer has its own. */
static void multiply_heads(const Pass *p, const Layer *l, bool with_queries) {
    Workspace *w = p->work;
    Product products[4];
    int n = 0;
    if (with_queries) products[n++] = (Product){&l->q, w->q, w->query_stride, false};
    if (with_queries && l->head_gates.weight)
        products[n++] = (Product){&l->head_gates, w->head_gates, w->query_stride, false};
    if (l->k.weight) products[n++] = (Product){&l->k, w->k, w->key_stride, false};
    if (l->v.weight) products[n++] = (Product){&l->v, w->v, w->key_stride, false};
    p->ops->multiply(p->worker, products, n, w->embd_in, p->n);
}

static void norm_rows(const Pass *p, const LayerShape *shape, const Layer *l) {
    Workspace *w = p->work;
    const Norm q = norm_with(&p->model->shape, l->q_norm), k = norm_with(&p->model->shape, l->k_norm);
    p->ops->norm_in_place(p->worker, &q, w->q, w->query_stride, query_columns(shape), 1, p->n);
    p->ops->norm_in_place(p->worker, &k, w->k, w->key_stride, key_columns(shape), 1, p->n);
}

static void rotate_and_store(const Pass *p, int layer, bool with_queries) {
    const LayerShape *shape = &p->model->shape.layers[layer];
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    const bool heads = !shape->whole_norms;
    p->ops->rotate_and_store(p->worker, &shape->heads, p->rows, p->n, shape->rope < 0 ? NULL : w->angles[shape->rope],
                             heads ? l->q_norm : NULL, heads ? l->k_norm : NULL, with_queries ? w->q : NULL,
                             w->query_stride, l->k.weight ? w->k : NULL, l->v.weight ? w->v : NULL, w->key_stride);
}

void attention(const Pass *p, int layer) {
    const LayerShape *shape = &p->model->shape.layers[layer];
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    read_stream(p, l->attn_norm);
    multiply_heads(p, l, true);
    if (shape->whole_norms) norm_rows(p, shape, l);
    rotate_and_store(p, layer, true);
    Heads heads = shape->heads;
    heads.sinks = l->sinks;
    heads.gates = l->head_gates.weight ? w->head_gates : NULL;
    heads.gate_stride = w->query_stride;
    p->ops->attend(p->worker, &heads, p->rows, p->n, w->q, w->query_stride, w->query_in);
    add_to_stream(p, &l->attn_output, w->query_in, l->attn_post_norm, 1);
}

void store_context(const Pass *p, int layer) {
    multiply_heads(p, &p->model->layers[layer], false);
    rotate_and_store(p, layer, false);
}
