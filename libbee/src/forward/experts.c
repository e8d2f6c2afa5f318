#include <math.h>

#include "blocks.h"

/* Which experts a row goes to, from what they read, or from a norm of its own, divided by sqrt(n_embd); and how much of
 * the shared one's answer counts, where the file says. Leaves in embd_in what the experts read. */
static void choose_experts(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    Matrix router = l->router;
    Routing routing = s->layers[layer].routing;
    routing.bias = l->router_bias;
    if (l->router_gain) router.scale /= sqrtf((float)s->n_embd);
    const Product products[] = {{&router, w->routes, w->route_stride, false},
                                {&l->shared_share, w->shares, w->route_stride, false}};
    read_stream(p, l->router_gain ? l->router_gain : l->ffn_norm);
    p->ops->multiply(p->worker, products, l->shared_share.weight ? 2 : 1, w->embd_in, p->n);
    p->ops->route(p->worker, &routing, w->routes, w->route_stride, p->n, &w->experts);
    if (l->expert_norm) read_stream(p, l->expert_norm);
}

/* The feed-forward that serves all rows, added to what the experts answered, whose own answers are not needed any
 * more. */
static void add_shared(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    const bool whole = !l->shared_share.weight;
    if (!l->shared_up.weight) return;
    p->ops->gate(p->worker, s->layers[layer].activation, l->shared_gate.weight ? &l->shared_gate : NULL, &l->shared_up,
                 w->embd_in, p->n, w->ff_in);
    const Product down = {&l->shared_down, whole ? w->added : w->experts.each, w->embd_stride, whole};
    p->ops->multiply(p->worker, &down, 1, w->ff_in, p->n);
    if (whole) return;
    p->ops->add_gated(p->worker, w->shares, w->route_stride, w->experts.each, w->embd_stride, s->n_embd, p->n, w->added,
                      w->embd_stride);
}

/* A feed-forward beside the experts, with norms of its own (Gemma 4). */
static void add_dense(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    const Norm of_experts = norm_with(s, l->expert_post_norm), norm = norm_with(s, l->dense_post_norm);
    if (!l->up.weight) return;
    p->ops->norm_in_place(p->worker, &of_experts, w->added, w->embd_stride, s->n_embd, 1, p->n);
    read_stream(p, l->ffn_norm);
    p->ops->gate(p->worker, s->layers[layer].activation, &l->gate, &l->up, w->embd_in, p->n, w->ff_in);
    p->ops->multiply(p->worker, &(Product){&l->down, w->experts.each, w->embd_stride, false}, 1, w->ff_in, p->n);
    p->ops->add(p->worker, &norm, w->experts.each, w->embd_stride, 1, 1, s->n_embd, p->n, w->added, w->embd_stride);
}

void expert_feed_forward(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const LayerShape *shape = &s->layers[layer];
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    const Norm post = norm_with(s, l->ffn_post_norm);
    const Experts experts = {shape->activation,     shape->routing.n_experts,
                             shape->routing.n_used, l->expert_gate,
                             l->expert_up,          l->expert_down};
    choose_experts(p, layer);
    p->ops->experts(p->worker, &experts, w->embd_in, p->n, &w->experts, w->added, w->embd_stride);
    add_shared(p, layer);
    add_dense(p, layer);
    /* A layer's own embedding of the token comes before the scale. */
    p->ops->add(p->worker, l->ffn_post_norm ? &post : NULL, w->added, w->embd_stride, s->residual_scale,
                s->n_token ? 1 : l->output_scale, s->n_embd, p->n, w->x, w->embd_stride);
}
