#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, false);
    const int dense = (int)read_int(r, "leading_dense_block_count", true, 0, 0, shape->n_layer);
    const int columns = (int)read_int(r, "expert_feed_forward_length", true, 1, 1, 1 << 20);
    if (read_int(r, "interleave_moe_layer_step", true, 1, 0, 1024) != 1)
        refuse(r, "interleave_moe_layer_step", "layers with experts must follow each other");
    if (!read_experts(r, shape, dense, columns, true)) refuse(r, "expert_count", "must be above 0");
    set_shared_expert(shape, (int)read_int(r, "expert_shared_feed_forward_length", false, 0, 0, 1 << 20));
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    PRE_NORM_SLOTS,      QKV_SLOTS,
    EXPERT_SLOTS,        VECTOR("exp_probs_b.bias", router_bias, EXTENT_EXPERTS, .when = MIXTURE_OPTIONAL),
    SHARED_EXPERT_SLOTS,
};

const Architecture ernie4_5_moe = {
    .about = {"ernie4_5-moe", "ERNIE 4.5 with experts", false}, .read = read, SLOTS(slots)};
