#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    if (shape->n_layer == 64 && read_windows(r, shape, 4096, 4)) /* the 32B: full layers know no positions */
        for (int i = 0; i < shape->n_layer; i++)
            if (!shape->layers[i].heads.window) shape->layers[i].rope = -1;
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {QKV_SLOTS, HEAD_NORM_SLOTS, GATED_SLOTS, POST_NORM_SLOTS};

const Architecture exaone4 = {.about = {"exaone4", "EXAONE 4", false}, .read = read, SLOTS(slots)};
