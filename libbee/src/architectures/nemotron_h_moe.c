#include "architecture.h"
#include "model/recurrences.h"

/* Nemotron H, whose feed-forwards are experts, without gates as well. */
static void read(MetadataReader *r, Shape *shape) {
    bool recurrent[MAX_LAYERS] = {false};
    int n_ff = 0;
    read_one_half_layers(r, shape, recurrent);
    read_mamba(r, shape, recurrent);
    set_activation(shape, ACTIVATION_RELU_SQUARED);
    for (int i = 0; i < shape->n_layer; i++) n_ff = shape->layers[i].n_ff ? shape->layers[i].n_ff : n_ff;
    const int n_used = (int)read_int(r, "expert_used_count", true, 1, 1, MAX_USED_EXPERTS);
    const int columns = (int)read_int(r, "expert_feed_forward_length", false, n_ff / n_used, 1, 1 << 20);
    if (!read_experts(r, shape, 0, columns, true)) refuse(r, "expert_count", "must be above 0");
    read_routing(r, shape, ROUTE_SIGMOID, false);
    if (read_int(r, "moe_latent_size", false, 0, 0, INT32_MAX) > 0)
        refuse(r, "moe_latent_size", "experts that work on another width than the model's cannot be run");
    set_shared_expert(shape, (int)read_int(r, "expert_shared_feed_forward_length", false, 0, 0, 1 << 20));
    remove_feed_forwards_of_mixers(shape);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    ONE_HALF_NORM_SLOTS,
    ATTENDING_SLOTS,
    MAMBA_SLOTS,
    MATRIX("ffn_gate_inp", router, EXTENT_EXPERTS, EXTENT_EMBD, .when = MIXTURE),
    VECTOR("exp_probs_b.bias", router_bias, EXTENT_EXPERTS, .when = MIXTURE),
    EXPERTS("ffn_up_exps", expert_up, EXTENT_FF_EXPERT, EXTENT_EMBD),
    EXPERTS("ffn_down_exps", expert_down, EXTENT_EMBD, EXTENT_FF_EXPERT),
    MATRIX("ffn_up_shexp", shared_up, EXTENT_FF_SHARED, EXTENT_EMBD, .when = SHARED),
    MATRIX("ffn_down_shexp", shared_down, EXTENT_EMBD, EXTENT_FF_SHARED, .when = SHARED),
};

const Architecture nemotron_h_moe = {.about = {"nemotron_h_moe", "Nemotron 3 Nano", false}, .read = read, SLOTS(slots)};
