#include "architecture.h"
#include "model/recurrences.h"

/* LFM 2 with experts behind the first layers; a bias chooses them. */
static void read(MetadataReader *r, Shape *shape) {
    bool recurrent[MAX_LAYERS] = {false};
    read_hybrid(r, shape, "attention.layer_norm_rms_epsilon", recurrent);
    read_rope(r, shape, true);
    read_short_convolution(r, shape, recurrent);
    const int dense = (int)read_int(r, "leading_dense_block_count", true, 0, 0, shape->n_layer);
    const int columns = (int)read_int(r, "expert_feed_forward_length", true, 1, 1, 1 << 20);
    if (!read_experts(r, shape, dense, columns, true)) refuse(r, "expert_count", "must be above 0");
    read_int(r, "expert_gating_func", true, 2, 1, 3);
    read_routing(r, shape, ROUTE_SIGMOID, true);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    PRE_NORM_SLOTS,          ATTENDING_SLOTS, ATTENDING_NORM_SLOTS,
    SHORT_CONVOLUTION_SLOTS, EXPERT_SLOTS,    VECTOR("exp_probs_b.bias", router_bias, EXTENT_EXPERTS, .when = MIXTURE),
};

const Architecture lfm2moe = {.about = {"lfm2moe", "LFM 2 with experts", false},
                              .read = read,
                              SLOTS(slots),
                              .output_norm = "token_embd_norm.weight"};
