#include "shape.h"

#include <stdlib.h>

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
        if (l->cache_of == i) out.columns[cache_region(&l->heads)] += key_columns(l);
        out.window = larger(out.window, l->heads.window);
        out.n_head = larger(out.n_head, l->heads.n_head);
        out.query_columns = larger(out.query_columns, query_columns(l));
    }
    return out;
}

void shape_place_caches(Shape *shape) {
    int columns[CACHE_REGIONS] = {0}, n_states = 0;
    size_t state = 0, kept = 0;
    for (int i = 0; i < shape->n_layer; i++) {
        LayerShape *l = &shape->layers[i];
        int *used = &columns[cache_region(&l->heads)];
        if (is_recurrent(l)) {
            l->recurrence.index = n_states++;
            l->recurrence.first_state = state;
            l->recurrence.first_kept = kept;
            state += state_floats(&l->recurrence);
            kept += (size_t)CACHE_KEPT_ROWS * l->recurrence.input_floats;
            continue;
        }
        if (l->mixer == MIXER_NONE) continue;
        if (l->cache_of != i) {
            l->heads.first_column = shape->layers[l->cache_of].heads.first_column;
            continue;
        }
        l->heads.first_column = *used;
        *used += key_columns(l);
    }
}
