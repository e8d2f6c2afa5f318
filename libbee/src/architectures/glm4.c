#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    int32_t sections[4] = {0};
    int n = 0;
    if (!r->status) r->status = gguf_ints(r->file, "glm4.rope.dimension_sections", false, sections, 4, &n, r->error);
    read_decoder(r, shape);
    read_rope(r, shape, sections[0] > 0 && sections[1] > 0); /* the text of a model with vision pairs otherwise */
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, FUSED_GATED_SLOTS, POST_NORM_SLOTS};

const Architecture glm4 = {.about = {"glm4", "GLM 4", false}, .read = read, SLOTS(slots)};
