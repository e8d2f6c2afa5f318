#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    const int dense = (int)read_int(r, "leading_dense_block_count", true, 0, 0, shape->n_layer);
    const int columns = (int)read_int(r, "expert_feed_forward_length", true, 1, 1, 1 << 20);
    const int n_shared = (int)read_int(r, "expert_shared_count", false, 0, 0, 1024);
    if (!read_experts(r, shape, dense, columns, false)) refuse(r, "expert_count", "must be above 0");
    read_routing(r, shape, ROUTE_SIGMOID, false);
    set_shared_expert(shape, columns * n_shared);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    VECTOR("attn_norm", attn_norm, EXTENT_EMBD),
    VECTOR("post_attention_norm", ffn_norm, EXTENT_EMBD),
    QKV_SLOTS,
    VECTOR("attn_q_norm", q_norm, EXTENT_HEAD, .when = OPTIONAL),
    VECTOR("attn_k_norm", k_norm, EXTENT_HEAD, .when = OPTIONAL),
    EXPERT_SLOTS,
    VECTOR("exp_probs_b.bias", router_bias, EXTENT_EXPERTS, .when = MIXTURE),
    SHARED_EXPERT_SLOTS,
};

const Architecture glm4moe = {
    .about = {"glm4moe", "GLM 4.5, 4.6", false}, .read = read, SLOTS(slots), .predicts = true};
