/* Layers' own embeddings of the tokens (Gemma 3n and 4): each adds what a gate, made from the stream, lets through. */
#include <math.h>

#include "blocks.h"

/* All layers' at once: (N(projection x / sqrt(n_embd)) + sqrt(n_token) * row of the table) / sqrt(2). The norm, of each
 * layer's slice, takes the division into its eps. */
void make_token_embeddings(const Pass *p) {
    const Model *m = p->model;
    const Shape *s = &m->shape;
    Workspace *w = p->work;
    if (!s->n_token) return;
    const int all = s->n_token * s->n_layer;
    const Norm norm = {.gain = m->token_norm, .eps = s->eps * (float)s->n_embd};
    p->ops->embed(p->worker, m->token_table, p->rows, p->n, sqrtf((float)s->n_token), w->token, w->token_stride);
    read_stream(p, NULL);
    p->ops->multiply(p->worker, &(Product){&m->token_projection, w->token_made, w->token_stride, false}, 1, w->embd_in,
                     p->n);
    p->ops->norm_in_place(p->worker, &norm, w->token_made, w->token_stride, s->n_token, s->n_layer, p->n);
    p->ops->add(p->worker, NULL, w->token_made, w->token_stride, 1, sqrtf(0.5f), all, p->n, w->token, w->token_stride);
}

void add_token_embedding(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    if (!s->n_token) return;
    const Norm norm = norm_with(s, l->token_norm);
    read_stream(p, NULL);
    p->ops->multiply(p->worker, &(Product){&l->token_gate, w->token_made, w->token_stride, false}, 1, w->embd_in, p->n);
    p->ops->gate_values(p->worker, s->layers[layer].activation, w->token_made, w->token_stride,
                        w->token + (size_t)layer * s->n_token, w->token_stride, s->n_token, p->n, w->token_in);
    p->ops->multiply(p->worker, &(Product){&l->token_projection, w->added, w->embd_stride, false}, 1, w->token_in,
                     p->n);
    p->ops->add(p->worker, &norm, w->added, w->embd_stride, 1, l->output_scale, s->n_embd, p->n, w->x, w->embd_stride);
}
