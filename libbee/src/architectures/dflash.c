/* DFlash drafters (arXiv 2602.06036), as llama.cpp stores them: docs/drafter.md. */
#include <stdio.h>
#include <string.h>

#include "architecture.h"
#include "error.h"

static void read_block(MetadataReader *r, Shape *shape) {
    shape->block_size = (int)read_int(r, "block_size", false, 16, 2, 1024);
    if (shape->block_size > BEE_MAX_BLOCK) shape->block_size = BEE_MAX_BLOCK;
    shape->causal = read_bool(r, "attention.causal", false);
    int64_t mask = 0;
    if (!r->status) r->status = gguf_int(r->file, "tokenizer.ggml.mask_token_id", true, 0, INT32_MAX, &mask, r->error);
    shape->mask_token = (int)mask;
}

static void read_taps(MetadataReader *r, Shape *shape) {
    if (!r->status)
        r->status =
            gguf_ints(r->file, "dflash.target_layers", true, shape->taps, BEE_MAX_TAPS, &shape->n_taps, r->error);
    if (!r->status && shape->n_taps < 1)
        r->status = bee_fail(r->error, BEE_ERROR_FORMAT,
                             "metadata 'dflash.target_layers' is empty; it must name the layers of the target whose "
                             "inputs the drafter reads");
}

/* Sections of a target that sees pictures: for text they turn what plain pairs do, and factors are not looked at. */
static void read_positions(MetadataReader *r, Shape *shape) {
    int32_t sections[4] = {0};
    int n = 0;
    RopeShape *rope = read_rope(r, shape, true);
    if (!r->status) r->status = gguf_ints(r->file, "dflash.rope.dimension_sections", false, sections, 4, &n, r->error);
    if (sections[3])
        refuse(r, "rope.dimension_sections", "the fourth section of a drafter must be 0: text turns all pairs");
    if (sections[0] || sections[1] || sections[2]) rope->factors = NULL;
    if (read_int(r, "attention.sliding_window", false, 0, 0, INT32_MAX) > 0) read_windows(r, shape, 0, -1);
}

static void read_activation(MetadataReader *r, Shape *shape) {
    char name[32] = "silu";
    read_string(r, "hidden_activation", name, sizeof name);
    if (!strcmp(name, "gelu") || !strcmp(name, "gelu_pytorch_tanh"))
        set_activation(shape, ACTIVATION_GELU);
    else if (strcmp(name, "silu"))
        refuse(r, "hidden_activation", "must be 'silu', 'gelu' or 'gelu_pytorch_tanh'");
}

static void read_scale(MetadataReader *r, Shape *shape) {
    const double embedding = read_float(r, "embedding_scale", false, 0),
                 scale = read_float(r, "attention.scale", false, 0);
    if (embedding != 0) shape->embedding_scale = (float)embedding;
    for (int i = 0; scale != 0 && i < shape->n_layer; i++) shape->layers[i].heads.scale = (float)scale;
    const double value = read_float(r, "attention.value_scale", false, 0);
    for (int i = 0; value != 0 && i < shape->n_layer; i++) shape->layers[i].attention_scale = (float)value;
}

/* A layer without values of its own: the keys are, before their norm and rotation, normed without gains. */
static bool shares_keys(const MetadataReader *r, int layer) {
    char name[40];
    snprintf(name, sizeof name, "blk.%d.attn_v.weight", layer);
    return !gguf_has_tensor(r->file, name);
}

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_positions(r, shape);
    read_taps(r, shape);
    read_block(r, shape);
    read_activation(r, shape);
    read_scale(r, shape);
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].heads.norm_values = shares_keys(r, i);
    refuse_experts(r);
}

static const TensorSlot slots[] = {
    PRE_NORM_SLOTS,
    MATRIX("attn_q", q, EXTENT_QUERY, EXTENT_EMBD),
    MATRIX("attn_k", k, EXTENT_KEY, EXTENT_EMBD),
    MATRIX("attn_v", v, EXTENT_KEY, EXTENT_EMBD, .when = OPTIONAL),
    MATRIX("attn_output", attn_output, EXTENT_EMBD, EXTENT_QUERY),
    HEAD_NORM_SLOTS,
    VECTOR("attn_sinks", sinks, EXTENT_HEADS, .when = OPTIONAL),
    GATED_SLOTS,
    VECTOR("post_attention_norm", attn_post_norm, EXTENT_EMBD, .when = OPTIONAL),
    VECTOR("post_ffw_norm", ffn_post_norm, EXTENT_EMBD, .when = OPTIONAL),
    NUMBER("layer_output_scale", output_scale),
};

const Architecture dflash = {.about = {"dflash", "DFlash drafters", true}, .read = read, SLOTS(slots)};
