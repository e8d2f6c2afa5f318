#include "calibrate.h"

#include <string.h>

#include "clock.h"
#include "draft/sources.h"
#include "error.h"
#include "measure.h"
#include "model/load.h"

/* The least of some cycles of n_rows: what else the machine does can only add to a time. They follow one another,
 * because the first passes after one of another length are slower: the caches must settle. */
static void measure_length(bee_session *s, int n_rows, double *pass_seconds, double *draft_seconds) {
    enum { LEAST_CYCLES = 3, MOST_CYCLES = 10 };
    static const double ENOUGH_SECONDS = 0.018, MOST_SECONDS = 0.06;
    const bool drafts = can_draft(s->engine, n_rows - 1);
    const double start = monotonic_seconds();
    for (int i = 0; i < MOST_CYCLES; i++) {
        const double spent = monotonic_seconds() - start;
        if (i && spent > (i < LEAST_CYCLES ? MOST_SECONDS : ENOUGH_SECONDS)) break;
        double pass, draft;
        time_cycle(s, n_rows, drafts, &pass, &draft);
        if (!i || pass < *pass_seconds) *pass_seconds = pass;
        if (!i || draft < *draft_seconds) *draft_seconds = draft;
    }
}

/* Reading weights is most of a pass and of a draft. */
static double share_of_draft(const bee_engine *e) {
    if (!e->drafter) return 0;
    return (double)model_needs(e->ops, e->drafter).weight_bytes / (double)model_needs(e->ops, e->target).weight_bytes;
}

/* What matters most first; what would take too long is left to experience: a large model's passes take seconds. */
static void measure_lengths(bee_session *s, PassCosts *costs, DraftCosts *drafts, int n_points) {
    static const int points[] = {0, 5, 3, 7, 1, 4, 2, 6}; /* 1, 8, 4, 16, 2, 6, 3 and 12 rows */
    static const double MOST_SECONDS = 0.4;
    const double end = monotonic_seconds() + MOST_SECONDS;
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        const int point = points[i];
        if (point >= n_points || (point && monotonic_seconds() + usual_cost(costs->pass[0], point) > end)) continue;
        measure_length(s, cost_rows[point], &costs->pass[point], &drafts->draft[cost_rows[point] - 1]);
    }
}

static bee_status measure_costs(bee_engine *engine, bee_error *error) {
    const int context = engine->target->shape.n_ctx_train;
    int n_points = 0;
    while (n_points < COST_POINTS && cost_rows[n_points] <= BEE_MAX_BLOCK && cost_rows[n_points] <= context) n_points++;
    const int most = cost_rows[n_points - 1];
    bee_error local;
    if (!error) error = &local;
    bee_session *s = bee_session_open(engine, most, false, error);
    if (!s) return error->status;
    s->apart = true;
    read_made_up(s, 0, most);
    measure_lengths(s, &engine->costs, &engine->draft_costs[drafting_model(engine)], n_points);
    bee_session_close(s);
    return BEE_OK;
}

static bee_status take_costs(bee_engine *engine, const bee_costs *known, bee_error *error) {
    for (int i = 0; i < COST_POINTS; i++)
        if (!(known->pass[i] >= (i ? 0 : 1e-9) && known->pass[i] < 1e9))
            return bee_fail(error, BEE_ERROR_ARGUMENT, "costs.pass[%d] is %g; it must be a number of seconds", i,
                            known->pass[i]);
    for (int i = 0; i < BEE_MAX_BLOCK; i++)
        if (!(known->draft[i] >= 0 && known->draft[i] < 1e9))
            return bee_fail(error, BEE_ERROR_ARGUMENT, "costs.draft[%d] is %g; it must be a number of seconds", i,
                            known->draft[i]);
    memcpy(engine->costs.pass, known->pass, sizeof known->pass);
    memcpy(engine->draft_costs[drafting_model(engine)].draft, known->draft, sizeof known->draft);
    return BEE_OK;
}

bee_status calibrate(bee_engine *engine, const bee_costs *known, bee_error *error) {
    const bee_status status = known ? take_costs(engine, known, error) : measure_costs(engine, error);
    if (status) return status;
    pass_costs_complete(&engine->costs);
    for (int i = 0; i < N_DRAFT_SOURCES; i++) {
        const DraftSource *source = draft_sources[i];
        DraftCosts *costs = &engine->draft_costs[i];
        chances_reset(&engine->usual[i], source->first_chances);
        if (source->is_model && engine->target->shape.n_ctx_train > 1) costs->longest = source->longest(engine);
        draft_costs_complete(costs, &engine->costs, source->is_model ? share_of_draft(engine) : 0);
    }
    return BEE_OK;
}

void bee_engine_costs(const bee_engine *engine, bee_costs *out) {
    memcpy(out->pass, engine->costs.pass, sizeof out->pass);
    memcpy(out->draft, engine->draft_costs[drafting_model(engine)].draft, sizeof out->draft);
}
