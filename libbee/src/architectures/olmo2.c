#include "architecture.h"

/* Norms behind attention and feed-forward and none before; queries and keys normed as whole rows; OLMo 3 has windows,
 * whose layers take no part in the scaling of positions. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].whole_norms = true;
    if (read_windows(r, shape, 0, 4)) {
        const int plain = add_plain_rope(r, shape, "rope.freq_base", 10000);
        for (int i = 0; i < shape->n_layer; i++)
            if (shape->layers[i].heads.window) shape->layers[i].rope = plain;
    }
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    QKV_SLOTS,
    VECTOR("attn_q_norm", q_norm, EXTENT_QUERY),
    VECTOR("attn_k_norm", k_norm, EXTENT_KEY),
    GATED_SLOTS,
    POST_NORM_SLOTS,
};

const Architecture olmo2 = {
    .about = {"olmo2", "OLMo 2 and 3", false}, .read = read, SLOTS(slots), .head = HEAD_REQUIRED};
