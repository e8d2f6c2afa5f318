#include "blocks.h"

void gated_feed_forward(const Pass *p, int layer) {
    const Shape *s = &p->model->shape;
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    if (!s->parallel) read_stream(p, l->ffn_norm); /* else embd_in still holds what attention read */
    p->ops->gate(p->worker, s->layers[layer].activation, l->gate.weight ? &l->gate : NULL, &l->up, w->embd_in, p->n,
                 w->ff_in);
    /* A layer's own embedding of the token comes before the scale. */
    add_to_stream(p, &l->down, w->ff_in, l->ffn_post_norm, s->n_token ? 1 : l->output_scale);
}
