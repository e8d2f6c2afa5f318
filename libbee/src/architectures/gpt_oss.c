#include "architecture.h"

/* Scores without a value in every sum, every other layer with a window, experts with biases. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    read_windows(r, shape, -1, 2);
    const int columns = (int)read_int(r, "expert_feed_forward_length", true, 1, 1, 1 << 20);
    if (!read_experts(r, shape, 0, columns, false)) refuse(r, "expert_count", "must be above 0");
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].routing.probability = ROUTE_SOFTMAX_OF_CHOSEN;
    set_activation(shape, ACTIVATION_CLAMPED);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    VECTOR("attn_norm", attn_norm, EXTENT_EMBD),
    VECTOR("post_attention_norm", ffn_norm, EXTENT_EMBD),
    QKV_SLOTS,
    VECTOR("attn_sinks", sinks, EXTENT_HEADS),
    EXPERT_SLOTS,
};

const Architecture gpt_oss = {
    .about = {"gpt-oss", "gpt-oss 20B and 120B", false}, .read = read, SLOTS(slots), .head = HEAD_REQUIRED};
