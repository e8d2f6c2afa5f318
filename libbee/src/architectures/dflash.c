/* DFlash drafters (arXiv 2602.06036), as llama.cpp stores them: docs/drafter.md. */
#include "architecture.h"
#include "error.h"

static void read_block(MetadataReader *r, Shape *shape) {
    shape->block_size = (int)read_int(r, "block_size", false, 16, 2, 1024);
    if (shape->block_size > BEE_MAX_BLOCK) shape->block_size = BEE_MAX_BLOCK;
    shape->causal = read_bool(r, "attention.causal", false);
    int64_t mask = 0;
    if (!r->status) r->status = gguf_int(r->file, "tokenizer.ggml.mask_token_id", true, 0, INT32_MAX, &mask, r->error);
    shape->mask_token = (int)mask;
}

static void read_taps(MetadataReader *r, Shape *shape) {
    if (!r->status)
        r->status =
            gguf_ints(r->file, "dflash.target_layers", true, shape->taps, BEE_MAX_TAPS, &shape->n_taps, r->error);
    if (!r->status && shape->n_taps < 1)
        r->status = bee_fail(r->error, BEE_ERROR_FORMAT,
                             "metadata 'dflash.target_layers' is empty; it must name the layers of the target whose "
                             "inputs the drafter reads");
}

static void refuse_scalings(MetadataReader *r) {
    static const char *const scalings[] = {"logit_scale", "final_logit_softcapping", "embedding_scale"};
    for (int i = 0; i < 3; i++) {
        const double value = read_float(r, scalings[i], false, 0);
        if (value != 0 && !(value == 1 && i != 1)) refuse(r, scalings[i], "drafters with this scaling cannot be run");
    }
    if (has_key(r, "rope.dimension_sections")) refuse(r, "rope.dimension_sections", "sectioned RoPE cannot be run");
}

static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    read_taps(r, shape);
    read_block(r, shape);
    refuse_experts(r);
    refuse_window(r, shape);
    refuse_scalings(r);
}

static const TensorSlot slots[] = {PRE_NORM_SLOTS, QKV_SLOTS, HEAD_NORM_SLOTS, GATED_SLOTS};

const Architecture dflash = {
    .name = "dflash", .runs = "DFlash drafters", .is_drafter = true, .read = read, SLOTS(slots)};
