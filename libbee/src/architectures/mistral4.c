#include "latent_moe.h"

/* DeepSeek's layers, with queries that grow with the logarithm of their position. */
static void read(MetadataReader *r, Shape *shape) {
    read_latent_moe(r, shape, ROUTE_SOFTMAX);
    const double growth = read_float(r, "attention.temperature_scale", false, 0);
    const int period = (int)read_int(r, "attention.temperature_length", growth != 0, 1, 1, INT32_MAX);
    for (int i = 0; i < shape->n_layer; i++) {
        shape->layers[i].heads.growth = growth;
        shape->layers[i].heads.period = period;
    }
}

static const TensorSlot slots[] = {LATENT_MOE_SLOTS};

const Architecture mistral4 = {.about = {"mistral4", "Mistral 4", false}, .read = read, SLOTS(slots)};
