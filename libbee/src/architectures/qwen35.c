#include "architecture.h"
#include "model/recurrences.h"

/* Three layers of four are gated delta nets; the others attend, with gates for what heads give. The file's norms have
 * their 1 added, and its heads of values are in an order in which they take turns with those of keys. */
static void read(MetadataReader *r, Shape *shape) {
    bool recurrent[MAX_LAYERS] = {false};
    read_decoder(r, shape);
    read_sections(r, read_rope(r, shape, true));
    read_recurrent_layers(r, shape, recurrent);
    read_delta_net(r, shape, recurrent, true);
    set_gated_heads(shape);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    VECTOR("attn_norm", attn_norm, EXTENT_EMBD),
    VECTOR("post_attention_norm", ffn_norm, EXTENT_EMBD),
    GATED_ATTENDING_SLOTS,
    ATTENDING_NORM_SLOTS,
    DELTA_NET_SLOTS,
    MATRIX("ssm_beta", rates, EXTENT_STATES, EXTENT_EMBD, .when = RECURRENT),
    MATRIX("ssm_alpha", steps, EXTENT_STATES, EXTENT_EMBD, .when = RECURRENT),
    GATED_SLOTS,
};

const Architecture qwen35 = {
    .about = {"qwen35", "Qwen 3.5, 3.6 (dense)", false}, .read = read, SLOTS(slots), .predicts = true};
