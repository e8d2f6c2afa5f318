#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, false);
    for (int i = 3; i < shape->n_layer; i += 4) shape->layers[i].rope = -1; /* every fourth layer knows no positions */
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, GATED_SLOTS};

const Architecture smollm3 = {.about = {"smollm3", "SmolLM 3", false}, .read = read, SLOTS(slots)};
