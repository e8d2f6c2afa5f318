#include "metadata.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

/* ---- keys --------------------------------------------------------------------------------------- */

static const char *full_key(const MetadataReader *r, const char *suffix, char out[128]) {
    snprintf(out, 128, "%s.%s", r->prefix, suffix);
    return out;
}

bool has_key(const MetadataReader *r, const char *suffix) {
    char key[128];
    bee_metadata ignored;
    return gguf_find(r->file, full_key(r, suffix, key), &ignored);
}

int64_t read_int(MetadataReader *r, const char *suffix, bool required, int64_t fallback, int64_t low, int64_t high) {
    char key[128];
    int64_t value = fallback;
    if (!r->status) r->status = gguf_int(r->file, full_key(r, suffix, key), required, low, high, &value, r->error);
    return value;
}

double read_float(MetadataReader *r, const char *suffix, bool required, double fallback) {
    char key[128];
    double value = fallback;
    if (!r->status) r->status = gguf_float(r->file, full_key(r, suffix, key), required, &value, r->error);
    return value;
}

bool read_bool(MetadataReader *r, const char *suffix, bool fallback) {
    char key[128];
    bool value = fallback;
    if (!r->status) r->status = gguf_bool(r->file, full_key(r, suffix, key), false, &value, r->error);
    return value;
}

void read_string(MetadataReader *r, const char *suffix, char *out, size_t capacity) {
    char key[128];
    if (!r->status) r->status = gguf_string(r->file, full_key(r, suffix, key), false, out, capacity, r->error);
}

void refuse(MetadataReader *r, const char *suffix, const char *why) {
    if (!r->status) r->status = bee_fail(r->error, BEE_ERROR_UNSUPPORTED, "%s.%s: %s", r->prefix, suffix, why);
}

/* ---- what most architectures have in common -------------------------------------------------------- */

static void read_heads(MetadataReader *r, const Shape *shape, Heads *heads) {
    heads->n_head = (int)read_int(r, "attention.head_count", true, 1, 1, 4096);
    heads->n_head_kv = (int)read_int(r, "attention.head_count_kv", false, heads->n_head, 1, 4096);
    if (!r->status && heads->n_head % heads->n_head_kv)
        refuse(r, "attention.head_count_kv", "must divide attention.head_count");
    heads->head_size = (int)read_int(r, "attention.key_length", false, shape->n_embd / heads->n_head, 1, MAX_HEAD_SIZE);
    if (read_int(r, "attention.value_length", false, heads->head_size, 1, MAX_HEAD_SIZE) != heads->head_size)
        refuse(r, "attention.value_length", "must equal attention.key_length");
    /* Without the key the size follows from other numbers, which are in range where it may not be. */
    if (heads->head_size < 16 || heads->head_size > MAX_HEAD_SIZE || heads->head_size % 16)
        refuse(r, "attention.key_length", "heads must have a multiple of 16 dimensions, at most 1024");
    heads->scale = 1 / sqrtf((float)heads->head_size);
    heads->eps = shape->eps;
}

void read_decoder(MetadataReader *r, Shape *shape) {
    LayerShape layer = shape->layers[0];
    shape->n_ctx_train = (int)read_int(r, "context_length", true, 1, 1, 1 << 26);
    shape->n_embd = (int)read_int(r, "embedding_length", true, 1, 1, 65536);
    layer.n_ff = (int)read_int(r, "feed_forward_length", true, 1, 1, 1 << 20);
    shape->n_vocab = (int)read_int(r, "vocab_size", false, 0, 1, 1 << 24);
    shape->eps = (float)read_float(r, "attention.layer_norm_rms_epsilon", true, 1e-5);
    if (!r->status && !(shape->eps > 0 && shape->eps < 1))
        refuse(r, "attention.layer_norm_rms_epsilon", "must lie between 0 and 1");
    read_heads(r, shape, &layer.heads);
    for (int i = 0; i < shape->n_layer; i++) {
        shape->layers[i] = layer;
        shape->layers[i].cache_of = i;
    }
}

void read_rope(MetadataReader *r, Shape *shape, bool neox) {
    RopeShape *rope = &shape->ropes[shape->n_ropes];
    const int head_size = shape->layers[0].heads.head_size;
    *rope = (RopeShape){.neox = neox, .scale = 1, .magnitude = 1, .factors = "rope_freqs.weight"};
    rope->n_rotated = (int)read_int(r, "rope.dimension_count", false, head_size, 2, head_size);
    if (rope->n_rotated % 2) refuse(r, "rope.dimension_count", "an odd number of dimensions cannot be rotated");
    rope->base = read_float(r, "rope.freq_base", false, 10000);
    if (!r->status && !(rope->base > 0)) refuse(r, "rope.freq_base", "must be above 0");
    /* As llama.cpp reads it: a factor without a type is linear; "rope.scale_linear" is the factor's former key. */
    char type[32] = "linear";
    read_string(r, "rope.scaling.type", type, sizeof type);
    if (!strcmp(type, "linear"))
        rope->scale = read_float(r, "rope.scaling.factor", false, read_float(r, "rope.scale_linear", false, 1));
    else if (strcmp(type, "none"))
        refuse(r, "rope.scaling.type", "only the types 'none' and 'linear' can be run");
    if (read_float(r, "rope.scaling.attn_factor", false, 1) != 1)
        refuse(r, "rope.scaling.attn_factor", "scaled attention cannot be run");
    if (!r->status && !(rope->scale > 0)) refuse(r, "rope.scaling.factor", "must be above 0");
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].rope = shape->n_ropes;
    shape->n_ropes++;
}

void refuse_experts(MetadataReader *r) {
    if (read_int(r, "expert_count", false, 0, 0, INT32_MAX) > 0)
        refuse(r, "expert_count", "mixtures of experts cannot be run");
}

void refuse_window(MetadataReader *r, const Shape *shape) {
    const int64_t window = read_int(r, "attention.sliding_window", false, 0, 0, INT32_MAX);
    if (window > 0 && window < shape->n_ctx_train)
        refuse(r, "attention.sliding_window", "attention over a sliding window cannot be run");
}

void refuse_not_causal(MetadataReader *r) {
    if (!read_bool(r, "attention.causal", true))
        refuse(r, "attention.causal", "models that see what follows a token cannot generate");
}
