#include "workspace.h"

#include <string.h>

#include "architectures/architecture.h"

/* Float weights take their operand as values, the others as codes; the layers of one file may mix both. */
static int formats_of(const Ops *ops, const Model *m, Extent columns) {
    const Architecture *a = m->shape.architecture;
    int formats = 0;
    for (int i = 0; i < m->shape.n_layer; i++)
        for (int j = 0; j < a->n_slots; j++) {
            const void *field = (const char *)&m->layers[i] + a->slots[j].field;
            const Matrix *matrix = field;
            const TensorSlot *slot = &a->slots[j];
            const bool several = slot->kind == SLOT_EXPERTS || slot->kind == SLOT_HEADS;
            if (several) matrix = *(Matrix *const *)field;
            const bool is_matrix = slot->kind == SLOT_MATRIX || several;
            if (is_matrix && slot->columns == columns && matrix && matrix->weight)
                formats |= ops->operand_format(matrix->weight);
        }
    return formats;
}

static bool operands_new(const Ops *ops, Backend *backend, const Model *m, int n_features, Workspace *w) {
    const Shape *s = &m->shape;
    int embd = formats_of(ops, m, EXTENT_EMBD) | ops->operand_format(m->head.weight);
    if (s->n_token) embd |= ops->operand_format(m->token_projection.weight);
    w->embd_in = ops->operand_new(backend, s->n_embd, BEE_MAX_PASS_ROWS, embd | OPERAND_OWN);
    w->query_in =
        ops->operand_new(backend, shape_widest(s, query_columns), BEE_MAX_PASS_ROWS, formats_of(ops, m, EXTENT_QUERY));
    w->ff_in = ops->operand_new(backend, shape_widest(s, ff_columns), BEE_MAX_PASS_ROWS,
                                formats_of(ops, m, EXTENT_FF) | formats_of(ops, m, EXTENT_FF_SHARED));
    const Weight *features = m->features_in.weight;
    if (features)
        w->feature_in =
            ops->operand_new(backend, n_features, BEE_MAX_PASS_ROWS, ops->operand_format(features) | OPERAND_OWN);
    if (s->n_token)
        w->token_in =
            ops->operand_new(backend, s->n_token, BEE_MAX_PASS_ROWS, formats_of(ops, m, EXTENT_TOKEN) | OPERAND_OWN);
    return w->embd_in && w->query_in && w->ff_in && (w->feature_in || !features) && (w->token_in || !s->n_token);
}

/* Of recurrent layers, and of gated heads. Products are written in whole blocks of rows. */
static bool recurrences_new(const Ops *ops, Backend *backend, const Model *m, Workspace *w) {
    const Shape *s = &m->shape;
    const size_t rows = BEE_MAX_PASS_ROWS;
    bool ok = true;
    if (shape_widest(s, gate_columns)) ok = (w->head_gates = ops->buffer_new(backend, rows * w->query_stride));
    if (!shape_cache(s).n_states) return ok;
    w->input_stride = padded(shape_widest(s, input_columns));
    w->result_stride = padded(shape_widest(s, result_columns));
    w->inputs = ops->buffer_new(backend, rows * w->input_stride);
    w->gates = ops->buffer_new(backend, rows * w->result_stride);
    w->results = ops->buffer_new(backend, rows * w->result_stride);
    w->result_in = ops->operand_new(backend, shape_widest(s, result_columns), BEE_MAX_PASS_ROWS,
                                    formats_of(ops, m, EXTENT_RESULTS) | OPERAND_OWN);
    return ok && w->inputs && w->gates && w->results && w->result_in;
}

static bool latent_new(const Ops *ops, Backend *backend, const Model *m, Workspace *w) {
    const Shape *s = &m->shape;
    const int low = shape_widest(s, query_rank_of), values = shape_widest(s, value_columns);
    const size_t rows = BEE_MAX_PASS_ROWS;
    bool ok = true;
    if (!values) return true;
    w->low_stride = padded(low);
    w->whole_query_stride = padded(shape_widest(s, whole_query_columns)) + padded(1); /* the last head is read padded */
    w->value_stride = padded(values);
    w->whole_queries = ops->buffer_new(backend, rows * w->whole_query_stride);
    w->values = ops->buffer_new(backend, rows * w->value_stride);
    w->part_in = ops->operand_new(backend, shape_widest(s, unrotated_columns), BEE_MAX_PASS_ROWS,
                                  formats_of(ops, m, EXTENT_UNROTATED));
    w->row_in = ops->operand_new(backend, m->shape.layers[0].heads.head_size, BEE_MAX_PASS_ROWS,
                                 formats_of(ops, m, EXTENT_LATENT));
    w->value_in = ops->operand_new(backend, values, BEE_MAX_PASS_ROWS, formats_of(ops, m, EXTENT_VALUES));
    if (low) {
        ok = (w->low = ops->buffer_new(backend, rows * w->low_stride)) && ok;
        ok = (w->low_in = ops->operand_new(backend, low, BEE_MAX_PASS_ROWS, formats_of(ops, m, EXTENT_QUERY_RANK))) &&
             ok;
    }
    return ok && w->whole_queries && w->values && w->part_in && w->row_in && w->value_in;
}

static bool experts_new(const Ops *ops, Backend *backend, const Model *m, Workspace *w) {
    const Shape *s = &m->shape;
    const int n_experts = shape_widest(s, n_experts_of), n_used = shape_widest(s, n_used_of);
    if (!n_experts) return true;
    const int rows = expert_rows(BEE_MAX_PASS_ROWS, n_experts, n_used);
    ExpertRoom *room = &w->experts;
    room->stride = w->embd_stride;
    w->route_stride = padded(n_experts) + padded(1);
    w->routes = ops->buffer_new(backend, BEE_MAX_PASS_ROWS * w->route_stride);
    w->shares = w->routes + padded(n_experts);
    room->ids = (int32_t *)ops->buffer_new(backend, (size_t)(BEE_MAX_PASS_ROWS * n_used));
    room->weights = ops->buffer_new(backend, (size_t)(BEE_MAX_PASS_ROWS * n_used));
    room->each = ops->buffer_new(backend, (size_t)rows * room->stride);
    room->places = (int32_t *)ops->buffer_new(backend, expert_places(BEE_MAX_PASS_ROWS, n_experts, n_used));
    const int embd = formats_of(ops, m, EXTENT_EMBD) | ops->operand_format(m->head.weight);
    room->gathered = ops->operand_new(backend, s->n_embd, rows, embd);
    room->between =
        ops->operand_new(backend, shape_widest(s, expert_columns), rows, formats_of(ops, m, EXTENT_FF_EXPERT));
    return w->routes && room->ids && room->weights && room->each && room->places && room->gathered && room->between;
}

/* Whether anything is added to the stream otherwise than by a product alone. */
static bool adds_apart(const Model *m) {
    if (m->shape.residual_scale != 1 || m->shape.n_token || shape_widest(&m->shape, n_experts_of)) return true;
    for (int i = 0; i < m->shape.n_layer; i++) {
        const Layer *l = &m->layers[i];
        if (l->attn_post_norm || l->ffn_post_norm || l->output_scale != 1) return true;
    }
    return false;
}

bool workspace_new(const Ops *ops, Backend *backend, const Model *model, int n_taps, Workspace *w) {
    const Shape *s = &model->shape;
    const int rows = BEE_MAX_PASS_ROWS, features = model->embedding_norm ? 2 * s->n_embd : n_taps * s->n_embd;
    *w = (Workspace){.embd_stride = padded(s->n_embd),
                     .query_stride = padded(shape_widest(s, query_columns)),
                     .key_stride = padded(shape_widest(s, key_columns)),
                     .feature_stride = padded(features),
                     .logit_stride = padded(model->n_head_rows),
                     .token_stride = padded((int64_t)s->n_token * s->n_layer)};
    w->x = ops->buffer_new(backend, rows * w->embd_stride);
    w->q = ops->buffer_new(backend, rows * w->query_stride);
    w->k = ops->buffer_new(backend, rows * w->key_stride);
    w->v = ops->buffer_new(backend, rows * w->key_stride);
    bool ok = w->x && w->q && w->k && w->v;
    for (int i = 0; i < s->n_ropes; i++)
        ok = (w->angles[i] = ops->buffer_new(backend, (size_t)rows * s->ropes[i].n_rotated)) && ok;
    ok = (w->logits = ops->buffer_new(backend, rows * w->logit_stride)) && ok;
    if (model->embedding_norm) {
        w->pair_stride = padded(features);
        ok = (w->pair = ops->buffer_new(backend, rows * w->pair_stride)) && ok;
        ok = (w->hidden = ops->buffer_new(backend, rows * w->embd_stride)) && ok;
    }
    if (adds_apart(model)) ok = (w->added = ops->buffer_new(backend, rows * w->embd_stride)) && ok;
    if (s->n_token) {
        ok = (w->token = ops->buffer_new(backend, rows * w->token_stride)) && ok;
        ok = (w->token_made = ops->buffer_new(backend, rows * w->token_stride)) && ok;
    }
    if (features && !model->features_in.weight)
        ok = (w->features = ops->buffer_new(backend, rows * w->feature_stride)) && ok;
    if (ok && operands_new(ops, backend, model, features, w) && recurrences_new(ops, backend, model, w) &&
        latent_new(ops, backend, model, w) && experts_new(ops, backend, model, w))
        return true;
    workspace_free(ops, backend, w);
    return false;
}

void workspace_free(const Ops *ops, Backend *backend, Workspace *w) {
    float *buffers[] = {w->x,
                        w->added,
                        w->head_gates,
                        w->pair,
                        w->hidden,
                        w->low,
                        w->whole_queries,
                        w->values,
                        w->inputs,
                        w->gates,
                        w->results,
                        w->q,
                        w->k,
                        w->v,
                        w->features,
                        w->logits,
                        w->token,
                        w->token_made,
                        w->routes,
                        (float *)w->experts.ids,
                        (float *)w->experts.places,
                        w->experts.weights,
                        w->experts.each};
    Operand *operands[] = {w->low_in,   w->part_in,          w->row_in,          w->value_in,
                           w->embd_in,  w->query_in,         w->ff_in,           w->feature_in,
                           w->token_in, w->experts.gathered, w->experts.between, w->result_in};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) ops->buffer_free(backend, buffers[i]);
    for (int i = 0; i < MAX_ROPES; i++) ops->buffer_free(backend, w->angles[i]);
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++) ops->operand_free(backend, operands[i]);
    memset(w, 0, sizeof *w);
}
