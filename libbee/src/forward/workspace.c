#include "workspace.h"

#include <string.h>

#include "architectures/architecture.h"

/* Float weights take their operand as values, the others as codes; the layers of one file may mix both. */
static int formats_of(const Ops *ops, const Model *m, Extent columns) {
    const Architecture *a = m->shape.architecture;
    int formats = 0;
    for (int i = 0; i < m->shape.n_layer; i++)
        for (int j = 0; j < a->n_slots; j++)
            if (!a->slots[j].is_vector && a->slots[j].columns == columns)
                formats |= ops->operand_format(*(Weight **)((char *)&m->layers[i] + a->slots[j].field));
    return formats;
}

static bool operands_new(const Ops *ops, Backend *backend, const Model *m, int n_features, Workspace *w) {
    const Shape *s = &m->shape;
    const int embd = formats_of(ops, m, EXTENT_EMBD) | ops->operand_format(m->head);
    w->embd_in = ops->operand_new(backend, s->n_embd, BEE_MAX_PASS_ROWS, embd | OPERAND_OWN);
    w->query_in =
        ops->operand_new(backend, shape_widest(s, query_columns), BEE_MAX_PASS_ROWS, formats_of(ops, m, EXTENT_QUERY));
    w->ff_in = ops->operand_new(backend, shape_widest(s, ff_columns), BEE_MAX_PASS_ROWS, formats_of(ops, m, EXTENT_FF));
    if (m->features_in)
        w->feature_in =
            ops->operand_new(backend, n_features, BEE_MAX_PASS_ROWS, ops->operand_format(m->features_in) | OPERAND_OWN);
    return w->embd_in && w->query_in && w->ff_in && (w->feature_in || !m->features_in);
}

bool workspace_new(const Ops *ops, Backend *backend, const Model *model, int n_taps, Workspace *w) {
    const Shape *s = &model->shape;
    const int rows = BEE_MAX_PASS_ROWS, features = n_taps * s->n_embd;
    *w = (Workspace){.embd_stride = padded(s->n_embd),
                     .query_stride = padded(shape_widest(s, query_columns)),
                     .key_stride = padded(shape_widest(s, key_columns)),
                     .feature_stride = padded(features),
                     .logit_stride = padded(model->n_head_rows)};
    w->x = ops->buffer_new(backend, rows * w->embd_stride);
    w->q = ops->buffer_new(backend, rows * w->query_stride);
    w->k = ops->buffer_new(backend, rows * w->key_stride);
    w->v = ops->buffer_new(backend, rows * w->key_stride);
    bool ok = w->x && w->q && w->k && w->v;
    for (int i = 0; i < s->n_ropes; i++)
        ok = (w->angles[i] = ops->buffer_new(backend, (size_t)rows * s->ropes[i].n_rotated)) && ok;
    ok = (w->logits = ops->buffer_new(backend, rows * w->logit_stride)) && ok;
    if (features && !model->features_in) ok = (w->features = ops->buffer_new(backend, rows * w->feature_stride)) && ok;
    if (ok && operands_new(ops, backend, model, features, w)) return true;
    workspace_free(ops, backend, w);
    return false;
}

void workspace_free(const Ops *ops, Backend *backend, Workspace *w) {
    float *buffers[] = {w->x, w->q, w->k, w->v, w->features, w->logits};
    Operand *operands[] = {w->embd_in, w->query_in, w->ff_in, w->feature_in};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) ops->buffer_free(backend, buffers[i]);
    for (int i = 0; i < MAX_ROPES; i++) ops->buffer_free(backend, w->angles[i]);
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++) ops->operand_free(backend, operands[i]);
    memset(w, 0, sizeof *w);
}
