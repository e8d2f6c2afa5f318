#include "architecture.h"

/* Norms of each query and key head, and pairs of dimensions half a head apart. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, GATED_SLOTS};

const Architecture qwen3 = {.about = {"qwen3", "Qwen 3", false}, .read = read, SLOTS(slots)};
