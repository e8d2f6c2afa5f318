#include "architecture.h"

/* Weights of the experts are not normed; a row has its own share of the shared expert. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    const int n_ff = shape->layers[0].n_ff;
    if (!read_experts(r, shape, 0, read_expert_columns(r, shape), false)) refuse(r, "expert_count", "must be above 0");
    set_shared_expert(shape, (int)read_int(r, "expert_shared_feed_forward_length", false, n_ff, 1, 1 << 20));
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, EXPERT_SLOTS, GATED_SHARED_EXPERT_SLOTS};

const Architecture qwen2moe = {
    .about = {"qwen2moe", "Qwen 1.5 and 2 with experts", false}, .read = read, SLOTS(slots), .head = HEAD_REQUIRED};
