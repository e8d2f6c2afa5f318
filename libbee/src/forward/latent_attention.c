/* Attention to compressed rows (MLA): the matrices that would decompress keys and values are applied to queries and to
 * what heads give instead, so that all heads attend to the one row that is remembered of a position. */
#include "blocks.h"

/* Whole queries, and the row: its rotated part into k, the others, normed, behind them and into v. */
static void multiply_rows(const Pass *p, const LayerShape *shape, const Layer *l) {
    Workspace *w = p->work;
    const Norm norm = norm_with(&p->model->shape, l->latent_norm);
    const Product products[] = {{&l->k, w->k, w->key_stride, false},
                                {&l->v, w->v, w->key_stride, false},
                                {l->q_down.weight ? &l->q_down : &l->q, l->q_down.weight ? w->low : w->whole_queries,
                                 l->q_down.weight ? w->low_stride : w->whole_query_stride, false}};
    p->ops->multiply(p->worker, products, 3, w->embd_in, p->n);
    p->ops->norm_in_place(p->worker, &norm, w->v, w->key_stride, shape->latent.rank, 1, p->n);
    p->ops->copy(p->worker, w->v, w->key_stride, w->k + shape->latent.n_rotated, w->key_stride, shape->latent.rank,
                 p->n);
    if (!l->q_down.weight) return;
    const Norm low = norm_with(&p->model->shape, l->q_down_norm);
    p->ops->norm(p->worker, &low, w->low, w->low_stride, NULL, shape->latent.query_rank, p->n, w->low_in);
    p->ops->multiply(p->worker, &(Product){&l->q_up, w->whole_queries, w->whole_query_stride, false}, 1, w->low_in,
                     p->n);
}

/* The last numbers of a head are rotated, and stand first; the others meet the head's matrix of keys. */
static void make_queries(const Pass *p, const LayerShape *shape, const Layer *l) {
    Workspace *w = p->work;
    const int unrotated = unrotated_columns(shape), n_rotated = shape->latent.n_rotated;
    for (int h = 0; h < shape->heads.n_head; h++) {
        const float *from = w->whole_queries + (size_t)h * (size_t)shape->latent.query_size;
        float *to = w->q + (size_t)h * (size_t)shape->heads.head_size;
        p->ops->copy(p->worker, from + unrotated, w->whole_query_stride, to, w->query_stride, n_rotated, p->n);
        p->ops->to_operand(p->worker, from, w->whole_query_stride, NULL, p->n, w->part_in);
        p->ops->multiply(p->worker, &(Product){&l->head_keys[h], to + n_rotated, w->query_stride, false}, 1, w->part_in,
                         p->n);
    }
}

/* Head by head: what one gives is a weighted sum of rows, which its matrix of values takes. */
static void attend_rows(const Pass *p, const LayerShape *shape, const Layer *l) {
    Workspace *w = p->work;
    Heads head = shape->heads;
    head.n_head = 1;
    for (int h = 0; h < shape->heads.n_head; h++) {
        const float *queries = w->q + (size_t)h * (size_t)shape->heads.head_size;
        float *values = w->values + (size_t)h * (size_t)shape->latent.value_size;
        p->ops->attend(p->worker, &head, p->rows, p->n, queries, w->query_stride, w->row_in);
        p->ops->multiply(p->worker, &(Product){&l->head_values[h], values, w->value_stride, false}, 1, w->row_in, p->n);
    }
    p->ops->to_operand(p->worker, w->values, w->value_stride, NULL, p->n, w->value_in);
}

void latent_attention(const Pass *p, int layer) {
    const LayerShape *shape = &p->model->shape.layers[layer];
    const Layer *l = &p->model->layers[layer];
    Workspace *w = p->work;
    read_stream(p, l->attn_norm);
    multiply_rows(p, shape, l);
    make_queries(p, shape, l);
    p->ops->rotate_and_store(p->worker, &shape->heads, p->rows, p->n, w->angles[shape->rope], NULL, NULL, w->q,
                             w->query_stride, w->k, w->v, w->key_stride);
    attend_rows(p, shape, l);
    add_to_stream(p, &l->attn_output, w->value_in, l->attn_post_norm, 1);
}
