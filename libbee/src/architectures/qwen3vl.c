#include "architecture.h"

/* Qwen 3, but for the interleaved sections of its rotation: where text alone is read, they only leave some pairs as
 * they are. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_sections(r, read_rope(r, shape, true));
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, GATED_SLOTS};

const Architecture qwen3vl = {.about = {"qwen3vl", "Qwen 3 VL, its text", false}, .read = read, SLOTS(slots)};
