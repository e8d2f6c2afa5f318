/* Recurrent layers: what a row sees of those before it is a state, or the last few inputs of a convolution. */
#include "blocks.h"

/* With the layer's own numbers. */
static Recurrence recurrence_of(const Pass *p, int layer) {
    const Layer *l = &p->model->layers[layer];
    Recurrence r = p->model->shape.layers[layer].recurrence;
    r.taps = l->taps;
    r.tap_bias = l->tap_bias;
    r.decay = l->decay;
    r.step_bias = l->step_bias;
    r.skip = l->skip;
    r.gain = p->model->shape.layers[layer].n_norm_groups ? NULL : l->result_norm;
    return r;
}

static void multiply_inputs(const Pass *p, const Recurrence *r, const Layer *l) {
    Workspace *w = p->work;
    Product products[4];
    int n = 0;
    products[n++] = (Product){&l->inputs, w->inputs, w->input_stride, false};
    if (l->rates.weight) products[n++] = (Product){&l->rates, w->inputs + r->rate_at, w->input_stride, false};
    if (l->steps.weight) products[n++] = (Product){&l->steps, w->inputs + r->step_at, w->input_stride, false};
    if (l->gates.weight) products[n++] = (Product){&l->gates, w->gates, w->result_stride, false};
    p->ops->multiply(p->worker, products, n, w->embd_in, p->n);
}

void recurrence(const Pass *p, int layer) {
    const LayerShape *shape = &p->model->shape.layers[layer];
    const Layer *l = &p->model->layers[layer];
    const Recurrence r = recurrence_of(p, layer);
    const int groups = shape->n_norm_groups;
    Workspace *w = p->work;
    read_stream(p, l->attn_norm);
    multiply_inputs(p, &r, l);
    p->ops->recur(p->worker, &r, p->rows, p->n, w->inputs, w->input_stride, w->gates, w->results, w->result_stride);
    if (groups) {
        Norm norm = norm_with(&p->model->shape, l->result_norm);
        norm.apart = true;
        p->ops->norm_in_place(p->worker, &norm, w->results, w->result_stride, result_columns(shape) / groups, groups,
                              p->n);
    }
    p->ops->to_operand(p->worker, w->results, w->result_stride, NULL, p->n, w->result_in);
    add_to_stream(p, &l->results, w->result_in, l->attn_post_norm, 1);
}

void convolution(const Pass *p, int layer) {
    const Layer *l = &p->model->layers[layer];
    const Recurrence r = recurrence_of(p, layer);
    Workspace *w = p->work;
    read_stream(p, l->attn_norm);
    multiply_inputs(p, &r, l);
    p->ops->convolve(p->worker, &r, p->rows, p->n, w->inputs, w->input_stride, w->results, w->result_stride);
    p->ops->to_operand(p->worker, w->results, w->result_stride, NULL, p->n, w->result_in);
    add_to_stream(p, &l->results, w->result_in, l->attn_post_norm, 1);
}
