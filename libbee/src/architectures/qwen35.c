#include "qwen_hybrid.h"

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_sections(r, read_rope(r, shape, true));
    read_qwen_mixers(r, shape, true);
    refuse_experts(r);
}

static const TensorSlot slots[] = {
    QWEN_HYBRID_SLOTS,
    RATE_AND_STEP_SLOTS,
    GATED_SLOTS,
};

const Architecture qwen35 = {
    .about = {"qwen35", "Qwen 3.5, 3.6 (dense)", false}, .read = read, SLOTS(slots), .predicts = true};
