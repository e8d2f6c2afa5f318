#include "architecture.h"

/* A window that the file may name is not looked at: these models are trained to see everything. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, false);
    read_long_rope(r, shape, false);
    read_experts(r, shape, 0, shape->layers[0].n_ff, true);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, EXPERT_SLOTS};

const Architecture llama = {.about = {"llama", "Llama 1 to 3, SmolLM 2, Mistral 7B to Small 3, Mixtral, Yi", false},
                            .read = read,
                            SLOTS(slots)};
