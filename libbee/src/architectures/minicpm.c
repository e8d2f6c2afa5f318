#include <math.h>

#include "architecture.h"

/* Granite with defaults, whose logit scale is the reciprocal of what newer files carry. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, false);
    read_long_rope(r, shape, false);
    read_scales(r, shape, 12, 1.4 / sqrt(shape->n_layer), 256.0 / shape->n_embd);
    read_experts(r, shape, 0, shape->layers[0].n_ff, true);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, EXPERT_SLOTS};

const Architecture minicpm = {.about = {"minicpm", "MiniCPM 1 to 4", false}, .read = read, SLOTS(slots)};
