#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, false);
    read_long_rope(r, shape, false);
    read_scales(r, shape, 0, 0, 0);
    for (int i = 0; !read_bool(r, "rope.scaling.finetuned", true) && i < shape->n_layer; i++)
        shape->layers[i].rope = -1;
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, GATED_SLOTS};

const Architecture granite = {.about = {"granite", "Granite 3 and 4 (dense)", false}, .read = read, SLOTS(slots)};
