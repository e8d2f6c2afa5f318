#include "qwen_hybrid.h"

/* As qwen35moe, but for the order of heads of values, and rates and steps in one tensor, in that order. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder_of_experts(r, shape);
    read_rope(r, shape, true);
    read_qwen_mixers(r, shape, false);
    read_qwen_experts(r, shape);
}

static const TensorSlot slots[] = {
    QWEN_HYBRID_SLOTS,
    MATRIX("ssm_ba", rates, EXTENT_STATES, EXTENT_EMBD, .when = RECURRENT,
           STRIPES_OF("ssm_ba", EXTENT_STATES_OF_KEY, EXTENT_TWO_STATES, false)),
    MATRIX("ssm_ba", steps, EXTENT_STATES, EXTENT_EMBD, .when = RECURRENT,
           STRIPES_OF("ssm_ba", EXTENT_STATES_OF_KEY, EXTENT_TWO_STATES, true)),
    EXPERT_SLOTS,
    GATED_SHARED_EXPERT_SLOTS,
};

const Architecture qwen3next = {
    .about = {"qwen3next", "Qwen3-Next", false}, .read = read, SLOTS(slots), .predicts = true};
