#include "recurrences.h"

void read_recurrent_layers(MetadataReader *r, Shape *shape, bool *recurrent) {
    int of_layer[MAX_LAYERS];
    const bool listed = has_key(r, "attention.recurrent_layers");
    const int interval = (int)read_int(r, "full_attention_interval", false, 4, 1, MAX_LAYERS);
    if (listed) read_layer_ints(r, shape, "attention.recurrent_layers", true, 0, 0, 1, of_layer);
    for (int i = 0; i < shape->n_layer && !r->status; i++)
        recurrent[i] = listed ? of_layer[i] : (i + 1) % interval != 0;
}

/* A side of a state, which lanes go over. */
static int read_side(MetadataReader *r, const char *suffix) {
    const int size = (int)read_int(r, suffix, true, 16, 1, MAX_STATE_SIZE);
    if (size % 16) refuse(r, suffix, "must be a multiple of 16");
    return size;
}

static int read_kernel(MetadataReader *r, const char *suffix) {
    return (int)read_int(r, suffix, true, 2, 2, MAX_KERNEL);
}

/* Heads in groups that share keys and queries. */
static void read_head_counts(MetadataReader *r, Recurrence *out) {
    out->n_heads = (int)read_int(r, "ssm.time_step_rank", true, 1, 1, 4096);
    out->n_key_heads = (int)read_int(r, "ssm.group_count", true, 1, 1, 4096);
    if (!r->status && out->n_heads % out->n_key_heads) refuse(r, "ssm.group_count", "must divide ssm.time_step_rank");
}

static void make_recurrent(Shape *shape, const bool *recurrent, Mixer mixer, const Recurrence *recurrence) {
    for (int i = 0; i < shape->n_layer; i++) {
        if (!recurrent[i]) continue;
        shape->layers[i].mixer = mixer;
        shape->layers[i].recurrence = *recurrence;
    }
}

/* Numbers that products write in whole blocks of 16. */
static int blocks_of_16(int n) { return (n + 15) / 16 * 16; }

void read_delta_net(MetadataReader *r, Shape *shape, const bool *recurrent, bool alternating) {
    Recurrence d = {.corrects = true, .alternating = alternating, .eps = shape->eps};
    d.kernel = read_kernel(r, "ssm.conv_kernel");
    d.key_size = d.value_size = read_side(r, "ssm.state_size");
    read_head_counts(r, &d);
    const int keys = d.key_size * d.n_key_heads, values = d.value_size * d.n_heads;
    if (read_int(r, "ssm.inner_size", true, values, 1, INT32_MAX) != values)
        refuse(r, "ssm.inner_size", "must be ssm.state_size times ssm.time_step_rank");
    if (r->status) return;
    d.key_at = keys;
    d.value_at = 2 * keys;
    d.channels = 2 * keys + values;
    d.rate_at = d.channels;
    d.step_at = d.rate_at + blocks_of_16(d.n_heads);
    d.input_floats = d.step_at + blocks_of_16(d.n_heads);
    make_recurrent(shape, recurrent, MIXER_RECURRENCE, &d);
}

void read_mamba(MetadataReader *r, Shape *shape, const bool *recurrent) {
    Recurrence m = {.eps = shape->eps};
    m.kernel = read_kernel(r, "ssm.conv_kernel");
    m.key_size = read_side(r, "ssm.state_size");
    read_head_counts(r, &m);
    const int inner = (int)read_int(r, "ssm.inner_size", true, 1, 1, 1 << 20);
    m.value_size = inner / m.n_heads;
    if (inner % m.n_heads || m.value_size % 16 || m.value_size > MAX_STATE_SIZE)
        refuse(r, "ssm.inner_size", "must be ssm.time_step_rank heads of a multiple of 16, at most 512");
    if (r->status) return;
    m.key_at = inner;
    m.query_at = inner + m.n_key_heads * m.key_size;
    m.channels = inner + 2 * m.n_key_heads * m.key_size;
    m.step_at = m.channels;
    m.input_floats = m.channels + blocks_of_16(m.n_heads);
    make_recurrent(shape, recurrent, MIXER_RECURRENCE, &m);
    for (int i = 0; i < shape->n_layer; i++)
        if (recurrent[i]) shape->layers[i].n_norm_groups = m.n_key_heads;
}

void read_short_convolution(MetadataReader *r, Shape *shape, const bool *recurrent) {
    const Recurrence c = {
        .kernel = read_kernel(r, "shortconv.l_cache"), .channels = shape->n_embd, .input_floats = shape->n_embd};
    if (shape->n_embd % 16) refuse(r, "embedding_length", "must be a multiple of 16 where layers are convolutions");
    make_recurrent(shape, recurrent, MIXER_CONVOLUTION, &c);
}

void set_gated_heads(Shape *shape) {
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].gated_heads = !is_recurrent(&shape->layers[i]);
}

void remove_feed_forwards_of_mixers(Shape *shape) {
    for (int i = 0; i < shape->n_layer; i++) {
        LayerShape *l = &shape->layers[i];
        if (l->mixer == MIXER_NONE) continue;
        l->feed_forward = FEED_FORWARD_NONE;
        l->routing = (Routing){.scale = 1};
        l->n_ff_expert = l->n_ff_shared = 0;
    }
}

void read_one_half_layers(MetadataReader *r, Shape *shape, bool *recurrent) {
    static const char usual[] = "attention.layer_norm_rms_epsilon";
    read_hybrid(r, shape, has_key(r, usual) ? usual : "attention.layer_norm_epsilon", recurrent);
    for (int i = 0; i < shape->n_layer && !r->status; i++) {
        LayerShape *l = &shape->layers[i];
        recurrent[i] = recurrent[i] && !l->n_ff;
        if (l->n_ff) l->mixer = MIXER_NONE;
    }
    remove_feed_forwards_of_mixers(shape);
}
