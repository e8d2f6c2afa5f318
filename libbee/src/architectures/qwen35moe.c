#include "qwen_hybrid.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder_of_experts(r, shape);
    read_sections(r, read_rope(r, shape, true));
    read_qwen_mixers(r, shape, true);
    read_qwen_experts(r, shape);
}

static const TensorSlot slots[] = {
    QWEN_HYBRID_SLOTS,
    RATE_AND_STEP_SLOTS,
    EXPERT_SLOTS,
    GATED_SHARED_EXPERT_SLOTS,
};

const Architecture qwen35moe = {
    .about = {"qwen35moe", "Qwen 3.5, 3.6 with experts", false}, .read = read, SLOTS(slots), .predicts = true};
