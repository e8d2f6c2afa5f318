#include <math.h>

#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    shape->embedding_scale = sqrtf((float)shape->n_embd);
    set_activation(shape, ACTIVATION_GELU);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, GATED_SLOTS};

const Architecture gemma = {.about = {"gemma", "Gemma 1", false}, .read = read, SLOTS(slots), .head = HEAD_TIED};
