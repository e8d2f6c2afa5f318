#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, false);
    refuse_experts(r);
    refuse_window(r, shape);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, GATED_SLOTS};

const Architecture llama = {.name = "llama", .runs = "Llama 1 to 3, SmolLM 2, Mistral", .read = read, SLOTS(slots)};
