#include "limits.h"

#include "error.h"

bee_pass_needs pass_needs(const Ops *ops, const Model *m) {
    const Shape *s = &m->shape;
    const uint64_t queries = (uint64_t)s->n_head * s->head_size, keys = (uint64_t)s->n_head_kv * s->head_size;
    const uint64_t projections = (2 * queries + 2 * keys) * (uint64_t)s->n_embd;
    bee_pass_needs needs = {
        .weight_bytes = ops->weight_bytes(m->head),
        .kv_bytes_per_position = cache_position_bytes(s->n_layer, s->n_head_kv, s->head_size),
        .multiply_adds = (projections + 3 * (uint64_t)s->n_embd * s->n_ff) * (uint64_t)s->n_layer,
        .head_multiply_adds = (uint64_t)m->n_head_rows * s->n_embd,
        .attention_multiply_adds = 2 * queries * (uint64_t)s->n_layer,
    };
    for (int i = 0; i < s->n_layer; i++) {
        const Layer *l = &m->layers[i];
        const Weight *weights[] = {l->q, l->k, l->v, l->attn_output, l->gate, l->up, l->down};
        for (size_t w = 0; w < sizeof weights / sizeof *weights; w++)
            needs.weight_bytes += ops->weight_bytes(weights[w]);
    }
    return needs;
}

bee_status bee_engine_limits(bee_engine *engine, bee_limits *out, bee_error *error) {
    Rates rates;
    const bee_pass_needs target = pass_needs(engine->ops, engine->target);
    pthread_mutex_lock(&engine->mutex);
    const bool measured = engine->ops->measure_rates(engine->backend, target.weight_bytes, &rates);
    pthread_mutex_unlock(&engine->mutex);
    if (!measured) return bee_fail(error, BEE_ERROR_MEMORY, "out of memory while measuring the memory's speed");
    *out = (bee_limits){.read_bytes_per_second = rates.read_bytes_per_second,
                        .reread_bytes_per_second = rates.reread_bytes_per_second,
                        .multiply_adds_per_second = rates.multiply_adds_per_second,
                        .target = target};
    if (engine->drafter) out->drafter = pass_needs(engine->ops, engine->drafter);
    return BEE_OK;
}
