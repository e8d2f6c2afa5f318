#include "load.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "architectures/architecture.h"
#include "drafter.h"
#include "error.h"
#include "file/tensor.h"
#include "file/tensor_types.h"

/* ---- layers: one walk over the slots of the architecture ---------------------------------------- */

static int64_t extent_of(Extent extent, const Shape *s, const LayerShape *l) {
    switch (extent) {
    case EXTENT_NONE: return 0;
    case EXTENT_ONE: return 1;
    case EXTENT_EMBD: return s->n_embd;
    case EXTENT_QUERY: return query_columns(l);
    case EXTENT_KEY: return key_columns(l);
    case EXTENT_QUERY_KEY: return query_columns(l) + key_columns(l);
    case EXTENT_QUERY_KEY_VALUE: return query_columns(l) + 2 * key_columns(l);
    case EXTENT_FF: return l->n_ff;
    case EXTENT_TWO_FF: return 2 * (int64_t)l->n_ff;
    case EXTENT_HEAD: return l->heads.head_size;
    case EXTENT_HEADS: return l->heads.n_head;
    case EXTENT_EXPERTS: return l->routing.n_experts;
    case EXTENT_FF_EXPERT: return l->n_ff_expert;
    case EXTENT_TWO_FF_EXPERT: return 2 * (int64_t)l->n_ff_expert;
    case EXTENT_FF_SHARED: return l->n_ff_shared;
    case EXTENT_TOKEN: return s->n_token;
    case EXTENT_QUERY_RANK: return l->latent.query_rank;
    case EXTENT_WHOLE_QUERY: return whole_query_columns(l);
    case EXTENT_UNROTATED: return unrotated_columns(l);
    case EXTENT_ROTATED: return l->latent.n_rotated;
    case EXTENT_LATENT: return l->latent.rank;
    case EXTENT_VALUE: return l->latent.value_size;
    case EXTENT_VALUES: return value_columns(l);
    case EXTENT_TWO_QUERY: return 2 * (int64_t)query_columns(l);
    case EXTENT_CHANNELS: return l->recurrence.channels;
    case EXTENT_THREE_CHANNELS: return 3 * (int64_t)l->recurrence.channels;
    case EXTENT_CHANNELS_STEPS: return l->recurrence.channels + l->recurrence.n_heads;
    case EXTENT_RESULTS: return result_columns(l);
    case EXTENT_RESULTS_CHANNELS_STEPS: return result_columns(l) + l->recurrence.channels + l->recurrence.n_heads;
    case EXTENT_RESULT_GROUP: return result_columns(l) / (l->n_norm_groups ? l->n_norm_groups : 1);
    case EXTENT_GROUPS: return l->n_norm_groups;
    case EXTENT_RESULT: return l->recurrence.value_size;
    case EXTENT_STATES: return l->recurrence.n_heads;
    case EXTENT_TWO_STATES: return 2 * (int64_t)l->recurrence.n_heads;
    case EXTENT_STATES_OF_KEY:
        return l->recurrence.n_heads / (l->recurrence.n_key_heads ? l->recurrence.n_key_heads : 1);
    case EXTENT_KERNEL: return l->recurrence.kernel;
    }
    return 0;
}

/* "blk.<layer>.<name>" */
typedef struct Name {
    char text[80];
} Name;

static Name layer_name(int index, const char *name) {
    Name out;
    snprintf(out.text, sizeof out.text, "blk.%d.%s", index, name);
    return out;
}

static bool is_wanted(const Loader *l, const TensorSlot *slot, const Shape *s, int index, bool present) {
    (void)l;
    const bool own_cache = s->layers[index].cache_of == index, recurrent = is_recurrent(&s->layers[index]);
    const FeedForward feed_forward = s->layers[index].feed_forward;
    const Mixer mixer = s->layers[index].mixer;
    const bool mixture = feed_forward == FEED_FORWARD_EXPERTS;
    switch (slot->when) {
    case ALWAYS: return true;
    case OPTIONAL: return present;
    case MIXING: return mixer != MIXER_NONE;
    case FEEDING: return mixer == MIXER_NONE;
    case ATTENDING: return mixer == MIXER_ATTENTION;
    case RECURRENT: return recurrent;
    case RECURRENT_OPTIONAL: return recurrent && present;
    case OWN_CACHE: return own_cache;
    case OWN_CACHE_OPTIONAL: return own_cache && present;
    case LOW_RANK: return s->layers[index].latent.query_rank;
    case FULL_RANK: return !s->layers[index].latent.query_rank;
    case DENSE: return feed_forward == FEED_FORWARD_GATED;
    case MIXTURE: return mixture;
    case MIXTURE_OPTIONAL: return mixture && present;
    case SHARED: return mixture && s->layers[index].n_ff_shared;
    case TOKEN_EMBEDDINGS: return s->n_token > 0;
    }
    return true;
}

/* Of a slot whose name says what a tensor is called, without anything behind it. */
static bool is_whole(const TensorSlot *slot) {
    const size_t n = strlen(slot->name);
    return slot->bare || (n > 5 && !strcmp(slot->name + n - 5, ".bias"));
}

/* The bias of a feed-forward comes before its scale. */
static ScaleUse scale_use(const TensorSlot *slot) {
    if (slot->unscaled) return SCALES_NOTHING;
    return strncmp(slot->name, "ffn_", 4) ? SCALES_PRODUCT : SCALES_SUM;
}

static void load_slot(Loader *l, const TensorSlot *slot, const Shape *s, int index, Layer *layer) {
    const LayerShape *shape = &s->layers[index];
    const int64_t rows = extent_of(slot->rows, s, shape), columns = extent_of(slot->columns, s, shape);
    char *field = (char *)layer + slot->field;
    Name name = layer_name(s->first_block + index, slot->name);
    Part part = {.rows = rows, .whole = rows};
    const bool alone = has_tensor(l, name.text, ".weight");
    if (slot->fused && (!alone || !strcmp(slot->fused, slot->name)) &&
        has_tensor(l, layer_name(s->first_block + index, slot->fused).text, ".weight")) {
        name = layer_name(s->first_block + index, slot->fused);
        part = (Part){extent_of(slot->begin, s, shape), rows, extent_of(slot->whole, s, shape),
                      extent_of(slot->stripe, s, shape), slot->odd};
    }
    if (!is_wanted(l, slot, s, index, has_tensor(l, name.text, is_whole(slot) ? "" : ".weight"))) return;
    Name full = name;
    if (!is_whole(slot)) snprintf(full.text + strlen(full.text), sizeof full.text - strlen(full.text), ".weight");
    switch (slot->kind) {
    case SLOT_MATRIX: load_matrix(l, name.text, part, columns, scale_use(slot), (Matrix *)field); break;
    case SLOT_EXPERTS: load_experts(l, name.text, part, columns, shape->routing.n_experts, (Matrix **)field); break;
    case SLOT_HEADS: load_experts(l, name.text, part, columns, shape->heads.n_head, (Matrix **)field); break;
    case SLOT_VECTOR: *(float **)field = load_vector(l, full.text, columns); break;
    case SLOT_NUMBER: *(float *)field = load_number(l, full.text, 1); break;
    case SLOT_ROWS:
    case SLOT_COLUMNS:
    case SLOT_DECAY: *(float **)field = load_numbers(l, full.text, rows, columns, slot->kind); break;
    }
}

/* Gate and up of experts are computed together. */
static void check_gates(Loader *l, const Shape *s, int index) {
    Tensor gate, up;
    const Name gates = layer_name(s->first_block + index, "ffn_gate_exps.weight"),
               ups = layer_name(s->first_block + index, "ffn_up_exps.weight");
    if (l->status || !l->device->gates_alike || s->layers[index].feed_forward != FEED_FORWARD_EXPERTS ||
        !gguf_has_tensor(l->file, gates.text))
        return;
    l->status = gguf_tensor(l->file, gates.text, &gate, l->error);
    if (!l->status) l->status = gguf_tensor(l->file, ups.text, &up, l->error);
    if (!l->status && gate.type != up.type)
        l->status =
            bee_fail(l->error, BEE_ERROR_UNSUPPORTED,
                     "tensors '%s' and '%s' have types %s and %s; on this device they must have one: use the "
                     "CPU",
                     gates.text, ups.text, tensor_type_layout(gate.type)->name, tensor_type_layout(up.type)->name);
}

static void load_layer(Loader *l, const Shape *s, int index, Layer *layer) {
    layer->output_scale = 1;
    for (int i = 0; i < s->architecture->n_slots && !l->status; i++)
        load_slot(l, &s->architecture->slots[i], s, index, layer);
    layer->attn_output.scale *= s->layers[index].attention_scale;
    check_gates(l, s, index);
}

/* The first has the room of all, and the biases. */
static void experts_free(const Ops *ops, Backend *backend, Matrix *matrices, int n) {
    if (!matrices) return;
    for (int i = n - 1; i >= 0; i--) ops->weight_free(backend, matrices[i].weight);
    ops->buffer_free(backend, matrices->bias);
    free(matrices);
}

static void layer_free(const Ops *ops, Backend *backend, const Architecture *architecture, const LayerShape *shape,
                       Layer *layer) {
    for (int i = 0; i < architecture->n_slots; i++) {
        char *field = (char *)layer + architecture->slots[i].field;
        if (architecture->slots[i].kind == SLOT_HEADS)
            experts_free(ops, backend, *(Matrix **)field, shape->heads.n_head);
        if (architecture->slots[i].kind == SLOT_EXPERTS)
            experts_free(ops, backend, *(Matrix **)field, shape->routing.n_experts);
        if (architecture->slots[i].kind == SLOT_MATRIX) matrix_free(ops, backend, (Matrix *)field);
        const SlotKind kind = architecture->slots[i].kind;
        if (kind == SLOT_VECTOR || kind == SLOT_ROWS || kind == SLOT_COLUMNS || kind == SLOT_DECAY)
            ops->buffer_free(backend, *(float **)field);
    }
}

/* ---- what stands around the layers -------------------------------------------------------------- */

static void load_head(Loader *l, Model *m) {
    const Head head = m->shape.architecture->head;
    const bool tied = head == HEAD_TIED || (head != HEAD_REQUIRED && !gguf_has_tensor(l->file, "output.weight"));
    m->n_head_rows = m->shape.n_vocab;
    m->owns_head = true;
    m->head.scale = 1;
    if (tied) /* the embedding is the head */
        m->head.weight = load_weight(l, "token_embd.weight", &m->embedding, NULL, m->shape.n_vocab);
    else
        load_whole_matrix(l, "output", m->shape.n_vocab, m->shape.n_embd, &m->head);
    load_embedding_rows(l, m, tied);
}

static void load_token_embeddings(Loader *l, Model *m) {
    const Shape *s = &m->shape;
    const int64_t all = (int64_t)s->n_token * s->n_layer;
    Tensor tensor;
    if (!s->n_token || !find_tensor(l, "per_layer_token_embd.weight", s->n_vocab, all, &tensor)) return;
    m->token_table = load_table(l, "per_layer_token_embd.weight", &tensor);
    load_whole_matrix(l, "per_layer_model_proj", all, s->n_embd, &m->token_projection);
    m->token_norm = load_vector(l, "per_layer_proj_norm.weight", s->n_token);
}

static void load_target(Loader *l, Model *m) {
    find_embedding(l, m);
    load_head(l, m);
    load_token_embeddings(l, m);
}

/* How much of a pair's frequency YaRN leaves as it was: all of it above `fast` turns over the context, none below
 * `slow`. */
static double yarn_share(const RopeShape *s, int pair) {
    const double turns[] = {s->yarn_fast, s->yarn_slow};
    double edge[2];
    for (int i = 0; i < 2; i++)
        edge[i] = s->n_rotated * log(s->yarn_context / (2 * 3.14159265358979323846 * turns[i])) / (2 * log(s->base));
    const double low = fmax(0, floor(edge[0])), high = fmin(s->n_rotated - 1, ceil(edge[1]));
    const double ramp = (pair - low) / fmax(0.001, high - low);
    return 1 - fmin(1, fmax(0, ramp));
}

/* Interleaved sections: text has the same position in the first three, and 0 in what none of them covers. */
static bool is_turned(const RopeShape *s, int pair) {
    const int *n = s->sections, all = n[0] + n[1] + n[2] + n[3];
    return !all || pair % all < 3 * n[pair % all % 3];
}

static double frequency_of(const RopeShape *s, int pair, double factor) {
    if (!is_turned(s, pair)) return 0;
    const double whole = pow(s->base, -2.0 * pair / s->n_rotated) / factor;
    if (!s->yarn_context) return whole / s->scale;
    const double share = yarn_share(s, pair);
    return whole / s->scale * (1 - share) + whole * share;
}

/* With the factors of a tensor, or without. NULL where there is no backend. */
static double *load_frequencies(Loader *l, const RopeShape *shape, const char *name) {
    const int half = shape->n_rotated / 2;
    float factors[MAX_HEAD_SIZE / 2];
    double frequencies[MAX_HEAD_SIZE / 2];
    Tensor tensor;
    for (int i = 0; i < half; i++) factors[i] = 1;
    if (name && find_tensor(l, name, 1, half, &tensor) && read_tensor(l, &tensor)) dequantize_row(&tensor, 0, factors);
    for (int i = 0; !l->status && i < half; i++) {
        if (!(factors[i] > 0))
            l->status = bee_fail(l->error, BEE_ERROR_FORMAT, "tensor '%s': factor %d must be above 0", name, i);
        frequencies[i] = frequency_of(shape, i, factors[i]);
    }
    if (l->status || !l->backend) return NULL;
    double *buffer = (double *)l->ops->buffer_new(l->backend, padded(half) * 2);
    if (buffer)
        l->ops->buffer_write(l->backend, buffer, frequencies, (size_t)half * sizeof *frequencies);
    else
        fail_memory(l, name ? name : "rope_freqs.weight");
    return buffer;
}

static void load_rope(Loader *l, const RopeShape *shape, Rope *rope) {
    const bool has_short = shape->factors && gguf_has_tensor(l->file, shape->factors);
    const bool has_long = shape->long_factors && gguf_has_tensor(l->file, shape->long_factors);
    *rope = (Rope){.n_rotated = shape->n_rotated,
                   .neox = shape->neox,
                   .magnitude = shape->magnitude,
                   .long_beyond = shape->long_beyond};
    rope->frequencies = load_frequencies(l, shape, has_short ? shape->factors : NULL);
    if (shape->long_factors && (has_short || has_long))
        rope->long_frequencies = load_frequencies(l, shape, has_long ? shape->long_factors : NULL);
}

static void load_ropes(Loader *l, Model *m) {
    for (int i = 0; i < m->shape.n_ropes && !l->status; i++) load_rope(l, &m->shape.ropes[i], &m->ropes[i]);
    for (int i = 0; i < m->shape.n_layer; i++) {
        LayerShape *layer = &m->shape.layers[i];
        layer->heads.rope = layer->rope < 0 ? NULL : &m->ropes[layer->rope];
    }
}

/* ---- the whole model ---------------------------------------------------------------------------- */

/* Of a block behind the layers. */
static bool is_beyond_layers(const Shape *s, const bee_tensor_info *tensor) {
    int block = 0;
    if (tensor->name_length < 5 || memcmp(tensor->name, "blk.", 4)) return false;
    for (uint64_t i = 4;
         i < tensor->name_length && tensor->name[i] >= '0' && tensor->name[i] <= '9' && block < MAX_LAYERS; i++)
        block = 10 * block + tensor->name[i] - '0';
    return block >= s->n_layer && block < s->n_blocks;
}

/* "<name>.input_scale" beside a matrix, as files in NVFP4 have it: what somebody else's products divide activations by.
 * Here these have scales of their own. */
static bool is_input_scale(const Loader *l, const bee_tensor_info *tensor) {
    static const char suffix[] = ".input_scale";
    const size_t n = sizeof suffix - 1, length = (size_t)tensor->name_length;
    char matrix[96];
    if (length < n || memcmp(tensor->name + length - n, suffix, n)) return false;
    snprintf(matrix, sizeof matrix, "%.*s.weight", (int)(length - n), tensor->name);
    return gguf_has_tensor(l->file, matrix);
}

/* A tensor that nothing reads would be a part of the model left out. */
static void check_leftovers(Loader *l, const Shape *s) {
    for (uint64_t i = 0; !l->status && i < bee_file_tensor_count(l->file); i++) {
        bee_tensor_info tensor;
        l->status = bee_file_tensor(l->file, i, &tensor, l->error);
        if (!l->status && !is_bound(l, tensor.name) && !is_beyond_layers(s, &tensor) && !is_input_scale(l, &tensor))
            l->status = bee_fail(l->error, BEE_ERROR_UNSUPPORTED,
                                 "tensor '%.*s' has no place in this architecture; models with adapters, experts or "
                                 "parts of another family cannot be run",
                                 (int)(tensor.name_length < 64 ? tensor.name_length : 64), tensor.name);
    }
}

static bool layers_new(Loader *l, Model *m) {
    m->layers = calloc((size_t)m->shape.n_layer, sizeof *m->layers);
    l->bound = calloc(bee_file_tensor_count(l->file) + 1, sizeof *l->bound);
    if (!m->layers || !l->bound) fail_memory(l, "blk.0");
    return !l->status;
}

static void load_model(Loader *l, Model *m, const Model *target, const bee_file *target_file) {
    const Shape *s = &m->shape;
    if (l->status || !layers_new(l, m)) return;
    if (s->architecture->about.is_drafter)
        load_drafter(l, m, target, target_file);
    else
        load_target(l, m);
    for (int i = 0; i < s->n_layer && !l->status; i++) load_layer(l, s, i, &m->layers[i]);
    const char *norm = s->architecture->output_norm;
    m->output_norm = load_vector(l, norm ? norm : "output_norm.weight", s->n_embd);
    load_ropes(l, m);
    check_leftovers(l, s);
    m->weight_bytes = l->weight_bytes;
}

static void load_block(Loader *l, Model *m, const Model *target, const bee_file *target_file) {
    const bool alone = l->file != target_file;
    if (l->status || !read_block(l, &m->shape, target, target_file) || !layers_new(l, m)) return;
    load_predictor(l, m, target, target_file);
    if (!l->status) load_layer(l, &m->shape, 0, &m->layers[0]);
    load_ropes(l, m);
    if (alone) check_leftovers(l, &m->shape);
    m->weight_bytes = l->weight_bytes;
}

/* What the file holds; of a target's own file, the block that predicts. */
static void load_file(Loader *l, Model *m, const Model *target, const bee_file *target_file) {
    bool block = target && l->file == target_file;
    if (!block) {
        l->status = shape_read(l->file, &m->shape, l->error);
        block = !l->status && is_block_alone(l->file, &m->shape);
        if (block) shape_free(&m->shape);
    }
    if (!l->status && block)
        load_block(l, m, target, target_file);
    else if (!l->status)
        load_model(l, m, target, target_file);
    if (!l->status) shape_place_caches(&m->shape, l->kv_type);
    free(l->bound);
    free(l->buffer);
}

Model *model_load(const Device *device, const Ops *ops, Backend *backend, const bee_file *file, const Model *target,
                  const bee_file *target_file, const LoadOptions *options, bee_error *error) {
    Model *m = calloc(1, sizeof *m);
    if (!m) {
        bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
        return NULL;
    }
    Loader l = {.ops = ops,
                .backend = backend,
                .file = file,
                .device = device,
                .kv_type = options->kv_type,
                .made_up = options->made_up ? &m->made_up : NULL,
                .progress = options->progress,
                .error = error};
    if (!options->made_up) l.packed = packed_model_new(options->cache, ops, backend, file, target_file);
    load_file(&l, m, target, target_file);
    m->packed = packed_model_end(l.packed, !l.status);
    if (!l.status) return m;
    model_free(ops, backend, m);
    return NULL;
}

void model_free(const Ops *ops, Backend *backend, Model *m) {
    if (!m) return;
    for (int i = 0; m->layers && i < m->shape.n_layer; i++)
        layer_free(ops, backend, m->shape.architecture, &m->shape.layers[i], &m->layers[i]);
    if (m->owns_head) matrix_free(ops, backend, &m->head);
    matrix_free(ops, backend, &m->features_in);
    matrix_free(ops, backend, &m->token_projection);
    ops->buffer_free(backend, m->token_norm);
    if (m->token_table) ops->table_free(backend, m->token_table);
    ops->buffer_free(backend, m->features_norm);
    ops->buffer_free(backend, m->embedding_norm);
    ops->buffer_free(backend, m->output_norm);
    ops->buffer_free(backend, m->draft_tokens);
    for (int i = 0; i < m->shape.n_ropes; i++) {
        ops->buffer_free(backend, (void *)m->ropes[i].frequencies);
        ops->buffer_free(backend, (void *)m->ropes[i].long_frequencies);
    }
    if (m->owns_table) ops->table_free(backend, m->table);
    made_up_free(m->made_up);
    packed_close(m->packed);
    free(m->layers);
    shape_free(&m->shape);
    free(m);
}

bee_status model_plan(const bee_file *file, const Device *device, const Model *target, const bee_file *target_file,
                      bee_kv_type kv_type, Model *out, bee_error *error) {
    *out = (Model){0};
    Loader l = {.file = file, .device = device, .kv_type = kv_type, .error = error};
    if ((l.status = kv_type_check(kv_type, error))) return l.status;
    load_file(&l, out, target, target_file);
    free(out->layers);
    out->layers = NULL;
    if (l.status) shape_free(&out->shape);
    return l.status;
}

bee_pass_needs model_needs(const Ops *ops, const Model *m) {
    const Shape *s = &m->shape;
    const CacheShape cache = shape_cache(s);
    bee_pass_needs needs = {
        .weight_bytes = ops->weight_bytes(m->head.weight),
        .kv_bytes_per_position = cache_position_bytes(&cache),
        .head_multiply_adds = (uint64_t)m->n_head_rows * (uint64_t)s->n_embd,
    };
    for (int i = 0; i < s->n_layer; i++) {
        const LayerShape *shape = &s->layers[i];
        if (shape->mixer == MIXER_ATTENTION) needs.attention_multiply_adds += 2 * (uint64_t)query_columns(shape);
        for (int j = 0; j < s->architecture->n_slots; j++) {
            const TensorSlot *slot = &s->architecture->slots[j];
            const Matrix *matrix = (const Matrix *)((const char *)&m->layers[i] + slot->field);
            int times = 1;
            if (slot->kind == SLOT_EXPERTS || slot->kind == SLOT_HEADS) { /* of those that a row goes to */
                matrix = *(Matrix *const *)(const void *)matrix;
                times = slot->kind == SLOT_HEADS ? shape->heads.n_head : shape->routing.n_used;
            } else if (slot->kind != SLOT_MATRIX) {
                continue;
            }
            if (!matrix || !matrix->weight) continue;
            needs.weight_bytes += (uint64_t)times * ops->weight_bytes(matrix->weight);
            needs.multiply_adds +=
                (uint64_t)times * (uint64_t)(extent_of(slot->rows, s, shape) * extent_of(slot->columns, s, shape));
        }
    }
    return needs;
}

bee_status bee_file_plan(const bee_file *file, bee_kv_type kv_type, bee_plan *out, bee_error *error) {
    Model m;
    const Device *device = device_of(BEE_DEVICE_CPU);
    bee_status status = model_plan(file, device, NULL, NULL, kv_type, &m, error);
    if (status) return status;
    const CacheShape cache = shape_cache(&m.shape);
    const bool predicts = model_predicts(file, &m.shape);
    Model predictor = {0};
    if (predicts) status = model_plan(file, device, &m, file, kv_type, &predictor, error);
    if (status) {
        shape_free(&m.shape);
        return status;
    }
    const CacheShape predicted = predicts ? shape_cache(&predictor.shape) : (CacheShape){0};
    *out = (bee_plan){
        .weight_bytes = m.weight_bytes + predictor.weight_bytes,
        .kv_bytes_per_token = cache_position_bytes(&cache) + cache_position_bytes(&predicted),
        .state_bytes = cache_state_bytes(&cache),
        .n_left_out = predicts ? 0 : m.shape.n_blocks - m.shape.n_layer,
        .predicts = predicts,
        .n_vocab = m.shape.n_vocab,
        .n_ctx_train = m.shape.n_ctx_train,
        .n_layer = m.shape.n_layer,
        .n_embd = m.shape.n_embd,
        .is_drafter = drafter_kind(file, &m.shape) != NULL,
    };
    shape_free(&predictor.shape);
    shape_free(&m.shape);
    return BEE_OK;
}
