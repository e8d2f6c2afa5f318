#include "architecture.h"

/* Llama, with queries that grow with the logarithm of their position, and the file's own bounds of YaRN. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    RopeShape *rope = read_rope(r, shape, false);
    read_long_rope(r, shape, false);
    rope->yarn_fast = read_float(r, "rope.scaling.yarn_beta_fast", false, 32);
    rope->yarn_slow = read_float(r, "rope.scaling.yarn_beta_slow", false, 1);
    if (!r->status && !(rope->yarn_slow > 0 && rope->yarn_fast > rope->yarn_slow))
        refuse(r, "rope.scaling.yarn_beta_fast", "must be above yarn_beta_slow, which must be above 0");
    const double growth = read_float(r, "attention.temperature_scale", false, 0);
    const int period =
        (int)read_int(r, "rope.scaling.original_context_length", false, shape->n_ctx_train, 1, INT32_MAX);
    for (int i = 0; i < shape->n_layer; i++) {
        shape->layers[i].heads.growth = growth;
        shape->layers[i].heads.period = period;
    }
    read_experts(r, shape, 0, shape->layers[0].n_ff, true);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, EXPERT_SLOTS};

const Architecture mistral3 = {.about = {"mistral3", "Ministral 3", false}, .read = read, SLOTS(slots)};
