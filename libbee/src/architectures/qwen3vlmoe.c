#include "architecture.h"

/* Qwen 3 with experts, and the rotation of qwen3vl. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_sections(r, read_rope(r, shape, true));
    if (!read_experts(r, shape, 0, read_expert_columns(r, shape), true)) refuse(r, "expert_count", "must be above 0");
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, EXPERT_SLOTS};

const Architecture qwen3vlmoe = {
    .about = {"qwen3vlmoe", "Qwen 3 VL with experts, its text", false}, .read = read, SLOTS(slots)};
