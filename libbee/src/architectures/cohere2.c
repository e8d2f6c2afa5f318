#include "architecture.h"

/* Attention and feed-forward side by side behind one layer norm; layers that see everything know no positions. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder_with_eps(r, shape, "attention.layer_norm_epsilon");
    read_rope(r, shape, false);
    read_windows(r, shape, -1, 4);
    shape->centred = shape->parallel = true;
    shape->logit_scale = (float)read_float(r, "logit_scale", true, 1);
    for (int i = 0; i < shape->n_layer; i++)
        if (!shape->layers[i].heads.window) shape->layers[i].rope = -1;
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {VECTOR("attn_norm", attn_norm, EXTENT_EMBD), QKV_SLOTS, GATED_SLOTS};

const Architecture cohere2 = {
    .about = {"cohere2", "Command R7B, Command A, Aya", false}, .read = read, SLOTS(slots), .head = HEAD_TIED};
