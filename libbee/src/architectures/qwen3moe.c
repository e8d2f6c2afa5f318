#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    const int n_used = (int)read_int(r, "expert_used_count", true, 1, 1, MAX_USED_EXPERTS);
    const int columns =
        (int)read_int(r, "expert_feed_forward_length", false, shape->layers[0].n_ff / n_used, 1, 1 << 20);
    if (!read_experts(r, shape, 0, columns, true)) refuse(r, "expert_count", "must be above 0");
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, EXPERT_SLOTS};

const Architecture qwen3moe = {
    .about = {"qwen3moe", "Qwen 3 30B-A3B and 235B-A22B, Qwen3-Coder", false}, .read = read, SLOTS(slots)};
