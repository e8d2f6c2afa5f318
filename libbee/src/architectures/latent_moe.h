/* What deepseek2 and mistral4 share: latent attention, dense layers and then experts with one for all rows. */
#ifndef BEE_LATENT_MOE_H
#define BEE_LATENT_MOE_H

#include "architecture.h"

#define LATENT_SLOTS                                                                                               \
    MATRIX("attn_q_a", q_down, EXTENT_QUERY_RANK, EXTENT_EMBD, .when = LOW_RANK),                                  \
        VECTOR("attn_q_a_norm", q_down_norm, EXTENT_QUERY_RANK, .when = LOW_RANK),                                 \
        MATRIX("attn_q_b", q_up, EXTENT_WHOLE_QUERY, EXTENT_QUERY_RANK, .when = LOW_RANK),                         \
        MATRIX("attn_q", q, EXTENT_WHOLE_QUERY, EXTENT_EMBD, .when = FULL_RANK),                                   \
        MATRIX("attn_kv_a_mqa", v, EXTENT_LATENT, EXTENT_EMBD, PART_OF("attn_kv_a_mqa", EXTENT_NONE, EXTENT_KEY)), \
        MATRIX("attn_kv_a_mqa.rotated", k, EXTENT_ROTATED, EXTENT_EMBD,                                            \
               PART_OF("attn_kv_a_mqa", EXTENT_LATENT, EXTENT_KEY)),                                               \
        VECTOR("attn_kv_a_norm", latent_norm, EXTENT_LATENT),                                                      \
        {.name = "attn_k_b",                                                                                       \
         .field = offsetof(Layer, head_keys),                                                                      \
         .kind = SLOT_HEADS,                                                                                       \
         .rows = EXTENT_LATENT,                                                                                    \
         .columns = EXTENT_UNROTATED},                                                                             \
        {.name = "attn_v_b",                                                                                       \
         .field = offsetof(Layer, head_values),                                                                    \
         .kind = SLOT_HEADS,                                                                                       \
         .rows = EXTENT_VALUE,                                                                                     \
         .columns = EXTENT_LATENT},                                                                                \
        MATRIX("attn_output", attn_output, EXTENT_EMBD, EXTENT_VALUES)

#define LATENT_MOE_SLOTS                        \
    PRE_NORM_SLOTS, LATENT_SLOTS, EXPERT_SLOTS, \
        VECTOR("exp_probs_b.bias", router_bias, EXTENT_EXPERTS, .when = MIXTURE_OPTIONAL), SHARED_EXPERT_SLOTS

static inline void read_latent_moe(MetadataReader *r, Shape *shape, RouteProbability probability) {
    read_latent_decoder(r, shape);
    const int dense = (int)read_int(r, "leading_dense_block_count", false, 0, 0, shape->n_layer);
    const int columns = (int)read_int(r, "expert_feed_forward_length", true, 1, 1, 1 << 20);
    const int n_shared = (int)read_int(r, "expert_shared_count", true, 0, 0, 1024);
    if (read_int(r, "expert_group_count", false, 0, 0, 1024) > 1)
        refuse(r, "expert_group_count", "experts in groups cannot be run");
    if (!read_experts(r, shape, dense, columns, false)) refuse(r, "expert_count", "must be above 0");
    read_routing(r, shape, probability, false);
    set_shared_expert(shape, columns * n_shared);
    refuse_not_causal(r);
}

#endif
