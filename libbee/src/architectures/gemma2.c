#include <math.h>

#include "architecture.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    read_windows(r, shape, 4096, 2);
    shape->embedding_scale = sqrtf((float)shape->n_embd);
    shape->logit_softcap = (float)read_float(r, "final_logit_softcapping", false, 30);
    set_activation(shape, ACTIVATION_GELU);
    const double softcap = read_float(r, "attn_logit_softcapping", false, 50);
    for (int i = 0; i < shape->n_layer; i++) {
        Heads *heads = &shape->layers[i].heads;
        heads->softcap = (float)softcap;
        if (shape->n_layer == 46) heads->scale = 1 / sqrtf((float)(shape->n_embd / heads->n_head)); /* the 27B */
    }
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, GATED_SLOTS, POST_NORM_SLOTS};

const Architecture gemma2 = {.about = {"gemma2", "Gemma 2", false}, .read = read, SLOTS(slots), .head = HEAD_TIED};
