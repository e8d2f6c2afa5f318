#include "drafter.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "architectures/architecture.h"
#include "error.h"
#include "file/tensor.h"

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

/* d2t: the token of each row of a reduced head. Also returns the host's copy, to be freed; NULL without one. */
static int32_t *load_draft_tokens(Loader *l, Model *m, int n_vocab) {
    Tensor t;
    if (l->status || !gguf_has_tensor(l->file, "d2t")) return NULL;
    l->status = gguf_tensor(l->file, "d2t", &t, l->error);
    if (l->status) return NULL;
    if (t.type != TYPE_I64 || t.rows != 1 || t.columns < 1 || t.columns > 1 << 24)
        l->status =
            bee_fail(l->error, BEE_ERROR_FORMAT, "tensor 'd2t': must be a vector of I64, one per row of the head");
    else if (n_vocab && t.columns > n_vocab)
        l->status = bee_fail(l->error, BEE_ERROR_FORMAT,
                             "tensor 'd2t': has %" PRId64 " entries, more than the %d tokens of the target", t.columns,
                             n_vocab);
    if (l->status) return NULL;
    bind_tensor(l, t.name);
    m->n_head_rows = (int)t.columns;
    l->weight_bytes += l->device->own_memory ? padded(t.columns) * sizeof *m->draft_tokens : 0;
    int32_t *tokens = malloc((size_t)t.columns * sizeof *tokens);
    if (l->backend) m->draft_tokens = (int32_t *)l->ops->buffer_new(l->backend, padded(t.columns));
    if (!tokens || (l->backend && !m->draft_tokens)) fail_memory(l, "d2t");
    read_tensor(l, &t);
    for (int i = 0; !l->status && i < m->n_head_rows; i++) {
        int64_t token;
        memcpy(&token, t.data + 8 * (size_t)i, 8);
        if (token < 0 || (n_vocab && token >= n_vocab))
            l->status = bee_fail(l->error, BEE_ERROR_FORMAT,
                                 "tensor 'd2t': entry %d is %" PRId64 ", no token of the target", i, token);
        tokens[i] = (int32_t)token;
    }
    if (l->backend && !l->status)
        l->ops->buffer_write(l->backend, m->draft_tokens, tokens, (size_t)m->n_head_rows * sizeof *tokens);
    return tokens;
}

/* The target's head, or its embedding where that serves as one. */
static Tensor target_head(Loader *l, const Model *target, const bee_file *target_file) {
    Tensor rows = target->embedding;
    if (gguf_has_tensor(target_file, "output.weight") && !l->status)
        l->status = gguf_tensor(target_file, "output.weight", &rows, l->error);
    if (l->made_up && !l->status && !make_up(l->made_up, &rows)) fail_memory(l, "output.weight");
    return rows;
}

/* A head of its own; else its embedding, or else the target's head, or rows of these. */
static void load_draft_head(Loader *l, Model *m, const int32_t *draft_tokens, const Model *target,
                            const bee_file *target_file) {
    if (gguf_has_tensor(l->file, "output.weight")) {
        m->owns_head = true;
        const int rows = !target && !draft_tokens ? -1 : m->n_head_rows;
        load_whole_matrix(l, "output", rows, m->shape.n_embd, &m->head);
    } else if (m->owns_table || (target && draft_tokens)) {
        const Tensor rows = m->owns_table ? m->embedding : target_head(l, target, target_file);
        const char *name = m->owns_table ? "token_embd.weight" : "output.weight";
        m->owns_head = true;
        m->head = (Matrix){.weight = load_weight(l, name, &rows, draft_tokens, m->n_head_rows),
                           .scale = m->owns_table ? 1 : target->head.scale};
    } else if (target) {
        m->head = target->head;
    }
}

void load_drafter(Loader *l, Model *m, const Model *target, const bee_file *target_file) {
    if (target) check_drafter(l, &m->shape, target, target_file);
    const int n_vocab = target ? target->shape.n_vocab : m->shape.n_vocab;
    m->n_head_rows = m->shape.n_vocab = n_vocab;
    if (gguf_has_tensor(l->file, "token_embd.weight")) {
        find_embedding(l, m);
        m->n_head_rows = m->shape.n_vocab;
    } else if (target) {
        m->embedding = target->embedding;
        m->table = target->table;
    }
    load_whole_matrix(l, "fc", m->shape.n_embd, (int64_t)m->shape.n_taps * m->shape.n_embd, &m->features_in);
    m->features_norm = load_vector(l, "enc.output_norm.weight", m->shape.n_embd);
    int32_t *draft_tokens = load_draft_tokens(l, m, n_vocab);
    load_draft_head(l, m, draft_tokens, target, target_file);
    if (m->owns_table) load_embedding_rows(l, m, !draft_tokens && !gguf_has_tensor(l->file, "output.weight"));
    free(draft_tokens);
}

/* ---- the block that comes with a target ----------------------------------------------------------- */

/* Drafts are of the most frequent tokens, which come first in vocabularies that were made by merging pairs: reading the
 * whole head would be most of a draft. */
enum { PREDICTED_ROWS = 32768 };

/* The last one that attends: a block is such a layer. */
static const LayerShape *attending_layer(const Shape *s) {
    for (int i = s->n_layer - 1; i >= 0; i--)
        if (s->layers[i].mixer == MIXER_ATTENTION || s->layers[i].mixer == MIXER_LATENT_ATTENTION) return &s->layers[i];
    return NULL;
}

static void block_name(int block, const char *name, char out[80]) { snprintf(out, 80, "blk.%d.nextn.%s", block, name); }

static bool has_block(const bee_file *file, const Shape *s) {
    char name[80];
    block_name(s->n_layer, "eh_proj.weight", name);
    return s->n_blocks > s->n_layer && gguf_has_tensor(file, name);
}

bool model_predicts(const bee_file *file, const Shape *s) {
    return s->architecture->predicts && s->n_blocks == s->n_layer + 1 && attending_layer(s) && has_block(file, s);
}

bool is_block_alone(const bee_file *file, const Shape *s) {
    return has_block(file, s) && !gguf_has_tensor(file, "blk.0.attn_norm.weight");
}

const char *drafter_kind(const bee_file *file, const Shape *s) {
    if (s->architecture->about.is_drafter) return "a DFlash drafter";
    if (s->first_block || is_block_alone(file, s)) return "the block alone that predicts further tokens (MTP)";
    return NULL;
}

static bool predictor_shape(const Shape *model, Shape *out) {
    LayerShape *layer = malloc(sizeof *layer);
    if (!layer) return false;
    *layer = *attending_layer(model);
    layer->cache_of = 0;
    *out = *model;
    out->layers = layer;
    out->n_layer = out->n_blocks = 1;
    out->first_block = model->n_layer;
    out->block_size = PREDICTED_BLOCK;
    out->n_taps = 1;
    out->taps[0] = model->n_layer;
    out->causal = true;
    return true;
}

/* Whether a file of its own is of this target's block. */
static void check_block(Loader *l, const Shape *model, const Model *target, const bee_file *target_file) {
    const Shape *s = &target->shape;
    if (!l->status && model->architecture != s->architecture)
        l->status = bee_fail(l->error, BEE_ERROR_MISMATCH,
                             "the drafter does not fit this target: it is the block that predicts further tokens of a "
                             "model of the architecture '%s', and the target is of '%s'",
                             model->architecture->about.name, s->architecture->about.name);
    if (model->n_embd != s->n_embd) mismatch(l, "embedding_length", model->n_embd, s->n_embd);
    if (model->n_vocab && model->n_vocab != s->n_vocab) mismatch(l, "vocab_size", model->n_vocab, s->n_vocab);
    if (model->n_layer != s->n_layer) mismatch(l, "block_count without its own block", model->n_layer, s->n_layer);
    if (!l->status) check_vocabulary(l, target_file, s->n_vocab);
}

bool read_block(Loader *l, Shape *out, const Model *target, const bee_file *target_file) {
    Shape model;
    l->status = shape_read(l->file, &model, l->error);
    if (l->status) return false;
    if (!model_predicts(l->file, &model))
        l->status =
            bee_fail(l->error, BEE_ERROR_UNSUPPORTED,
                     "the file holds a block that predicts further tokens (%s.nextn_predict_layers), but how to "
                     "run it is not known for this architecture, or for several",
                     model.architecture->about.name);
    if (target && l->file != target_file) check_block(l, &model, target, target_file);
    if (!l->status && !predictor_shape(&model, out)) fail_memory(l, "nextn.eh_proj.weight");
    shape_free(&model);
    if (!l->status && target) out->n_vocab = target->shape.n_vocab;
    return !l->status;
}

/* What a file of the block alone repeats of its target, which may go unused. */
static void check_repeated(Loader *l, Model *m) {
    static const char *const matrices[] = {"token_embd.weight", "output.weight"};
    Tensor tensor;
    if (gguf_has_tensor(l->file, "output_norm.weight"))
        find_tensor(l, "output_norm.weight", 1, m->shape.n_embd, &tensor);
    for (int i = 0; i < 2; i++) /* the first one tells how many tokens there are, where nothing else does */
        if (gguf_has_tensor(l->file, matrices[i]) &&
            find_tensor(l, matrices[i], m->shape.n_vocab ? m->shape.n_vocab : -1, m->shape.n_embd, &tensor))
            m->shape.n_vocab = (int)tensor.rows;
}

/* The block's own head, the file's, or the target's. False where there is none, as without a target there may be. */
static bool find_head(Loader *l, const Model *m, const Model *target, const bee_file *target_file, char name[80],
                      Tensor *out, float *scale) {
    char of_scale[80];
    block_name(m->shape.first_block, "shared_head_head.weight", name);
    block_name(m->shape.first_block, "shared_head_head.scale", of_scale);
    if (!gguf_has_tensor(l->file, name)) {
        snprintf(name, 80, "output.weight");
        snprintf(of_scale, sizeof of_scale, "output.scale");
    }
    if (gguf_has_tensor(l->file, name)) {
        *scale = load_number(l, of_scale, 1);
        return find_tensor(l, name, m->shape.n_vocab, m->shape.n_embd, out);
    }
    if (!target) return false;
    *out = target_head(l, target, target_file);
    *scale = target->head.scale;
    return !l->status;
}

static void load_predicting_head(Loader *l, Model *m, const Model *target, const bee_file *target_file) {
    char name[80];
    Tensor tensor;
    float scale = 1;
    const int n_vocab = m->shape.n_vocab;
    m->n_head_rows = n_vocab > 2 * PREDICTED_ROWS ? PREDICTED_ROWS : n_vocab;
    if (!find_head(l, m, target, target_file, name, &tensor, &scale)) return;
    tensor = tensor_rows(&tensor, 0, m->n_head_rows);
    m->owns_head = true;
    m->head = (Matrix){.weight = load_weight(l, name, &tensor, NULL, m->n_head_rows), .scale = scale};
}

static float *load_block_norm(Loader *l, const Model *m, const char *name) {
    char full[80];
    block_name(m->shape.first_block, name, full);
    return load_vector(l, full, m->shape.n_embd);
}

void load_predictor(Loader *l, Model *m, const Model *target, const bee_file *target_file) {
    const int64_t n_embd = m->shape.n_embd;
    char name[80];
    Tensor tensor;
    if (l->file != target_file) check_repeated(l, m);
    if (target) {
        m->embedding = target->embedding;
        m->table = target->table;
        m->hidden_norm = target->output_norm;
    }
    block_name(m->shape.first_block, "embed_tokens.weight", name);
    if (gguf_has_tensor(l->file, name) && find_tensor(l, name, m->shape.n_vocab, n_embd, &tensor)) {
        m->table = load_table(l, name, &tensor);
        m->owns_table = true;
    }
    block_name(m->shape.first_block, "eh_proj", name);
    load_whole_matrix(l, name, n_embd, 2 * n_embd, &m->features_in);
    m->embedding_norm = load_block_norm(l, m, "enorm.weight");
    m->features_norm = load_block_norm(l, m, "hnorm.weight");
    block_name(m->shape.first_block, "shared_head_norm.weight", name);
    m->output_norm = load_vector(l, gguf_has_tensor(l->file, name) ? name : "output_norm.weight", n_embd);
    load_predicting_head(l, m, target, target_file);
}
