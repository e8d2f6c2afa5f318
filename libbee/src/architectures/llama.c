#include "architecture.h"

/* A window that the file may name is not looked at: these models are trained to see everything. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, false);
    read_long_rope(r, shape, false);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, GATED_SLOTS};

const Architecture llama = {
    .about = {"llama", "Llama 1 to 3, SmolLM 2, Mistral 7B to Small 3, Yi", false}, .read = read, SLOTS(slots)};
