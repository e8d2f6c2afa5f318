#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, GATED_SLOTS};

const Architecture qwen2 = {
    .about = {"qwen2", "Qwen 2 and 2.5, and what was distilled into them", false}, .read = read, SLOTS(slots)};
