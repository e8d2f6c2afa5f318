#include "architecture.h"

/* Queries and keys normed as whole rows; weights of the experts are not normed. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    for (int i = 0; i < shape->n_layer; i++) shape->layers[i].whole_norms = true;
    if (!read_experts(r, shape, 0, shape->layers[0].n_ff, false)) refuse(r, "expert_count", "must be above 0");
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    PRE_NORM_SLOTS, QKV_SLOTS, VECTOR("attn_q_norm", q_norm, EXTENT_QUERY), VECTOR("attn_k_norm", k_norm, EXTENT_KEY),
    EXPERT_SLOTS,
};

const Architecture olmoe = {.about = {"olmoe", "OLMoE", false}, .read = read, SLOTS(slots), .head = HEAD_REQUIRED};
