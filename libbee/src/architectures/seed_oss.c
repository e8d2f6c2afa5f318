#include "architecture.h"

/* What the file calls the norm behind attention is the one before the feed-forward. */
static void read(MetadataReader *r, Shape *shape) {
    read_decoder(r, shape);
    read_rope(r, shape, true);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    VECTOR("attn_norm", attn_norm, EXTENT_EMBD),
    VECTOR("post_attention_norm", ffn_norm, EXTENT_EMBD),
    QKV_SLOTS,
    GATED_SLOTS,
};

const Architecture seed_oss = {.about = {"seed_oss", "Seed-OSS", false}, .read = read, SLOTS(slots)};
