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

void read_layer_ints(MetadataReader *r, const Shape *shape, const char *suffix, bool required, int fallback, int low,
                     int high, int *out) {
    char key[128];
    int32_t values[MAX_LAYERS];
    int n = 0;
    for (int i = 0; i < shape->n_layer; i++) out[i] = fallback;
    if (!r->status)
        r->status = gguf_ints(r->file, full_key(r, suffix, key), required, values, MAX_LAYERS, &n, r->error);
    if (r->status || !n) return;
    if (n != 1 && n != shape->n_blocks) {
        r->status = bee_fail(r->error, BEE_ERROR_FORMAT,
                             "metadata '%s' has %d entries; it needs one, or one for each of the %d blocks", key, n,
                             shape->n_blocks);
        return;
    }
    for (int i = 0; i < shape->n_layer; i++) {
        const int value = values[n == 1 ? 0 : i];
        if (value >= low && value <= high) {
            out[i] = value;
            continue;
        }
        r->status =
            bee_fail(r->error, BEE_ERROR_FORMAT, "metadata '%s' is %d for layer %d; it must lie between %d and %d", key,
                     value, i, low, high);
        return;
    }
}

/* ---- what most architectures have in common -------------------------------------------------------- */

/* Sizes of heads are the same for all layers, their numbers need not be. Without heads of keys a layer does not attend,
 * where the caller has a place to say it. */
static void read_heads(MetadataReader *r, Shape *shape, bool *recurrent) {
    int n_head[MAX_LAYERS], n_head_kv[MAX_LAYERS];
    read_layer_ints(r, shape, "attention.head_count", true, 1, 1, 4096, n_head);
    read_layer_ints(r, shape, "attention.head_count_kv", recurrent, -1, recurrent ? 0 : 1, 4096, n_head_kv);
    const int size = (int)read_int(r, "attention.key_length", false, shape->n_embd / n_head[0], 1, MAX_HEAD_SIZE);
    if (read_int(r, "attention.value_length", false, size, 1, MAX_HEAD_SIZE) != size)
        refuse(r, "attention.value_length", "must equal attention.key_length");
    /* Without the key the size follows from other numbers, which are in range where it may not be. */
    if (size < 16 || size > MAX_HEAD_SIZE || size % 16)
        refuse(r, "attention.key_length", "heads must have a multiple of 16 dimensions, at most 1024");
    for (int i = 0; i < shape->n_layer && !r->status; i++) {
        Heads *heads = &shape->layers[i].heads;
        heads->n_head = n_head[i];
        heads->n_head_kv = n_head_kv[i] > 0 ? n_head_kv[i] : n_head[i];
        if (recurrent) recurrent[i] = !n_head_kv[i];
        if (heads->n_head % heads->n_head_kv) refuse(r, "attention.head_count_kv", "must divide attention.head_count");
        heads->head_size = size;
        heads->scale = 1 / sqrtf((float)size);
        heads->eps = shape->eps;
    }
}

/* Layers may have no feed-forward where `least_ff` is 0. */
static void read_widths(MetadataReader *r, Shape *shape, const char *eps, int least_ff) {
    int n_ff[MAX_LAYERS];
    shape->n_ctx_train = (int)read_int(r, "context_length", true, 1, 1, 1 << 26);
    shape->n_embd = (int)read_int(r, "embedding_length", true, 1, 1, 65536);
    read_layer_ints(r, shape, "feed_forward_length", least_ff, least_ff, least_ff, 1 << 20, n_ff);
    shape->n_vocab = (int)read_int(r, "vocab_size", false, 0, 1, 1 << 24);
    shape->eps = (float)read_float(r, eps, true, 1e-5);
    if (!r->status && !(shape->eps > 0 && shape->eps < 1)) refuse(r, eps, "must lie between 0 and 1");
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].n_ff = n_ff[i];
}

static void read_sizes(MetadataReader *r, Shape *shape, const char *eps, bool *recurrent, int least_ff) {
    read_widths(r, shape, eps, least_ff);
    read_heads(r, shape, recurrent);
}

void read_decoder_with_eps(MetadataReader *r, Shape *shape, const char *eps) { read_sizes(r, shape, eps, NULL, 1); }

void read_decoder_of_experts(MetadataReader *r, Shape *shape) {
    read_sizes(r, shape, "attention.layer_norm_rms_epsilon", NULL, 0);
}

void read_decoder(MetadataReader *r, Shape *shape) {
    read_decoder_with_eps(r, shape, "attention.layer_norm_rms_epsilon");
}

void read_hybrid(MetadataReader *r, Shape *shape, const char *eps, bool *recurrent) {
    read_sizes(r, shape, eps, recurrent, 0);
}

/* A number that must be above 0 and finite. */
static double read_positive(MetadataReader *r, const char *suffix, double fallback) {
    const double value = read_float(r, suffix, false, fallback);
    if (!r->status && !(value > 0 && isfinite(value))) refuse(r, suffix, "must be a number above 0");
    return value;
}

static double read_scaling_factor(MetadataReader *r) {
    const double former = read_float(r, "rope.scale_linear", false, 0); /* its name in old files */
    const double factor = read_float(r, "rope.scaling.factor", false, former);
    if (!r->status && !(factor >= 0 && isfinite(factor))) refuse(r, "rope.scaling.factor", "must be a number above 0");
    return factor == 0 ? 1 : factor; /* as llama.cpp reads it */
}

/* The magnitude grows with the logarithm of the factor, less what the file takes off again. */
static void read_yarn(MetadataReader *r, const Shape *shape, RopeShape *rope) {
    const double logarithm = 0.1 * log(rope->scale);
    const double off = read_float(r, "rope.scaling.yarn_log_multiplier", false, 0);
    if (!r->status && !isfinite(off)) refuse(r, "rope.scaling.yarn_log_multiplier", "must be a number");
    rope->yarn_context =
        (int)read_int(r, "rope.scaling.original_context_length", false, shape->n_ctx_train, 1, INT32_MAX);
    rope->magnitude *= (float)((1 + logarithm) / (1 + off * logarithm));
    rope->yarn_fast = 32;
    rope->yarn_slow = 1;
}

RopeShape *read_rope(MetadataReader *r, Shape *shape, bool neox) {
    RopeShape *rope = &shape->ropes[shape->n_ropes++];
    const int head_size = shape->layers[0].heads.head_size;
    *rope = (RopeShape){.neox = neox, .scale = 1, .magnitude = 1, .factors = "rope_freqs.weight"};
    rope->n_rotated = (int)read_int(r, "rope.dimension_count", false, head_size, 2, head_size);
    if (rope->n_rotated % 2) refuse(r, "rope.dimension_count", "an odd number of dimensions cannot be rotated");
    rope->base = read_positive(r, "rope.freq_base", 10000);
    rope->magnitude = (float)read_positive(r, "rope.scaling.attn_factor", 1);
    /* As llama.cpp reads it: a factor without a type is linear. */
    char type[32] = "linear";
    read_string(r, "rope.scaling.type", type, sizeof type);
    if (strcmp(type, "none")) rope->scale = read_scaling_factor(r);
    if (!strcmp(type, "yarn"))
        read_yarn(r, shape, rope);
    else if (strcmp(type, "none") && strcmp(type, "linear") && strcmp(type, "longrope"))
        refuse(r, "rope.scaling.type", "the types are 'none', 'linear', 'yarn' and 'longrope'");
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].rope = shape->n_ropes - 1;
    return rope;
}

/* Products are written in blocks of 16 rows, and a head's unrotated part is read in groups of 32 columns. */
static void check_latent(MetadataReader *r, const Latent *l) {
    if (l->n_rotated % 16) refuse(r, "rope.dimension_count", "must be a multiple of 16");
    if (l->rank % 16) refuse(r, "attention.kv_lora_rank", "must be a multiple of 16");
    if (l->rank + l->n_rotated > MAX_HEAD_SIZE)
        refuse(r, "attention.kv_lora_rank", "must not exceed 1024 together with rope.dimension_count");
    if (l->query_size <= l->n_rotated || (l->query_size - l->n_rotated) % 32)
        refuse(r, "attention.key_length_mla", "must be rope.dimension_count and a multiple of 32 more");
}

/* Scores are scaled by the size of whole queries, and by the square of what YaRN's numerator is. With its logarithm's
 * multiplier, a tenth in files, angles are not; without, they are as usual. */
static void read_latent_rope(MetadataReader *r, Shape *shape) {
    RopeShape *rope = read_rope(r, shape, false);
    const Latent *latent = &shape->layers[0].latent;
    const double factor = read_positive(r, "rope.scaling.attn_factor", 1);
    const double multiplier = read_float(r, "rope.scaling.yarn_log_multiplier", false, 0) / 0.1;
    double magnitude = factor;
    if (rope->yarn_context) {
        magnitude *= 1 + 0.1 * (multiplier != 0 ? multiplier : 1) * log(rope->scale);
        if (multiplier != 0) rope->magnitude = (float)factor;
    }
    for (int i = 0; i < shape->n_layer; i++)
        shape->layers[i].heads.scale = (float)(magnitude * magnitude / sqrt(latent->query_size));
}

void read_latent_decoder(MetadataReader *r, Shape *shape) {
    int n_head[MAX_LAYERS];
    read_widths(r, shape, "attention.layer_norm_rms_epsilon", 1);
    read_layer_ints(r, shape, "attention.head_count", true, 1, 1, 4096, n_head);
    if (!has_key(r, "attention.key_length_mla"))
        refuse(r, "attention.key_length_mla", "is missing: files of the former kind must be converted anew");
    const Latent latent = {
        .rank = (int)read_int(r, "attention.kv_lora_rank", true, 16, 16, MAX_HEAD_SIZE),
        .n_rotated = (int)read_int(r, "rope.dimension_count", true, 16, 2, MAX_HEAD_SIZE),
        .query_rank = (int)read_int(r, "attention.q_lora_rank", false, 0, 0, 65536),
        .query_size = (int)read_int(r, "attention.key_length_mla", true, 48, 1, MAX_HEAD_SIZE),
        .value_size = (int)read_int(r, "attention.value_length_mla", true, 16, 1, MAX_HEAD_SIZE),
    };
    check_latent(r, &latent);
    for (int i = 0; i < shape->n_layer && !r->status; i++) {
        LayerShape *layer = &shape->layers[i];
        layer->mixer = MIXER_LATENT_ATTENTION;
        layer->latent = latent;
        layer->heads.n_head = n_head[i];
        layer->heads.n_head_kv = 1;
        layer->heads.head_size = latent.rank + latent.n_rotated;
        layer->heads.eps = shape->eps;
    }
    read_latent_rope(r, shape);
}

void read_sections(MetadataReader *r, RopeShape *rope) {
    char key[128];
    int32_t sections[4] = {0};
    int n = 0;
    full_key(r, "rope.dimension_sections", key);
    if (!r->status) r->status = gguf_ints(r->file, key, true, sections, 4, &n, r->error);
    for (int i = 0; i < 4; i++) {
        if (sections[i] < 0 || sections[i] > MAX_HEAD_SIZE)
            refuse(r, "rope.dimension_sections", "must be counts of pairs");
        rope->sections[i] = sections[i];
    }
}

int add_plain_rope(MetadataReader *r, Shape *shape, const char *base, double fallback) {
    RopeShape *rope = &shape->ropes[shape->n_ropes];
    *rope =
        (RopeShape){.n_rotated = shape->ropes[0].n_rotated, .neox = shape->ropes[0].neox, .scale = 1, .magnitude = 1};
    rope->base = read_positive(r, base, fallback);
    return shape->n_ropes++;
}

void read_long_rope(MetadataReader *r, Shape *shape, bool in_any_case) {
    char type[32] = "";
    RopeShape *rope = &shape->ropes[0];
    read_string(r, "rope.scaling.type", type, sizeof type);
    if (!in_any_case && strcmp(type, "longrope")) return;
    rope->factors = "rope_factors_short.weight";
    rope->long_factors = "rope_factors_long.weight";
    rope->long_beyond =
        (int)read_int(r, "rope.scaling.original_context_length", false, shape->n_ctx_train, 1, INT32_MAX);
}

bool read_windows(MetadataReader *r, Shape *shape, int window, int pattern) {
    int of_layer[MAX_LAYERS];
    char key[128];
    bee_metadata found;
    const bool has_pattern = gguf_find(r->file, full_key(r, "attention.sliding_window_pattern", key), &found);
    window = (int)read_int(r, "attention.sliding_window", window < 0, window, 0, INT32_MAX);
    if (!r->status && window > shape->n_ctx_train)
        refuse(r, "attention.sliding_window", "a window cannot be wider than context_length");
    if (has_pattern && found.type == BEE_VALUE_ARRAY) {
        read_layer_ints(r, shape, "attention.sliding_window_pattern", true, 0, INT32_MIN, INT32_MAX, of_layer);
    } else {
        if (pattern < 0 && !has_pattern)
            refuse(r, "attention.sliding_window_pattern", "is missing: an array of booleans");
        pattern = (int)read_int(r, "attention.sliding_window_pattern", false, pattern, 0, MAX_LAYERS);
        for (int i = 0; i < shape->n_layer; i++) of_layer[i] = !pattern || i % pattern < pattern - 1;
    }
    for (int i = 0; i < shape->n_layer && !r->status; i++) shape->layers[i].heads.window = of_layer[i] ? window : 0;
    return window > 0;
}

/* 0 means none. */
static float read_scale(MetadataReader *r, const char *suffix, bool required, double fallback) {
    const double scale = read_float(r, suffix, required, fallback);
    if (!r->status && !isfinite(scale)) refuse(r, suffix, "must be a number");
    return scale == 0 ? 1 : (float)scale;
}

void read_scales(MetadataReader *r, Shape *shape, double embedding, double residual, double logit) {
    shape->embedding_scale = read_scale(r, "embedding_scale", false, embedding);
    shape->residual_scale = read_scale(r, "residual_scale", false, residual);
    shape->logit_scale = 1 / read_scale(r, "logit_scale", !logit, logit);
    const double attention = read_float(r, "attention.scale", false, 0);
    for (int i = 0; attention && i < shape->n_layer; i++) shape->layers[i].heads.scale = (float)attention;
}

int read_expert_columns(MetadataReader *r, const Shape *shape) {
    const int n_used = (int)read_int(r, "expert_used_count", true, 1, 1, MAX_USED_EXPERTS);
    return (int)read_int(r, "expert_feed_forward_length", false, shape->layers[0].n_ff / n_used, 1, 1 << 20);
}

bool read_experts(MetadataReader *r, Shape *shape, int first, int columns, bool normed) {
    const int n = (int)read_int(r, "expert_count", false, 0, 0, MAX_EXPERTS);
    const int most = n < MAX_USED_EXPERTS ? n : MAX_USED_EXPERTS;
    if (r->status || !n) return false;
    const int used = (int)read_int(r, "expert_used_count", true, 1, 1, most);
    for (int i = first; i < shape->n_layer; i++) {
        LayerShape *l = &shape->layers[i];
        l->feed_forward = FEED_FORWARD_EXPERTS;
        l->routing = (Routing){.n_experts = n, .n_used = used, .normed = normed, .scale = 1};
        l->n_ff_expert = columns;
        l->n_ff = 0;
    }
    return true;
}

void read_routing(MetadataReader *r, Shape *shape, RouteProbability probability, bool normed) {
    /* llama.cpp's numbers: 1 softmax, 2 sigmoid, 3 softmax of the chosen */
    static const RouteProbability probabilities[] = {ROUTE_SOFTMAX, ROUTE_SIGMOID, ROUTE_SOFTMAX_OF_CHOSEN};
    const int64_t function = read_int(r, "expert_gating_func", false, 0, 0, 3);
    const double scale = read_float(r, "expert_weights_scale", false, 0);
    normed = read_bool(r, "expert_weights_norm", normed);
    if (!r->status && !isfinite(scale)) refuse(r, "expert_weights_scale", "must be a number");
    for (int i = 0; i < shape->n_layer; i++) {
        Routing *routing = &shape->layers[i].routing;
        routing->probability = function ? probabilities[function - 1] : probability;
        routing->normed = normed;
        routing->scale = scale == 0 ? 1 : (float)scale;
    }
}

void set_shared_expert(Shape *shape, int columns) {
    for (int i = 0; i < shape->n_layer; i++)
        if (shape->layers[i].feed_forward == FEED_FORWARD_EXPERTS) shape->layers[i].n_ff_shared = columns;
}

void set_activation(Shape *shape, Activation activation) {
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].activation = activation;
}

void refuse_experts(MetadataReader *r) {
    if (read_int(r, "expert_count", false, 0, 0, INT32_MAX) > 0)
        refuse(r, "expert_count", "mixtures of experts cannot be run");
}

void refuse_not_causal(MetadataReader *r) {
    if (!read_bool(r, "attention.causal", true))
        refuse(r, "attention.causal", "models that see what follows a token cannot generate");
}
