#include "blocks.h"

static void rotate_and_store(const Pass *p, int layer, bool with_queries) {
    const LayerShape *shape = &p->model->shape.layers[layer];
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    const float *angles = shape->rope < 0 ? NULL : w->angles[shape->rope];
    p->ops->rotate_and_store(p->worker, &shape->heads, p->rows, p->n, angles, l->q_norm, l->k_norm,
                             with_queries ? w->q : NULL, w->query_stride, w->k, w->v, w->key_stride);
}

void attention(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    p->ops->rms_norm(p->worker, w->x, w->embd_stride, NULL, l->attn_norm, s->eps, s->n_embd, p->n, w->embd_in);
    const Product qkv[] = {
        {l->q, w->q, w->query_stride, false}, {l->k, w->k, w->key_stride, false}, {l->v, w->v, w->key_stride, false}};
    p->ops->multiply(p->worker, qkv, 3, w->embd_in, p->n);
    rotate_and_store(p, layer, true);
    p->ops->attend(p->worker, &s->layers[layer].heads, p->rows, p->n, w->q, w->query_stride, w->query_in);
    p->ops->multiply(p->worker, &(Product){l->attn_output, w->x, w->embd_stride, true}, 1, w->query_in, p->n);
}

void store_context(const Pass *p, int layer) {
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    const Product kv[] = {{l->k, w->k, w->key_stride, false}, {l->v, w->v, w->key_stride, false}};
    p->ops->multiply(p->worker, kv, 2, w->embd_in, p->n);
    rotate_and_store(p, layer, false);
}
