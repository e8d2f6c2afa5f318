/* What qwen35, qwen35moe and qwen3next share: most layers are gated delta nets, the others attend, with gates for what
 * heads give. The files' norms have their 1 added. */
#ifndef BEE_QWEN_HYBRID_H
#define BEE_QWEN_HYBRID_H

#include "architecture.h"
#include "model/recurrences.h"

/* All but what is particular to a family: rates and steps of the delta nets, and the feed-forwards. */
#define QWEN_HYBRID_SLOTS                                                                              \
    VECTOR("attn_norm", attn_norm, EXTENT_EMBD), VECTOR("post_attention_norm", ffn_norm, EXTENT_EMBD), \
        GATED_ATTENDING_SLOTS, ATTENDING_NORM_SLOTS, DELTA_NET_SLOTS

/* Of Qwen 3.5 and 3.6; Qwen3-Next has both in one tensor. */
#define RATE_AND_STEP_SLOTS                                                   \
    MATRIX("ssm_beta", rates, EXTENT_STATES, EXTENT_EMBD, .when = RECURRENT), \
        MATRIX("ssm_alpha", steps, EXTENT_STATES, EXTENT_EMBD, .when = RECURRENT)

/* What follows the decoder's sizes and RoPE. turns: heads of values take turns with those of keys; otherwise those that
 * share a head of keys lie together. */
static inline void read_qwen_mixers(MetadataReader *r, Shape *shape, bool turns) {
    bool recurrent[MAX_LAYERS] = {false};
    read_recurrent_layers(r, shape, recurrent);
    read_delta_net(r, shape, recurrent, turns);
    set_gated_heads(shape);
    refuse_not_causal(r);
}

/* Experts, and a shared one of which a row has its own share. */
static inline void read_qwen_experts(MetadataReader *r, Shape *shape) {
    if (!read_experts(r, shape, 0, read_expert_columns(r, shape), true)) refuse(r, "expert_count", "must be above 0");
    set_shared_expert(shape, (int)read_int(r, "expert_shared_feed_forward_length", true, 1, 1, 1 << 20));
}

#endif
