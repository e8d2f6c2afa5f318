#include "shape.h"

#include <stdlib.h>

#include "error.h"

void shape_free(Shape *shape) {
    free(shape->layers);
    shape->layers = NULL;
}

int shape_widest(const Shape *shape, int (*number)(const LayerShape *layer)) {
    int most = 0;
    for (int i = 0; i < shape->n_layer; i++)
        if (number(&shape->layers[i]) > most) most = number(&shape->layers[i]);
    return most;
}

static int larger(int a, int b) { return a > b ? a : b; }

bee_status kv_type_check(bee_kv_type type, bee_error *error) {
    if (type == BEE_KV_F16 || type == BEE_KV_Q8_0) return BEE_OK;
    return bee_fail(error, BEE_ERROR_ARGUMENT, "kv_type is %d; bee_kv_type has 0 and 1", (int)type);
}

static size_t key_bytes(const LayerShape *l) {
    return (size_t)l->heads.n_head_kv * cache_head_bytes(l->heads.kv_type, l->heads.head_size);
}

CacheShape shape_cache(const Shape *shape) {
    CacheShape out = {0};
    for (int i = 0; i < shape->n_layer; i++) {
        const LayerShape *l = &shape->layers[i];
        if (is_recurrent(l)) {
            out.n_states++;
            out.state_floats += state_floats(&l->recurrence);
            out.kept_floats += (size_t)CACHE_KEPT_ROWS * l->recurrence.input_floats;
            continue;
        }
        if (l->mixer == MIXER_NONE) continue;
        if (l->cache_of == i) out.position_bytes[cache_region(&l->heads)] += key_bytes(l);
        out.window = larger(out.window, l->heads.window);
        out.n_head = larger(out.n_head, l->heads.n_head);
        out.query_columns = larger(out.query_columns, query_columns(l));
    }
    return out;
}

void shape_place_caches(Shape *shape, bee_kv_type kv_type) {
    size_t bytes[CACHE_REGIONS] = {0}, state = 0, kept = 0;
    int n_states = 0;
    for (int i = 0; i < shape->n_layer; i++) {
        LayerShape *l = &shape->layers[i];
        size_t *used = &bytes[cache_region(&l->heads)];
        if (is_recurrent(l)) {
            l->recurrence.index = n_states++;
            l->recurrence.first_state = state;
            l->recurrence.first_kept = kept;
            state += state_floats(&l->recurrence);
            kept += (size_t)CACHE_KEPT_ROWS * l->recurrence.input_floats;
            continue;
        }
        if (l->mixer == MIXER_NONE) continue;
        l->heads.kv_type = kv_type;
        if (l->cache_of != i) {
            l->heads.first_byte = shape->layers[l->cache_of].heads.first_byte;
            continue;
        }
        l->heads.first_byte = *used;
        *used += key_bytes(l);
    }
}
