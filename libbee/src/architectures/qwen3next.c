#include "architecture.h"
#include "model/recurrences.h"

/* As qwen35moe, but for the order of heads of values, by the heads of keys that they share; and rates and steps in one
 * tensor, in that order. */
static void read(MetadataReader *r, Shape *shape) {
    bool recurrent[MAX_LAYERS] = {false};
    read_decoder_of_experts(r, shape);
    read_rope(r, shape, true);
    read_recurrent_layers(r, shape, recurrent);
    read_delta_net(r, shape, recurrent, false);
    set_gated_heads(shape);
    if (!read_experts(r, shape, 0, read_expert_columns(r, shape), true)) refuse(r, "expert_count", "must be above 0");
    set_shared_expert(shape, (int)read_int(r, "expert_shared_feed_forward_length", true, 1, 1, 1 << 20));
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    VECTOR("attn_norm", attn_norm, EXTENT_EMBD),
    VECTOR("post_attention_norm", ffn_norm, EXTENT_EMBD),
    GATED_ATTENDING_SLOTS,
    ATTENDING_NORM_SLOTS,
    DELTA_NET_SLOTS,
    MATRIX("ssm_ba", rates, EXTENT_STATES, EXTENT_EMBD, .when = RECURRENT,
           STRIPES_OF("ssm_ba", EXTENT_STATES_OF_KEY, EXTENT_TWO_STATES, false)),
    MATRIX("ssm_ba", steps, EXTENT_STATES, EXTENT_EMBD, .when = RECURRENT,
           STRIPES_OF("ssm_ba", EXTENT_STATES_OF_KEY, EXTENT_TWO_STATES, true)),
    EXPERT_SLOTS,
    GATED_SHARED_EXPERT_SLOTS,
};

const Architecture qwen3next = {
    .about = {"qwen3next", "Qwen3-Next", false}, .read = read, SLOTS(slots), .predicts = true};
