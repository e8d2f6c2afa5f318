#include "architecture.h"

/* Qwen 3, but for the interleaved sections of its rotation: where text alone is read, they only leave some pairs as
 * they are. */
static void read(MetadataReader *r, Shape *shape) {
    int32_t sections[4] = {0};
    int n = 0;
    read_decoder(r, shape);
    RopeShape *rope = read_rope(r, shape, true);
    if (!r->status) r->status = gguf_ints(r->file, "qwen3vl.rope.dimension_sections", true, sections, 4, &n, r->error);
    for (int i = 0; i < 4; i++) {
        if (sections[i] < 0 || sections[i] > MAX_HEAD_SIZE)
            refuse(r, "rope.dimension_sections", "must be counts of pairs");
        rope->sections[i] = sections[i];
    }
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, GATED_SLOTS};

const Architecture qwen3vl = {.about = {"qwen3vl", "Qwen 3 VL, its text", false}, .read = read, SLOTS(slots)};
