#include "blocks.h"

/* Which experts a row goes to, and how much of the shared one's answer counts, where the file says. */
static void multiply_router(const Pass *p, const Layer *l) {
    Workspace *w = p->work;
    const Product products[] = {{&l->router, w->routes, w->route_stride, false},
                                {&l->shared_share, w->shares, w->route_stride, false}};
    p->ops->multiply(p->worker, products, l->shared_share.weight ? 2 : 1, w->embd_in, p->n);
}

/* The feed-forward that serves all rows, added to what the experts answered, whose own answers are not needed any
 * more. */
static void add_shared(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    const bool whole = !l->shared_share.weight;
    if (!l->shared_up.weight) return;
    p->ops->gate(p->worker, s->layers[layer].activation, &l->shared_gate, &l->shared_up, w->embd_in, p->n, w->ff_in);
    const Product down = {&l->shared_down, whole ? w->added : w->experts.each, w->embd_stride, whole};
    p->ops->multiply(p->worker, &down, 1, w->ff_in, p->n);
    if (whole) return;
    p->ops->add_gated(p->worker, w->shares, w->route_stride, w->experts.each, w->embd_stride, s->n_embd, p->n, w->added,
                      w->embd_stride);
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
    multiply_router(p, l);
    p->ops->route(p->worker, &routing, w->routes, w->route_stride, p->n, &w->experts);
    p->ops->experts(p->worker, &experts, w->embd_in, p->n, &w->experts, w->added, w->embd_stride);
    add_shared(p, layer);
    p->ops->add(p->worker, NULL, w->added, w->embd_stride, s->residual_scale, 1, s->n_embd, p->n, w->x, w->embd_stride);
}
