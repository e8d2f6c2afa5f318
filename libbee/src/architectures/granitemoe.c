#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, false);
    read_long_rope(r, shape, false);
    read_scales(r, shape, 0, 0, 0);
    if (!read_experts(r, shape, 0, shape->layers[0].n_ff, true)) refuse(r, "expert_count", "must be above 0");
    set_shared_expert(shape, (int)read_int(r, "expert_shared_feed_forward_length", false, 0, 0, 1 << 20));
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, EXPERT_SLOTS, SHARED_EXPERT_SLOTS};

const Architecture granitemoe = {
    .about = {"granitemoe", "Granite 3 and 4 with experts", false}, .read = read, SLOTS(slots)};
