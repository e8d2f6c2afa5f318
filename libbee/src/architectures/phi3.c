#include "architecture.h"

/* A window that the file may name is not looked at, as llama.cpp does not. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    read_long_rope(r, shape, true);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, FUSED_GATED_SLOTS};

const Architecture phi3 = {.about = {"phi3", "Phi 3, 3.5 and 4", false}, .read = read, SLOTS(slots)};
