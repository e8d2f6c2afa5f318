#include "latent_moe.h"

/* Files of GLM 4.7 Flash may lack the router's function: it is known by its sizes, as llama.cpp does. */
static void read(MetadataReader *r, Shape *shape) {
    const bool glm = shape->n_layer == 47 && read_int(r, "vocab_size", false, 0, 0, INT32_MAX) == 154880;
    read_latent_moe(r, shape, glm ? ROUTE_SIGMOID : ROUTE_SOFTMAX);
}

static const TensorSlot slots[] = {LATENT_MOE_SLOTS};

const Architecture deepseek2 = {.about = {"deepseek2", "GLM 4.7 Flash, DeepSeek V2 Lite and kin", false},
                                .read = read,
                                SLOTS(slots),
                                .predicts = true};
