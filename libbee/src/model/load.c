#include "load.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "architectures/architecture.h"
#include "drafter.h"
#include "error.h"
#include "file/tensor.h"

/* ---- layers: one walk over the slots of the architecture ---------------------------------------- */

static int64_t extent_of(Extent extent, const Shape *s, const LayerShape *l) {
    switch (extent) {
    case EXTENT_EMBD: return s->n_embd;
    case EXTENT_QUERY: return query_columns(l);
    case EXTENT_KEY: return key_columns(l);
    case EXTENT_FF: return l->n_ff;
    case EXTENT_HEAD: return l->heads.head_size;
    }
    return 0;
}

static void load_layer(Loader *l, const Shape *s, int index, Layer *layer) {
    for (int i = 0; i < s->architecture->n_slots && !l->status; i++) {
        const TensorSlot *slot = &s->architecture->slots[i];
        const int64_t columns = extent_of(slot->columns, s, &s->layers[index]);
        char name[64], *field = (char *)layer + slot->field;
        snprintf(name, sizeof name, "blk.%d.%s.weight", index, slot->name);
        if (slot->is_vector)
            *(float **)field = load_vector(l, name, columns);
        else
            *(Weight **)field = load_matrix(l, name, extent_of(slot->rows, s, &s->layers[index]), columns);
    }
}

static void layer_free(const Ops *ops, Backend *backend, const Architecture *architecture, Layer *layer) {
    for (int i = 0; i < architecture->n_slots; i++) {
        const TensorSlot *slot = &architecture->slots[i];
        char *field = (char *)layer + slot->field;
        if (slot->is_vector)
            ops->buffer_free(backend, *(float **)field);
        else
            ops->weight_free(backend, *(Weight **)field);
    }
}

/* ---- what stands around the layers -------------------------------------------------------------- */

static void load_target(Loader *l, Model *m) {
    load_embedding(l, m);
    m->n_head_rows = m->shape.n_vocab;
    m->owns_head = true;
    if (gguf_has_tensor(l->file, "output.weight"))
        m->head = load_matrix(l, "output.weight", m->shape.n_vocab, m->shape.n_embd);
    else if (!l->status) /* tied: the embedding is the head */
        m->head = load_matrix_rows(l, "token_embd.weight", &m->embedding, NULL, m->shape.n_vocab);
}

static void load_rope(Loader *l, const RopeShape *shape, Rope *rope) {
    const int half = shape->n_rotated / 2;
    float factors[MAX_HEAD_SIZE / 2];
    double frequencies[MAX_HEAD_SIZE / 2];
    Tensor tensor;
    const bool scaled = gguf_has_tensor(l->file, shape->factors);
    if (scaled && find_tensor(l, shape->factors, 1, half, &tensor)) dequantize_row(&tensor, 0, factors);
    for (int i = 0; !l->status && i < half; i++) {
        frequencies[i] = pow(shape->base, -2.0 * i / shape->n_rotated) / shape->scale;
        if (!scaled) continue;
        if (!(factors[i] > 0))
            l->status =
                bee_fail(l->error, BEE_ERROR_FORMAT, "tensor '%s': factor %d must be above 0", shape->factors, i);
        frequencies[i] /= factors[i];
    }
    *rope = (Rope){.n_rotated = shape->n_rotated, .neox = shape->neox};
    if (l->status || !l->backend) return;
    double *buffer = (double *)l->ops->buffer_new(l->backend, padded(half) * 2);
    if (buffer)
        l->ops->buffer_write(l->backend, buffer, frequencies, (size_t)half * sizeof *frequencies);
    else
        fail_memory(l, shape->factors);
    rope->frequencies = buffer;
}

static void load_ropes(Loader *l, Model *m) {
    for (int i = 0; i < m->shape.n_ropes && !l->status; i++) load_rope(l, &m->shape.ropes[i], &m->ropes[i]);
    for (int i = 0; i < m->shape.n_layer; i++) {
        LayerShape *layer = &m->shape.layers[i];
        layer->heads.rope = layer->rope < 0 ? NULL : &m->ropes[layer->rope];
    }
}

/* ---- the whole model ---------------------------------------------------------------------------- */

static bool is_bound(const Loader *l, const char *name) {
    for (uint64_t i = 0; i < l->n_bound; i++)
        if (l->bound[i] == name) return true;
    return false;
}

/* A tensor that nothing reads would be a part of the model left out. */
static void check_leftovers(Loader *l) {
    for (uint64_t i = 0; !l->status && i < bee_file_tensor_count(l->file); i++) {
        bee_tensor_info tensor;
        l->status = bee_file_tensor(l->file, i, &tensor, l->error);
        if (!l->status && !is_bound(l, tensor.name))
            l->status = bee_fail(l->error, BEE_ERROR_UNSUPPORTED,
                                 "tensor '%.*s' has no place in this architecture; models with biases, adapters or "
                                 "experts cannot be run",
                                 (int)(tensor.name_length < 64 ? tensor.name_length : 64), tensor.name);
    }
}

static void load_model(Loader *l, Model *m, const Model *target, const bee_file *target_file) {
    const Shape *s = &m->shape;
    m->layers = calloc((size_t)s->n_layer, sizeof *m->layers);
    l->bound = calloc(bee_file_tensor_count(l->file) + 1, sizeof *l->bound);
    if (!m->layers || !l->bound) {
        fail_memory(l, "blk.0");
        return;
    }
    if (s->architecture->is_drafter)
        load_drafter(l, m, target, target_file);
    else
        load_target(l, m);
    for (int i = 0; i < s->n_layer && !l->status; i++) load_layer(l, s, i, &m->layers[i]);
    m->output_norm = load_vector(l, "output_norm.weight", s->n_embd);
    load_ropes(l, m);
    check_leftovers(l);
    m->weight_bytes = l->weight_bytes;
}

Model *model_load(const Device *device, const Ops *ops, Backend *backend, const bee_file *file, const Model *target,
                  const bee_file *target_file, bool made_up, LoadProgress *progress, bee_error *error) {
    Model *m = calloc(1, sizeof *m);
    if (!m) {
        bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
        return NULL;
    }
    Loader l = {.ops = ops,
                .backend = backend,
                .file = file,
                .device = device,
                .made_up = made_up ? &m->made_up : NULL,
                .progress = progress,
                .error = error};
    l.status = shape_read(file, &m->shape, error);
    if (!l.status) load_model(&l, m, target, target_file);
    free(l.bound);
    if (!l.status) return m;
    model_free(ops, backend, m);
    return NULL;
}

void model_free(const Ops *ops, Backend *backend, Model *m) {
    if (!m) return;
    for (int i = 0; m->layers && i < m->shape.n_layer; i++)
        layer_free(ops, backend, m->shape.architecture, &m->layers[i]);
    if (m->owns_head) ops->weight_free(backend, m->head);
    ops->weight_free(backend, m->features_in);
    ops->buffer_free(backend, m->features_norm);
    ops->buffer_free(backend, m->output_norm);
    ops->buffer_free(backend, m->draft_tokens);
    for (int i = 0; i < m->shape.n_ropes; i++) ops->buffer_free(backend, (void *)m->ropes[i].frequencies);
    if (m->owns_table) ops->table_free(backend, m->table);
    made_up_free(m->made_up);
    free(m->layers);
    shape_free(&m->shape);
    free(m);
}

bee_status model_plan(const bee_file *file, const Device *device, const Model *target, const bee_file *target_file,
                      Model *out, bee_error *error) {
    *out = (Model){0};
    Loader l = {.file = file, .device = device, .error = error};
    l.status = shape_read(file, &out->shape, error);
    if (!l.status) load_model(&l, out, target, target_file);
    free(l.bound);
    free(out->layers);
    out->layers = NULL;
    if (l.status) shape_free(&out->shape);
    return l.status;
}

bee_pass_needs model_needs(const Ops *ops, const Model *m) {
    const Shape *s = &m->shape;
    const CacheShape cache = shape_cache(s);
    bee_pass_needs needs = {
        .weight_bytes = ops->weight_bytes(m->head),
        .kv_bytes_per_position = cache_position_bytes(&cache),
        .head_multiply_adds = (uint64_t)m->n_head_rows * (uint64_t)s->n_embd,
    };
    for (int i = 0; i < s->n_layer; i++) {
        const LayerShape *shape = &s->layers[i];
        needs.attention_multiply_adds += 2 * (uint64_t)query_columns(shape);
        for (int j = 0; j < s->architecture->n_slots; j++) {
            const TensorSlot *slot = &s->architecture->slots[j];
            if (slot->is_vector) continue;
            needs.weight_bytes += ops->weight_bytes(*(Weight **)((char *)&m->layers[i] + slot->field));
            needs.multiply_adds += (uint64_t)(extent_of(slot->rows, s, shape) * extent_of(slot->columns, s, shape));
        }
    }
    return needs;
}

bee_status bee_file_plan(const bee_file *file, bee_plan *out, bee_error *error) {
    Model m;
    const bee_status status = model_plan(file, device_of(BEE_DEVICE_CPU), NULL, NULL, &m, error);
    if (status) return status;
    const CacheShape cache = shape_cache(&m.shape);
    *out = (bee_plan){
        .weight_bytes = m.weight_bytes,
        .kv_bytes_per_token = cache_position_bytes(&cache),
        .n_vocab = m.shape.n_vocab,
        .n_ctx_train = m.shape.n_ctx_train,
        .n_layer = m.shape.n_layer,
        .n_embd = m.shape.n_embd,
        .is_drafter = m.shape.architecture->is_drafter,
    };
    shape_free(&m.shape);
    return BEE_OK;
}
