#include "architecture.h"
#include "model/recurrences.h"

/* Granite, with layers of Mamba-2. Most files have no positions in the layers that attend. */
static void read(MetadataReader *r, Shape *shape) {
    bool recurrent[MAX_LAYERS] = {false};
    read_hybrid(r, shape, "attention.layer_norm_rms_epsilon", recurrent);
    read_rope(r, shape, false);
    read_scales(r, shape, 0, 0, 1);
    for (int i = 0; !read_bool(r, "rope.scaling.finetuned", true) && i < shape->n_layer; i++)
        shape->layers[i].rope = -1;
    read_mamba(r, shape, recurrent);
    read_experts(r, shape, 0, shape->layers[0].n_ff, true);
    set_shared_expert(shape, (int)read_int(r, "expert_shared_feed_forward_length", false, 0, 0, 1 << 20));
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    PRE_NORM_SLOTS, ATTENDING_SLOTS, MAMBA_SLOTS, EXPERT_SLOTS, SHARED_EXPERT_SLOTS,
};

const Architecture granitehybrid = {.about = {"granitehybrid", "Granite 4 H", false}, .read = read, SLOTS(slots)};
