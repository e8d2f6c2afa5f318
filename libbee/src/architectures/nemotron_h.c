#include "architecture.h"
#include "model/recurrences.h"

/* A layer is Mamba-2, attention without positions, or a feed-forward without gates: one of the three. */
static void read(MetadataReader *r, Shape *shape) {
    bool recurrent[MAX_LAYERS] = {false};
    read_one_half_layers(r, shape, recurrent);
    read_mamba(r, shape, recurrent);
    set_activation(shape, ACTIVATION_RELU_SQUARED);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    ONE_HALF_NORM_SLOTS,
    ATTENDING_SLOTS,
    MAMBA_SLOTS,
    MATRIX("ffn_up", up, EXTENT_FF, EXTENT_EMBD, .when = DENSE),
    MATRIX("ffn_down", down, EXTENT_EMBD, EXTENT_FF, .when = DENSE),
};

const Architecture nemotron_h = {
    .about = {"nemotron_h", "Nemotron H, Nemotron Nano 2", false}, .read = read, SLOTS(slots)};
