#include <math.h>

#include "architecture.h"

/* Queries and keys are turned first and normed after. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    RopeShape *rope = read_rope(r, shape, true);
    const double alpha = read_float(r, "rope.scaling.alpha", false, 0);
    if (alpha > 0) rope->base *= pow(alpha, (double)rope->n_rotated / (rope->n_rotated - 2));
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].heads.norm_rotated = true;
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, GATED_SLOTS};

const Architecture hunyuan_dense = {.about = {"hunyuan-dense", "Hunyuan (dense)", false}, .read = read, SLOTS(slots)};
