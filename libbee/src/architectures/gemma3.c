#include <math.h>

#include "architecture.h"

/* Five layers of six see a window, and are rotated with a base of their own. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    const int windowed = add_plain_rope(r, shape, "rope.freq_base_swa", 10000);
    read_windows(r, shape, 0, 6);
    shape->embedding_scale = sqrtf((float)shape->n_embd);
    shape->logit_softcap = (float)read_float(r, "final_logit_softcapping", false, 0);
    set_activation(shape, ACTIVATION_GELU);
    for (int i = 0; i < shape->n_layer; i++) {
        LayerShape *layer = &shape->layers[i];
        if (layer->heads.window) layer->rope = windowed;
        if (shape->n_layer == 62)
            layer->heads.scale = 1 / sqrtf((float)(shape->n_embd / layer->heads.n_head)); /* 27B */
    }
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, GATED_SLOTS, POST_NORM_SLOTS};

const Architecture gemma3 = {.about = {"gemma3", "Gemma 3", false}, .read = read, SLOTS(slots)};
