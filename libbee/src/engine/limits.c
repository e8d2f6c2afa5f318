#include "error.h"
#include "model/load.h"
#include "state.h"

bee_status bee_engine_limits(bee_engine *engine, bee_limits *out, bee_error *error) {
    Rates rates;
    const bee_pass_needs target = model_needs(engine->ops, engine->target);
    pthread_mutex_lock(&engine->mutex);
    const bool measured = engine->ops->measure_rates(engine->backend, target.weight_bytes, &rates);
    pthread_mutex_unlock(&engine->mutex);
    if (!measured)
        return fail_to_make(engine->ops, engine->backend, error, "out of memory while measuring the memory's speed");
    *out = (bee_limits){.read_bytes_per_second = rates.read_bytes_per_second,
                        .reread_bytes_per_second = rates.reread_bytes_per_second,
                        .multiply_adds_per_second = rates.multiply_adds_per_second,
                        .target = target};
    if (engine->drafter) out->drafter = model_needs(engine->ops, engine->drafter);
    return BEE_OK;
}
