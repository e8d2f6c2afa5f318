#include "blocks.h"

void gated_feed_forward(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    p->ops->rms_norm(p->worker, w->x, w->embd_stride, NULL, l->ffn_norm, s->eps, s->n_embd, p->n, w->embd_in);
    p->ops->swiglu(p->worker, l->gate, l->up, w->embd_in, p->n, w->ff_in);
    p->ops->multiply(p->worker, &(Product){l->down, w->x, w->embd_stride, true}, 1, w->ff_in, p->n);
}
