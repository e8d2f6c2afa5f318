#include <math.h>

#include "architecture.h"
#include "error.h"

/* Heads of layers with a window have a size of their own. */
static void read_sizes(MetadataReader *r, Shape *shape) {
    const int size = (int)read_int(r, "attention.key_length_swa", true, 16, 16, MAX_HEAD_SIZE);
    if (size % 16) refuse(r, "attention.key_length_swa", "heads must have a multiple of 16 dimensions");
    if (read_int(r, "attention.value_length_swa", true, size, 1, MAX_HEAD_SIZE) != size)
        refuse(r, "attention.value_length_swa", "must equal attention.key_length_swa");
    for (int i = 0; i < shape->n_layer; i++) {
        Heads *heads = &shape->layers[i].heads;
        if (heads->window) heads->head_size = size;
        heads->scale = 1;
        heads->norm_values = true;
    }
}

static void read_windowed_rope(MetadataReader *r, Shape *shape) {
    const int windowed = add_plain_rope(r, shape, "rope.freq_base_swa", 10000), n_rotated = shape->ropes[0].n_rotated;
    RopeShape *rope = &shape->ropes[windowed];
    rope->n_rotated = (int)read_int(r, "rope.dimension_count_swa", false, n_rotated, 2, MAX_HEAD_SIZE);
    if (rope->n_rotated % 2) refuse(r, "rope.dimension_count_swa", "an odd number of dimensions cannot be rotated");
    for (int i = 0; i < shape->n_layer; i++) {
        LayerShape *layer = &shape->layers[i];
        if (!layer->heads.window) continue;
        layer->rope = windowed;
        if (rope->n_rotated > layer->heads.head_size)
            refuse(r, "rope.dimension_count_swa", "must not exceed attention.key_length_swa");
    }
}

/* The last layers attend to the last caches of their kind: the two layers before them, first the windowed one. */
static void read_shared_caches(MetadataReader *r, Shape *shape) {
    const int shared = (int)read_int(r, "attention.shared_kv_layers", false, 0, 0, shape->n_layer - 1);
    const int own = shape->n_layer - shared;
    if (r->status || !shared) return;
    if (own < 2 || !shape->layers[own - 2].heads.window || shape->layers[own - 1].heads.window) {
        refuse(r, "attention.shared_kv_layers",
               "the two layers before those that share must be one with a window, and "
               "then one without");
        return;
    }
    for (int i = own; i < shape->n_layer; i++) {
        LayerShape *layer = &shape->layers[i];
        layer->cache_of = layer->heads.window ? own - 2 : own - 1;
        if (layer->heads.n_head_kv != shape->layers[layer->cache_of].heads.n_head_kv)
            refuse(r, "attention.head_count_kv", "layers that share a cache must have the same number");
    }
}

/* Experts stand beside a feed-forward, not in its place. */
static void read_mixture(MetadataReader *r, Shape *shape) {
    int n_ff[MAX_LAYERS];
    for (int i = 0; i < shape->n_layer; i++) n_ff[i] = shape->layers[i].n_ff;
    if (!read_int(r, "expert_count", false, 0, 0, MAX_EXPERTS)) return;
    read_experts(r, shape, 0, (int)read_int(r, "expert_feed_forward_length", true, 1, 1, 1 << 20), true);
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].n_ff = n_ff[i];
}

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    if (!read_windows(r, shape, -1, -1)) refuse(r, "attention.sliding_window", "must be above 0");
    read_rope(r, shape, true); /* a tensor of factors stops three pairs of four */
    read_sizes(r, shape);
    read_windowed_rope(r, shape);
    read_shared_caches(r, shape);
    shape->embedding_scale = sqrtf((float)shape->n_embd);
    shape->logit_softcap = (float)read_float(r, "final_logit_softcapping", false, 30);
    shape->n_token = (int)read_int(r, "embedding_length_per_layer_input", false, 0, 0, 65536);
    read_mixture(r, shape);
    set_activation(shape, ACTIVATION_GELU);
    refuse_not_causal(r);
}

/* Without attn_v the keys are the values, before their norm and rotation. */
static const TensorSlot slots[] = {
    PRE_NORM_SLOTS,
    MATRIX("attn_q", q, EXTENT_QUERY, EXTENT_EMBD, PART_OF("attn_qkv", EXTENT_NONE, EXTENT_QUERY_KEY_VALUE)),
    MATRIX("attn_k", k, EXTENT_KEY, EXTENT_EMBD, PART_OF("attn_qkv", EXTENT_QUERY, EXTENT_QUERY_KEY_VALUE),
           .when = OWN_CACHE),
    MATRIX("attn_v", v, EXTENT_KEY, EXTENT_EMBD, PART_OF("attn_qkv", EXTENT_QUERY_KEY, EXTENT_QUERY_KEY_VALUE),
           .when = OWN_CACHE_OPTIONAL),
    MATRIX("attn_output", attn_output, EXTENT_EMBD, EXTENT_QUERY),
    VECTOR("attn_q_norm", q_norm, EXTENT_HEAD),
    VECTOR("attn_k_norm", k_norm, EXTENT_HEAD, .when = OWN_CACHE),
    GATED_SLOTS,
    POST_NORM_SLOTS,
    VECTOR("post_ffw_norm_1", dense_post_norm, EXTENT_EMBD, .when = MIXTURE),
    VECTOR("pre_ffw_norm_2", expert_norm, EXTENT_EMBD, .when = MIXTURE),
    VECTOR("post_ffw_norm_2", expert_post_norm, EXTENT_EMBD, .when = MIXTURE),
    VECTOR("ffn_gate_inp.scale", router_gain, EXTENT_EMBD, .bare = true, .when = MIXTURE),
    MATRIX("ffn_gate_inp", router, EXTENT_EXPERTS, EXTENT_EMBD, .when = MIXTURE, .unscaled = true),
    ROUTED_EXPERT_SLOTS,
    MATRIX("inp_gate", token_gate, EXTENT_TOKEN, EXTENT_EMBD, .when = TOKEN_EMBEDDINGS),
    MATRIX("proj", token_projection, EXTENT_EMBD, EXTENT_TOKEN, .when = TOKEN_EMBEDDINGS),
    VECTOR("post_norm", token_norm, EXTENT_EMBD, .when = TOKEN_EMBEDDINGS),
    NUMBER("layer_output_scale", output_scale),
};

const Architecture gemma4 = {.about = {"gemma4", "Gemma 4", false}, .read = read, SLOTS(slots)};
