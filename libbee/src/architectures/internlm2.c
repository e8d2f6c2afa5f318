#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, false);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, GATED_SLOTS};

const Architecture internlm2 = {
    .about = {"internlm2", "InternLM 2 and 2.5", false}, .read = read, SLOTS(slots), .head = HEAD_REQUIRED};
