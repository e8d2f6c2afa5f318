#include "blocks.h"

/* The feed-forward that serves all rows, added to what the experts answered. */
static void add_shared(const Pass *p, int layer) {
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    if (!l->shared_up.weight) return;
    p->ops->gate(p->worker, p->model->shape.layers[layer].activation, &l->shared_gate, &l->shared_up, w->embd_in, p->n,
                 w->ff_in);
    p->ops->multiply(p->worker, &(Product){&l->shared_down, w->added, w->embd_stride, true}, 1, w->ff_in, p->n);
}

void expert_feed_forward(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const LayerShape *shape = &s->layers[layer];
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    Routing routing = shape->routing;
    routing.bias = l->router_bias;
    const Experts experts = {shape->activation, routing.n_experts, routing.n_used,
                             l->expert_gate,    l->expert_up,      l->expert_down};
    read_stream(p, l->ffn_norm);
    p->ops->multiply(p->worker, &(Product){&l->router, w->routes, w->route_stride, false}, 1, w->embd_in, p->n);
    p->ops->route(p->worker, &routing, w->routes, w->route_stride, p->n, &w->experts);
    p->ops->experts(p->worker, &experts, w->embd_in, p->n, &w->experts, w->added, w->embd_stride);
    add_shared(p, layer);
    p->ops->add(p->worker, NULL, w->added, w->embd_stride, s->residual_scale, 1, s->n_embd, p->n, w->x, w->embd_stride);
}
