#include "architecture.h"
#include "model/recurrences.h"

/* Most layers are short convolutions. The last norm goes by the name of the embedding's. */
static void read(MetadataReader *r, Shape *shape) {
    bool recurrent[MAX_LAYERS] = {false};
    read_hybrid(r, shape, "attention.layer_norm_rms_epsilon", recurrent);
    read_rope(r, shape, true);
    if (read_int(r, "attention.sliding_window", false, 0, 0, INT32_MAX) > 0) read_windows(r, shape, 0, 0);
    read_short_convolution(r, shape, recurrent);
    refuse_experts(r);
    refuse_not_causal(r);
}

static const TensorSlot slots[] = {
    PRE_NORM_SLOTS, ATTENDING_SLOTS, ATTENDING_NORM_SLOTS, SHORT_CONVOLUTION_SLOTS, GATED_SLOTS,
};

const Architecture lfm2 = {.about = {"lfm2", "LFM 2, 2.5 (dense)", false},
                           .read = read,
                           SLOTS(slots),
                           .output_norm = "token_embd_norm.weight"};
