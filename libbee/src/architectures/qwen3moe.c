#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    if (!read_experts(r, shape, 0, read_expert_columns(r, shape), true)) refuse(r, "expert_count", "must be above 0");
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, EXPERT_SLOTS};

const Architecture qwen3moe = {
    .about = {"qwen3moe", "Qwen 3 30B-A3B and 235B-A22B, Qwen3-Coder", false}, .read = read, SLOTS(slots)};
