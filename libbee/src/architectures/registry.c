#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "architecture.h"
#include "error.h"

/* One of each other file of this folder, which defines an architecture of the file's name: the build lists them. */
#define ARCHITECTURE(name) extern const Architecture name;
#include "architectures.inc"
#undef ARCHITECTURE
#define ARCHITECTURE(name) &name,
static const Architecture *const architectures[] = {
#include "architectures.inc"
};

enum { N_ARCHITECTURES = sizeof architectures / sizeof *architectures };

const bee_architecture *bee_architecture_at(size_t index) {
    return index < N_ARCHITECTURES ? &architectures[index]->about : NULL;
}

static void list_names(char *out, size_t capacity) {
    size_t used = 0;
    for (int i = 0; i < N_ARCHITECTURES; i++) {
        const bee_architecture *a = &architectures[i]->about;
        const int n = snprintf(out + used, capacity - used, "%s%s%s", i ? ", " : "", a->name,
                               a->is_drafter ? " (as a drafter)" : "");
        used += n > 0 && (size_t)n < capacity - used ? (size_t)n : 0;
    }
}

static bee_status find(const bee_file *file, const Architecture **out, bee_error *error) {
    char wanted[64], names[1024];
    const bee_status status = gguf_string(file, "general.architecture", true, wanted, sizeof wanted, error);
    if (status) return status;
    for (int i = 0; i < N_ARCHITECTURES; i++) {
        *out = architectures[i];
        if (!strcmp((*out)->about.name, wanted)) return BEE_OK;
    }
    if (!strcmp(wanted, "clip"))
        return bee_fail(error, BEE_ERROR_UNSUPPORTED,
                        "the file is the vision part of a model (architecture 'clip'); give "
                        "the file of the model itself");
    list_names(names, sizeof names);
    return bee_fail(error, BEE_ERROR_UNSUPPORTED, "architecture '%s' cannot be run; the library runs %s", wanted,
                    names);
}

bee_status shape_read(const bee_file *file, Shape *shape, bee_error *error) {
    *shape = (Shape){0};
    MetadataReader r = {.file = file, .error = error};
    r.status = find(file, &shape->architecture, error);
    if (r.status) return r.status;
    r.prefix = shape->architecture->about.name;
    shape->n_blocks = (int)read_int(&r, "block_count", true, 1, 1, MAX_LAYERS);
    shape->n_layer = shape->n_blocks - (int)read_int(&r, "nextn_predict_layers", false, 0, 0, shape->n_blocks - 1);
    if (r.status) return r.status;
    shape->layers = calloc((size_t)shape->n_layer, sizeof *shape->layers);
    if (!shape->layers) return bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
    *shape = (Shape){.architecture = shape->architecture,
                     .n_layer = shape->n_layer,
                     .n_blocks = shape->n_blocks,
                     .layers = shape->layers,
                     .embedding_scale = 1,
                     .residual_scale = 1,
                     .logit_scale = 1,
                     .mask_token = -1};
    for (int i = 0; i < shape->n_layer; i++)
        shape->layers[i] = (LayerShape){.heads = {.n_head = 1, .n_head_kv = 1, .head_size = 16},
                                        .rope = -1,
                                        .cache_of = i,
                                        .attention_scale = 1}; /* until they are read */
    shape->architecture->read(&r, shape);
    if (r.status) shape_free(shape);
    return r.status;
}
