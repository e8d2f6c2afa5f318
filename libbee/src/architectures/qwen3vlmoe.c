#include "architecture.h"

/* Qwen 3 with experts, and the rotation of qwen3vl. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_sections(r, read_rope(r, shape, true));
    const int n_used = (int)read_int(r, "expert_used_count", true, 1, 1, MAX_USED_EXPERTS);
    const int columns =
        (int)read_int(r, "expert_feed_forward_length", false, shape->layers[0].n_ff / n_used, 1, 1 << 20);
    if (!read_experts(r, shape, 0, columns, true)) refuse(r, "expert_count", "must be above 0");
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, EXPERT_SLOTS};

const Architecture qwen3vlmoe = {
    .about = {"qwen3vlmoe", "Qwen 3 VL with experts, its text", false}, .read = read, SLOTS(slots)};
