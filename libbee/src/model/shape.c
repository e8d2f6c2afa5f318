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

CacheShape shape_cache(const Shape *shape) {
    CacheShape out = {0};
    for (int i = 0; i < shape->n_layer; i++) {
        const Heads *h = &shape->layers[i].heads;
        out.columns += key_columns(&shape->layers[i]);
        if (h->n_head > out.n_head) out.n_head = h->n_head;
        if (query_columns(&shape->layers[i]) > out.query_columns) out.query_columns = query_columns(&shape->layers[i]);
    }
    return out;
}
