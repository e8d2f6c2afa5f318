#include "architecture.h"

/* Norms of each query and key head, and pairs of dimensions half a head apart. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    refuse_experts(r);
    refuse_window(r, shape);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, GATED_SLOTS};

const Architecture qwen3 = {.name = "qwen3", .runs = "Qwen 3", .read = read, SLOTS(slots)};
