#include "model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/pack.h"
#include "error.h"
#include "random_weights.h"

/* ---- metadata ----------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    Architecture architecture;
} architectures[] = {{"llama", ARCH_LLAMA}, {"qwen3", ARCH_QWEN3}, {"dflash", ARCH_DFLASH}};

/* Reads "<architecture>.<suffix>" keys, remembering the first failure, so that a list of reads stays a list. */
typedef struct KeyReader {
    const bee_file *file;
    const char *prefix;
    bee_error *error;
    bee_status status;
} KeyReader;

static const char *full_key(const KeyReader *r, const char *suffix, char out[128]) {
    snprintf(out, 128, "%s.%s", r->prefix, suffix);
    return out;
}

static bool has_key(const KeyReader *r, const char *suffix) {
    char key[128];
    bee_metadata ignored;
    return gguf_find(r->file, full_key(r, suffix, key), &ignored);
}

static int64_t read_int(KeyReader *r, const char *suffix, bool required, int64_t fallback, int64_t low, int64_t high) {
    char key[128];
    int64_t value = fallback;
    if (!r->status) r->status = gguf_int(r->file, full_key(r, suffix, key), required, low, high, &value, r->error);
    return value;
}

static double read_float(KeyReader *r, const char *suffix, bool required, double fallback) {
    char key[128];
    double value = fallback;
    if (!r->status) r->status = gguf_float(r->file, full_key(r, suffix, key), required, &value, r->error);
    return value;
}

static void refuse(KeyReader *r, const char *suffix, const char *why) {
    if (!r->status) r->status = bee_fail(r->error, BEE_ERROR_UNSUPPORTED, "%s.%s: %s", r->prefix, suffix, why);
}

/* Features of a family that this library does not compute: better refused than ignored. */
static void refuse_variants(KeyReader *r, const Shape *shape) {
    if (read_int(r, "expert_count", false, 0, 0, INT32_MAX) > 0)
        refuse(r, "expert_count", "mixtures of experts cannot be run");
    const int64_t window = read_int(r, "attention.sliding_window", false, 0, 0, INT32_MAX);
    if (window > 0 && window < shape->n_ctx_train)
        refuse(r, "attention.sliding_window", "attention over a sliding window cannot be run");
    if (shape->architecture != ARCH_DFLASH) {
        char key[128];
        bool causal = true;
        if (!r->status) r->status = gguf_bool(r->file, full_key(r, "attention.causal", key), false, &causal, r->error);
        if (!causal) refuse(r, "attention.causal", "models that see what follows a token cannot generate");
        return;
    }
    static const char *const scalings[] = {"logit_scale", "final_logit_softcapping", "embedding_scale"};
    for (int i = 0; i < 3; i++) {
        const double value = read_float(r, scalings[i], false, 0);
        if (value != 0 && !(value == 1 && i != 1)) refuse(r, scalings[i], "drafters with this scaling cannot be run");
    }
    if (has_key(r, "rope.dimension_sections")) refuse(r, "rope.dimension_sections", "sectioned RoPE cannot be run");
}

static void read_rope(KeyReader *r, Shape *shape) {
    shape->n_rotated = (int)read_int(r, "rope.dimension_count", false, shape->head_size, 2, shape->head_size);
    if (shape->n_rotated % 2) refuse(r, "rope.dimension_count", "an odd number of dimensions cannot be rotated");
    shape->rope_base = read_float(r, "rope.freq_base", false, 10000);
    if (!r->status && !(shape->rope_base > 0)) refuse(r, "rope.freq_base", "must be above 0");
    /* As llama.cpp reads it: a factor without a type is linear; "rope.scale_linear" is the factor's former key. */
    char type[32] = "linear", key[128];
    if (!r->status)
        r->status = gguf_string(r->file, full_key(r, "rope.scaling.type", key), false, type, sizeof type, r->error);
    shape->rope_scale = 1;
    if (!strcmp(type, "linear"))
        shape->rope_scale = read_float(r, "rope.scaling.factor", false, read_float(r, "rope.scale_linear", false, 1));
    else if (strcmp(type, "none"))
        refuse(r, "rope.scaling.type", "only the types 'none' and 'linear' can be run");
    if (read_float(r, "rope.scaling.attn_factor", false, 1) != 1)
        refuse(r, "rope.scaling.attn_factor", "scaled attention cannot be run");
    if (!r->status && !(shape->rope_scale > 0)) refuse(r, "rope.scaling.factor", "must be above 0");
}

static void read_heads(KeyReader *r, Shape *shape) {
    shape->n_head = (int)read_int(r, "attention.head_count", true, 1, 1, 4096);
    shape->n_head_kv = (int)read_int(r, "attention.head_count_kv", false, shape->n_head, 1, 4096);
    if (!r->status && shape->n_head % shape->n_head_kv)
        refuse(r, "attention.head_count_kv", "must divide attention.head_count");
    shape->head_size = (int)read_int(r, "attention.key_length", false, shape->n_embd / shape->n_head, 1, MAX_HEAD_SIZE);
    if (read_int(r, "attention.value_length", false, shape->head_size, 1, MAX_HEAD_SIZE) != shape->head_size)
        refuse(r, "attention.value_length", "must equal attention.key_length");
    /* Without the key the size follows from other numbers, which are in range where it may not be. */
    if (shape->head_size < 16 || shape->head_size > MAX_HEAD_SIZE || shape->head_size % 16)
        refuse(r, "attention.key_length", "heads must have a multiple of 16 dimensions, at most 1024");
}

static void read_drafter(KeyReader *r, Shape *shape) {
    int64_t mask = 0;
    bool causal = false;
    char key[128];
    shape->block_size = (int)read_int(r, "block_size", false, 16, 2, 1024);
    if (shape->block_size > BEE_MAX_BLOCK) shape->block_size = BEE_MAX_BLOCK;
    if (!r->status)
        r->status = gguf_ints(r->file, full_key(r, "target_layers", key), true, shape->taps, BEE_MAX_TAPS,
                              &shape->n_taps, r->error);
    if (!r->status && shape->n_taps < 1)
        r->status = bee_fail(r->error, BEE_ERROR_FORMAT,
                             "metadata 'dflash.target_layers' is empty; it must name the layers of the target whose "
                             "inputs the drafter reads");
    if (!r->status) r->status = gguf_int(r->file, "tokenizer.ggml.mask_token_id", true, 0, INT32_MAX, &mask, r->error);
    if (!r->status) r->status = gguf_bool(r->file, full_key(r, "attention.causal", key), false, &causal, r->error);
    shape->mask_token = (int)mask;
    shape->causal = causal;
}

static bee_status find_architecture(const bee_file *file, Shape *shape, const char **name, bee_error *error) {
    char wanted[64];
    const bee_status status = gguf_string(file, "general.architecture", true, wanted, sizeof wanted, error);
    if (status) return status;
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        if (strcmp(architectures[i].name, wanted)) continue;
        shape->architecture = architectures[i].architecture;
        *name = architectures[i].name;
        return BEE_OK;
    }
    return bee_fail(error, BEE_ERROR_UNSUPPORTED,
                    "architecture '%s' cannot be run; the library runs llama, qwen3 and, as a drafter, dflash", wanted);
}

bee_status shape_read(const bee_file *file, Shape *shape, bee_error *error) {
    *shape = (Shape){.mask_token = -1};
    KeyReader r = {.file = file, .error = error};
    const bee_status status = find_architecture(file, shape, &r.prefix, error);
    if (status) return status;
    shape->n_layer = (int)read_int(&r, "block_count", true, 1, 1, 1024);
    shape->n_ctx_train = (int)read_int(&r, "context_length", true, 1, 1, 1 << 26);
    shape->n_embd = (int)read_int(&r, "embedding_length", true, 1, 1, 65536);
    shape->n_ff = (int)read_int(&r, "feed_forward_length", true, 1, 1, 1 << 20);
    shape->n_vocab = (int)read_int(&r, "vocab_size", false, 0, 1, 1 << 24);
    shape->eps = (float)read_float(&r, "attention.layer_norm_rms_epsilon", true, 1e-5);
    if (!r.status && !(shape->eps > 0 && shape->eps < 1))
        refuse(&r, "attention.layer_norm_rms_epsilon", "must lie between 0 and 1");
    read_heads(&r, shape);
    read_rope(&r, shape);
    if (shape->architecture == ARCH_DFLASH) read_drafter(&r, shape);
    refuse_variants(&r, shape);
    return r.status;
}

/* ---- weights ------------------------------------------------------------------------------------ */

/* Walks the tensors of a model. Without a backend it only checks them and counts bytes: that is the plan. */
typedef struct Loader {
    const Ops *ops;
    Backend *backend; /* NULL: plan only */
    const bee_file *file;
    const char **bound; /* names, as the file points to them, of the tensors that the model uses */
    uint64_t n_bound;
    uint64_t weight_bytes;
    const Device *device;
    MadeUp **made_up;       /* NULL: the weights are the file's */
    LoadProgress *progress; /* with a backend */
    int32_t *draft_tokens;  /* while loading: the host's copy of the model's */
    bee_error *error;
    bee_status status;
} Loader;

static void fail_memory(Loader *l, const char *name) {
    l->status = bee_fail(l->error, BEE_ERROR_MEMORY, "out of memory while loading tensor '%s'", name);
}

/* Finds a tensor and checks its shape: columns is shape[0]; rows < 0 accepts any number. */
static bool find(Loader *l, const char *name, int64_t rows, int64_t columns, Tensor *out) {
    if (l->status) return false;
    l->status = gguf_tensor(l->file, name, out, l->error);
    if (l->status) return false;
    if (out->type == TYPE_I64) {
        l->status = bee_fail(l->error, BEE_ERROR_UNSUPPORTED, "tensor '%s': type I64 holds no weights", name);
    } else if (out->columns != columns || (rows >= 0 && out->rows != rows) || out->n_dimensions > 2) {
        char expected[32] = "any";
        if (rows >= 0) snprintf(expected, sizeof expected, "%" PRId64, rows);
        l->status =
            bee_fail(l->error, BEE_ERROR_FORMAT,
                     "tensor '%s': shape is [%" PRId64 ", %" PRId64 "], but the metadata calls for [%" PRId64 ", %s]",
                     name, out->columns, out->rows, columns, expected);
    } else if (out->rows > 1 << 24 || out->rows < 1) {
        l->status =
            bee_fail(l->error, BEE_ERROR_FORMAT, "tensor '%s': %" PRId64 " rows are out of range", name, out->rows);
    }
    if (l->status) return false;
    l->bound[l->n_bound++] = out->name;
    if (l->made_up && !make_up(l->made_up, out)) fail_memory(l, name);
    return !l->status;
}

/* A matrix or a table has been loaded. */
static void tell_progress(Loader *l, uint64_t bytes) {
    LoadProgress *p = l->progress;
    if (l->status || !p->tell) return;
    p->done += bytes;
    if (!p->tell(p->user, p->done < p->total ? p->done : p->total, p->total))
        l->status = bee_fail(l->error, BEE_ERROR_CANCELLED, "loading was cancelled");
}

static Weight *load_matrix_rows(Loader *l, const char *name, const Tensor *tensor, const int32_t *row_ids, int n_rows) {
    if (l->status) return NULL;
    const uint64_t bytes = l->device->matrix_bytes(tensor->type, n_rows, (int)tensor->columns);
    l->weight_bytes += bytes;
    if (!l->backend) return NULL;
    Weight *weight = l->ops->weight_new(l->backend, tensor, row_ids, n_rows);
    if (!weight) fail_memory(l, name);
    if (!l->made_up) gguf_release(tensor); /* packed now: the file's copy need not take memory, too */
    tell_progress(l, bytes);
    return weight;
}

static Weight *load_matrix(Loader *l, const char *name, int64_t rows, int64_t columns) {
    Tensor tensor;
    return find(l, name, rows, columns, &tensor) ? load_matrix_rows(l, name, &tensor, NULL, (int)tensor.rows) : NULL;
}

static float *load_vector(Loader *l, const char *name, int64_t columns) {
    Tensor tensor;
    if (!find(l, name, 1, columns, &tensor)) return NULL;
    l->weight_bytes += padded(columns) * sizeof(float);
    if (!l->backend) return NULL;
    float *values = malloc(padded(columns) * sizeof *values);
    float *vector = values ? l->ops->buffer_new(l->backend, padded(columns)) : NULL;
    if (vector) {
        dequantize_row(&tensor, 0, values);
        l->ops->buffer_write(l->backend, vector, values, (size_t)columns * sizeof *values);
    } else {
        fail_memory(l, name);
    }
    free(values);
    return vector;
}

static void load_layer(Loader *l, const Shape *s, int index, Layer *layer) {
    char name[64];
    const int64_t query = (int64_t)s->n_head * s->head_size, key = (int64_t)s->n_head_kv * s->head_size;
    const bool norms = s->architecture != ARCH_LLAMA;
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%d." suffix ".weight", index), name)
    layer->attn_norm = load_vector(l, NAME("attn_norm"), s->n_embd);
    layer->q = load_matrix(l, NAME("attn_q"), query, s->n_embd);
    layer->k = load_matrix(l, NAME("attn_k"), key, s->n_embd);
    layer->v = load_matrix(l, NAME("attn_v"), key, s->n_embd);
    layer->q_norm = norms ? load_vector(l, NAME("attn_q_norm"), s->head_size) : NULL;
    layer->k_norm = norms ? load_vector(l, NAME("attn_k_norm"), s->head_size) : NULL;
    layer->attn_output = load_matrix(l, NAME("attn_output"), s->n_embd, query);
    layer->ffn_norm = load_vector(l, NAME("ffn_norm"), s->n_embd);
    layer->gate = load_matrix(l, NAME("ffn_gate"), s->n_ff, s->n_embd);
    layer->up = load_matrix(l, NAME("ffn_up"), s->n_ff, s->n_embd);
    layer->down = load_matrix(l, NAME("ffn_down"), s->n_embd, s->n_ff);
#undef NAME
}

/* RoPE frequencies, divided by the factors of rope_freqs.weight where there are any (Llama 3). */
static void load_frequencies(Loader *l, Model *m) {
    const int half = m->shape.n_rotated / 2;
    float factors[MAX_HEAD_SIZE / 2];
    double frequencies[MAX_HEAD_SIZE / 2];
    Tensor tensor;
    const bool scaled = gguf_has_tensor(l->file, "rope_freqs.weight");
    if (scaled && find(l, "rope_freqs.weight", 1, half, &tensor)) dequantize_row(&tensor, 0, factors);
    for (int i = 0; !l->status && i < half; i++) {
        frequencies[i] = pow(m->shape.rope_base, -2.0 * i / m->shape.n_rotated) / m->shape.rope_scale;
        if (!scaled) continue;
        if (!(factors[i] > 0))
            l->status =
                bee_fail(l->error, BEE_ERROR_FORMAT, "tensor 'rope_freqs.weight': factor %d must be above 0", i);
        frequencies[i] /= factors[i];
    }
    if (l->status || !l->backend) return;
    m->frequencies = (double *)l->ops->buffer_new(l->backend, padded(half) * 2);
    if (m->frequencies)
        l->ops->buffer_write(l->backend, m->frequencies, frequencies, (size_t)half * sizeof *frequencies);
    else
        fail_memory(l, "rope_freqs.weight");
    m->heads.frequencies = m->frequencies;
}

/* The CPU leaves it in the file: a pass reads a few of its rows. */
static void load_table(Loader *l, Model *m) {
    if (l->status) return;
    if (l->device->own_memory) l->weight_bytes += m->embedding.size;
    if (!l->backend) return;
    m->table = l->ops->table_new(l->backend, &m->embedding);
    m->owns_table = true;
    if (!m->table) fail_memory(l, "token_embd.weight");
    if (l->device->own_memory) tell_progress(l, m->embedding.size);
}

static void load_embedding(Loader *l, Model *m) {
    if (!find(l, "token_embd.weight", -1, m->shape.n_embd, &m->embedding)) return;
    if (m->shape.n_vocab && m->shape.architecture == ARCH_DFLASH && m->embedding.rows != m->shape.n_vocab)
        l->status = bee_fail(l->error, BEE_ERROR_FORMAT, "tensor 'token_embd.weight': %" PRId64 " rows for %d tokens",
                             m->embedding.rows, m->shape.n_vocab);
    m->shape.n_vocab = (int)m->embedding.rows;
    load_table(l, m);
}

static void load_target(Loader *l, Model *m) {
    load_embedding(l, m);
    m->n_head_rows = m->shape.n_vocab;
    m->owns_head = true;
    if (gguf_has_tensor(l->file, "output.weight"))
        m->head = load_matrix(l, "output.weight", m->shape.n_vocab, m->shape.n_embd);
    else if (!l->status) /* tied: the embedding is the head */
        m->head = load_matrix_rows(l, "token_embd.weight", &m->embedding, NULL, m->shape.n_vocab);
}

/* ---- drafters ----------------------------------------------------------------------------------- */

static void mismatch(Loader *l, const char *what, int64_t drafter, int64_t target) {
    if (!l->status)
        l->status = bee_fail(l->error, BEE_ERROR_MISMATCH,
                             "the drafter does not fit this target: its %s is %" PRId64 ", the target's is %" PRId64
                             "; use the drafter that was trained for this very model",
                             what, drafter, target);
}

static void check_vocabulary(Loader *l, const bee_file *target_file, int n_vocab) {
    uint64_t count = 0, target_count = 0;
    const uint64_t target_hash = gguf_vocabulary_hash(target_file, &target_count);
    uint64_t hash = gguf_vocabulary_hash(l->file, &count);
    bee_metadata stored;
    if (!count && gguf_find(l->file, "dflash.target_vocabulary_hash", &stored) && stored.type == BEE_VALUE_UINT64) {
        memcpy(&hash, stored.data, sizeof hash);
        count = target_count;
    }
    if (l->status) return;
    if (!count)
        l->status = bee_fail(l->error, BEE_ERROR_MISMATCH,
                             "the drafter names no vocabulary (neither tokenizer.ggml.tokens nor "
                             "dflash.target_vocabulary_hash), so it cannot be checked against the target");
    else if (count != target_count)
        mismatch(l, "vocabulary size", (int64_t)count, target_count ? (int64_t)target_count : n_vocab);
    else if (hash != target_hash)
        l->status = bee_fail(l->error, BEE_ERROR_MISMATCH,
                             "the drafter does not fit this target: the vocabularies have the same size but other "
                             "tokens; use the drafter that was trained for this very model");
}

static void check_drafter(Loader *l, const Shape *drafter, const Model *target, const bee_file *target_file) {
    if (drafter->n_embd != target->shape.n_embd) mismatch(l, "embedding_length", drafter->n_embd, target->shape.n_embd);
    if (drafter->n_vocab && drafter->n_vocab != target->shape.n_vocab)
        mismatch(l, "vocab_size", drafter->n_vocab, target->shape.n_vocab);
    if (!l->status && drafter->mask_token >= target->shape.n_vocab)
        l->status =
            bee_fail(l->error, BEE_ERROR_MISMATCH,
                     "the drafter does not fit this target: its tokenizer.ggml.mask_token_id is %d, but the target "
                     "has tokens 0 to %d",
                     drafter->mask_token, target->shape.n_vocab - 1);
    for (int i = 0; !l->status && i < drafter->n_taps; i++)
        if (drafter->taps[i] < 0 || drafter->taps[i] > target->shape.n_layer)
            l->status = bee_fail(l->error, BEE_ERROR_MISMATCH,
                                 "the drafter does not fit this target: dflash.target_layers[%d] is %d, but the target "
                                 "has layers 0 to %d",
                                 i, drafter->taps[i], target->shape.n_layer);
    check_vocabulary(l, target_file, target->shape.n_vocab);
}

/* d2t: the token of each row of a reduced head. */
static void load_draft_tokens(Loader *l, Model *m, int n_vocab) {
    if (l->status || !gguf_has_tensor(l->file, "d2t")) return;
    Tensor t;
    l->status = gguf_tensor(l->file, "d2t", &t, l->error);
    if (l->status) return;
    if (t.type != TYPE_I64 || t.rows != 1 || t.columns < 1 || t.columns > 1 << 24) {
        l->status =
            bee_fail(l->error, BEE_ERROR_FORMAT, "tensor 'd2t': must be a vector of I64, one per row of the head");
        return;
    }
    if (n_vocab && t.columns > n_vocab) {
        l->status = bee_fail(l->error, BEE_ERROR_FORMAT,
                             "tensor 'd2t': has %" PRId64 " entries, more than the %d tokens of the target", t.columns,
                             n_vocab);
        return;
    }
    l->bound[l->n_bound++] = t.name;
    m->n_head_rows = (int)t.columns;
    l->weight_bytes += l->device->own_memory ? padded(t.columns) * sizeof *m->draft_tokens : 0;
    l->draft_tokens = malloc((size_t)t.columns * sizeof *m->draft_tokens);
    if (l->backend) m->draft_tokens = (int32_t *)l->ops->buffer_new(l->backend, padded(t.columns));
    if (!l->draft_tokens || (l->backend && !m->draft_tokens)) {
        fail_memory(l, "d2t");
        return;
    }
    for (int i = 0; i < m->n_head_rows; i++) {
        int64_t token;
        memcpy(&token, t.data + 8 * (size_t)i, 8);
        if (token < 0 || (n_vocab && token >= n_vocab)) {
            l->status = bee_fail(l->error, BEE_ERROR_FORMAT,
                                 "tensor 'd2t': entry %d is %" PRId64 ", no token of the target", i, token);
            return;
        }
        l->draft_tokens[i] = (int32_t)token;
    }
    if (l->backend)
        l->ops->buffer_write(l->backend, m->draft_tokens, l->draft_tokens,
                             (size_t)m->n_head_rows * sizeof *l->draft_tokens);
}

static void load_draft_head(Loader *l, Model *m, const Model *target, const bee_file *target_file) {
    if (gguf_has_tensor(l->file, "output.weight")) {
        m->owns_head = true;
        m->head = load_matrix(l, "output.weight", m->n_head_rows, m->shape.n_embd);
    } else if (l->draft_tokens) { /* the target's own rows */
        Tensor rows = target->embedding;
        if (gguf_has_tensor(target_file, "output.weight") && !l->status)
            l->status = gguf_tensor(target_file, "output.weight", &rows, l->error);
        if (l->made_up && !l->status && !make_up(l->made_up, &rows)) fail_memory(l, "output.weight");
        m->owns_head = true;
        m->head = load_matrix_rows(l, "output.weight", &rows, l->draft_tokens, m->n_head_rows);
    } else {
        m->head = target->head;
    }
}

static void load_drafter(Loader *l, Model *m, const Model *target, const bee_file *target_file) {
    if (target) check_drafter(l, &m->shape, target, target_file);
    const int n_vocab = target ? target->shape.n_vocab : m->shape.n_vocab;
    m->n_head_rows = m->shape.n_vocab = n_vocab;
    if (gguf_has_tensor(l->file, "token_embd.weight"))
        load_embedding(l, m);
    else if (target) {
        m->embedding = target->embedding;
        m->table = target->table;
    }
    m->features_in = load_matrix(l, "fc.weight", m->shape.n_embd, (int64_t)m->shape.n_taps * m->shape.n_embd);
    m->features_norm = load_vector(l, "enc.output_norm.weight", m->shape.n_embd);
    load_draft_tokens(l, m, n_vocab);
    if (target) {
        load_draft_head(l, m, target, target_file);
    } else if (gguf_has_tensor(l->file, "output.weight")) {
        m->owns_head = true;
        m->head = load_matrix(l, "output.weight", l->draft_tokens ? m->n_head_rows : -1, m->shape.n_embd);
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
    m->heads = (Heads){.n_head = s->n_head,
                       .n_head_kv = s->n_head_kv,
                       .head_size = s->head_size,
                       .n_rotated = s->n_rotated,
                       .neox = s->architecture != ARCH_LLAMA,
                       .eps = s->eps};
    if (s->architecture == ARCH_DFLASH)
        load_drafter(l, m, target, target_file);
    else
        load_target(l, m);
    for (int i = 0; i < s->n_layer && !l->status; i++) load_layer(l, s, i, &m->layers[i]);
    m->output_norm = load_vector(l, "output_norm.weight", s->n_embd);
    load_frequencies(l, m);
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
    free(l.draft_tokens);
    free(l.bound);
    if (!l.status) return m;
    model_free(ops, backend, m);
    return NULL;
}

static void layer_free(const Ops *ops, Backend *backend, Layer *layer) {
    Weight *weights[] = {layer->q, layer->k, layer->v, layer->attn_output, layer->gate, layer->up, layer->down};
    float *vectors[] = {layer->attn_norm, layer->ffn_norm, layer->q_norm, layer->k_norm};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) ops->weight_free(backend, weights[i]);
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) ops->buffer_free(backend, vectors[i]);
}

void model_free(const Ops *ops, Backend *backend, Model *m) {
    if (!m) return;
    for (int i = 0; m->layers && i < m->shape.n_layer; i++) layer_free(ops, backend, &m->layers[i]);
    if (m->owns_head) ops->weight_free(backend, m->head);
    ops->weight_free(backend, m->features_in);
    ops->buffer_free(backend, m->features_norm);
    ops->buffer_free(backend, m->output_norm);
    ops->buffer_free(backend, m->draft_tokens);
    ops->buffer_free(backend, m->frequencies);
    if (m->owns_table) ops->table_free(backend, m->table);
    made_up_free(m->made_up);
    free(m->layers);
    free(m);
}

bee_status model_plan(const bee_file *file, const Device *device, const Model *target, const bee_file *target_file,
                      Model *out, bee_error *error) {
    *out = (Model){0};
    Loader l = {.file = file, .device = device, .error = error};
    l.status = shape_read(file, &out->shape, error);
    if (!l.status) load_model(&l, out, target, target_file);
    free(l.bound);
    free(l.draft_tokens);
    free(out->layers);
    out->layers = NULL;
    return l.status;
}

bee_status bee_file_plan(const bee_file *file, bee_plan *out, bee_error *error) {
    Model m;
    const bee_status status = model_plan(file, device_of(BEE_DEVICE_CPU), NULL, NULL, &m, error);
    if (status) return status;
    *out = (bee_plan){
        .weight_bytes = m.weight_bytes,
        .kv_bytes_per_token = cache_position_bytes(m.shape.n_layer, m.shape.n_head_kv, m.shape.head_size),
        .n_vocab = m.shape.n_vocab,
        .n_ctx_train = m.shape.n_ctx_train,
        .n_layer = m.shape.n_layer,
        .n_embd = m.shape.n_embd,
        .is_drafter = m.shape.architecture == ARCH_DFLASH,
    };
    return BEE_OK;
}
