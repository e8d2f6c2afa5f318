/* Looking inside: logits, features and drafts for tests and training, and the costs of passes. */
#include <stdlib.h>
#include <string.h>

#include "device_cycle.h"
#include "draft/dflash.h"
#include "error.h"

/* Runs tokens [s->n_cached, s->n_cached + n) of the session; logits of every row, or none; tokens chosen from them, or
 * none. */
static void evaluate_rows(bee_session *s, int n, bool want_logits, Choice *choices) {
    bee_engine *e = s->engine;
    Row rows[BEE_MAX_PASS_ROWS];
    int32_t index[BEE_MAX_PASS_ROWS];
    for (int i = 0; i < n; i++) {
        const int position = s->n_cached + i;
        rows[i] = (Row){s->cache, s->tokens[position], position, position + 1};
        index[i] = i;
    }
    if (!has_room_for_features(s, n)) project_features(e, &s, 1);
    TargetPass pass = {.ops = e->ops,
                       .model = e->target,
                       .work = &e->work,
                       .rows = rows,
                       .n_rows = n,
                       .taps = e->taps,
                       .n_taps = e->n_taps,
                       .head_rows = index,
                       .n_head_rows = want_logits ? n : 0,
                       .choices = choices};
    target_forward(e->backend, &pass);
    keep_features(s, 0, n, true);
    s->n_cached += n;
}

static bee_status check_evaluate(const bee_session *s, const int32_t *tokens, int32_t n, int32_t rows,
                                 bee_error *error) {
    if (n < 1 || n > s->n_ctx)
        return bee_fail(error, BEE_ERROR_CONTEXT, "n is %d; the context holds 1 to %d tokens", n, s->n_ctx);
    if (rows < 1 || rows > BEE_MAX_PASS_ROWS)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "rows_per_pass is %d; it must lie between 1 and %d", rows,
                        BEE_MAX_PASS_ROWS);
    return check_tokens(s->engine, "token", tokens, n, error);
}

bee_status bee_session_evaluate(bee_session *s, const int32_t *tokens, int32_t n, int32_t rows_per_pass, float *logits,
                                bee_error *error) {
    const bee_status status = check_evaluate(s, tokens, n, rows_per_pass, error);
    if (status) return status;
    bee_engine *e = s->engine;
    const size_t n_vocab = (size_t)e->target->shape.n_vocab;
    pthread_mutex_lock(&e->mutex);
    device_cycle_drop(s);
    s->active = false;
    memmove(s->tokens, tokens, (size_t)n * sizeof *tokens);
    s->n_tokens = n;
    s->n_cached = 0;
    forget_features(s, 0);
    while (s->n_cached < n) {
        const int from = s->n_cached, rows = n - from < rows_per_pass ? n - from : rows_per_pass;
        evaluate_rows(s, rows, logits != NULL, NULL);
        for (int i = 0; logits && i < rows; i++)
            e->ops->buffer_read(e->backend, logits + (size_t)(from + i) * n_vocab,
                                e->work.logits + i * e->work.logit_stride, n_vocab * sizeof(float));
    }
    const bee_status failed = engine_status(e, error);
    pthread_mutex_unlock(&e->mutex);
    return failed;
}

bee_status bee_session_features(const bee_session *s, int32_t from, int32_t n, float *out, bee_error *error) {
    if (!s->features)
        return bee_fail(error, BEE_ERROR_ARGUMENT,
                        "the session keeps no features: open it with keep_features, on an engine with taps");
    const size_t size = (size_t)s->engine->n_taps * s->engine->target->shape.n_embd;
    bee_status status = BEE_OK;
    pthread_mutex_lock(&s->engine->mutex);
    if (from < 0 || n < 0 || n > s->n_cached - from)
        status = bee_fail(error, BEE_ERROR_ARGUMENT, "%d positions from %d on are not all in the cache, which holds %d",
                          n, from, s->n_cached);
    else
        memcpy(out, s->features + (size_t)from * size, (size_t)n * size * sizeof(float));
    pthread_mutex_unlock(&s->engine->mutex);
    return status;
}

bee_status bee_session_draft(bee_session *s, int32_t last_token, int32_t n, int32_t *drafts, float *logits,
                             bee_error *error) {
    bee_engine *e = s->engine;
    if (!e->drafter) return bee_fail(error, BEE_ERROR_ARGUMENT, "the engine has no drafter");
    if (n < 1 || n >= e->drafter->shape.block_size)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n is %d; the drafter drafts 1 to %d tokens", n,
                        e->drafter->shape.block_size - 1);
    if (last_token < 0 || last_token >= e->target->shape.n_vocab)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "last_token is %d; the vocabulary has ids 0 to %d", last_token,
                        e->target->shape.n_vocab - 1);
    static const bee_sampling greedy = {.temperature = 0, .top_p = 1};
    const size_t n_logits = (size_t)e->drafter->n_head_rows;
    bee_status status = BEE_OK;
    pthread_mutex_lock(&e->mutex);
    device_cycle_drop(s); /* it would find its features gone */
    if (!drafter_is_ready(s)) {
        status = bee_fail(error, BEE_ERROR_ARGUMENT,
                          "the session's tokens ran without speculation, so the drafter lacks their features");
    } else {
        project_features(e, &s, 1);
        draft_blocks(e, &(DraftBlock){s, last_token, &greedy, n, drafts}, 1);
        for (int i = 0; logits && i < n; i++)
            e->ops->buffer_read(e->backend, logits + (size_t)i * n_logits,
                                e->draft_work.logits + (size_t)i * e->draft_work.logit_stride,
                                n_logits * sizeof(float));
        status = engine_status(e, error);
    }
    pthread_mutex_unlock(&e->mutex);
    return status;
}

/* ---- costs -------------------------------------------------------------------------------------- */

static int compare_seconds(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, compare_seconds);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* What a scratch session takes for one pass of n_rows at its end, with a token chosen from each, and for a draft of
 * n_rows - 1 tokens behind it, as in a cycle that commits two: their features are projected with it. The session is
 * then as it was. `drafts` must be false where the drafter cannot draft as many. */
static void time_cycle(bee_session *s, int n_rows, bool drafts, double *pass_seconds, double *draft_seconds) {
    static const bee_sampling greedy = {.temperature = 0, .top_p = 1};
    bee_engine *e = s->engine;
    Choice choices[BEE_MAX_PASS_ROWS];
    int32_t tokens[BEE_MAX_BLOCK];
    const int cached = s->n_cached;
    for (int i = 0; i < n_rows; i++)
        choices[i] = (Choice){.sampling = &greedy, .position = cached + i + 1, .logits_row = i};
    pthread_mutex_lock(&e->mutex);
    project_features(e, &s, 1);
    const double start = monotonic_seconds();
    evaluate_rows(s, n_rows, true, choices);
    const double passed = monotonic_seconds();
    if (drafts) {
        s->n_cached = cached + 2;
        forget_features(s, s->n_cached);
        project_features(e, &s, 1);
        draft_blocks(e, &(DraftBlock){s, s->tokens[cached], &greedy, n_rows - 1, tokens}, 1);
    }
    *pass_seconds = passed - start;
    *draft_seconds = drafts ? monotonic_seconds() - passed : 0;
    s->n_cached = cached;
    forget_features(s, cached);
    pthread_mutex_unlock(&e->mutex);
}

static bool can_draft(const bee_engine *e, int n) { return e->drafter && n > 0 && n < e->drafter->shape.block_size; }

/* Reads n_past made-up tokens into the session and puts n_more behind them. */
static void read_made_up(bee_session *s, int n_past, int n_more) {
    for (int i = 0; i < n_past + n_more; i++) s->tokens[i] = i * 37 % s->engine->target->shape.n_vocab;
    pthread_mutex_lock(&s->engine->mutex);
    while (s->n_cached < n_past) {
        const int left = n_past - s->n_cached;
        evaluate_rows(s, left < BEE_MAX_PASS_ROWS ? left : BEE_MAX_PASS_ROWS, false, NULL);
    }
    pthread_mutex_unlock(&s->engine->mutex);
}

/* Medians over `repeats` passes and drafts after n_past tokens; `times` has room for 2 * repeats. */
static void measure_session(bee_session *s, int n_rows, int n_past, int repeats, double *times, double *pass_seconds,
                            double *draft_seconds) {
    const bool drafts = can_draft(s->engine, n_rows - 1);
    read_made_up(s, n_past, n_rows);
    for (int i = 0; i < repeats; i++) time_cycle(s, n_rows, drafts, &times[i], &times[repeats + i]);
    *pass_seconds = median(times, repeats);
    *draft_seconds = median(times + repeats, repeats);
}

bee_status bee_engine_measure(bee_engine *engine, int32_t n_rows, int32_t n_past, int32_t repeats, double *pass_seconds,
                              double *draft_seconds, bee_error *error) {
    if (n_rows < 1 || n_rows > BEE_MAX_PASS_ROWS || n_past < 0 || repeats < 1 || repeats > 10000)
        return bee_fail(error, BEE_ERROR_ARGUMENT,
                        "n_rows must lie between 1 and %d, n_past be at least 0, repeats between 1 and 10000",
                        BEE_MAX_PASS_ROWS);
    if (n_past > engine->target->shape.n_ctx_train - n_rows)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_past + n_rows is %lld; the model's context holds %d",
                        (long long)n_past + n_rows, engine->target->shape.n_ctx_train);
    bee_error local;
    if (!error) error = &local;
    bee_session *s = bee_session_open(engine, n_past + n_rows, false, error);
    if (!s) return error->status;
    double *times = malloc(2 * (size_t)repeats * sizeof *times);
    if (times) measure_session(s, n_rows, n_past, repeats, times, pass_seconds, draft_seconds);
    bee_session_close(s);
    if (!times) return bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
    free(times);
    return engine_status(engine, error);
}

static bee_status check_cycles(const bee_engine *e, int n_drafts, int n_past, int n_cycles, const float *profile,
                               bee_error *error) {
    if (n_drafts < 0 || n_drafts >= BEE_MAX_BLOCK || n_past < 0 || n_cycles < 1 || n_cycles > 10000)
        return bee_fail(error, BEE_ERROR_ARGUMENT,
                        "n_drafts must lie between 0 and %d, n_past be at least 0, n_cycles between 1 and 10000",
                        BEE_MAX_BLOCK - 1);
    if (n_drafts && !can_draft(e, n_drafts))
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_drafts is %d; the drafter drafts at most %d", n_drafts,
                        e->drafter ? e->drafter->shape.block_size - 1 : 0);
    if (profile && !e->cuda)
        return bee_fail(error, BEE_ERROR_UNSUPPORTED, "only a device draws accepted drafts from a profile");
    for (int i = 0; profile && i < BEE_MAX_BLOCK; i++)
        if (!(profile[i] >= 0 && profile[i] <= (i ? profile[i - 1] : 1)))
            return bee_fail(error, BEE_ERROR_ARGUMENT, "profile[%d] is %g; shares lie between 0 and the one before", i,
                            profile[i]);
    return BEE_OK;
}

/* One pass of one session that decodes. */
static bee_status run_cycle(bee_session *s, int32_t *n_tokens, bee_error *error) {
    bee_step step;
    const bee_status status = bee_engine_step(s->engine, &s, 1, &step, error);
    if (status) return status;
    *n_tokens += step.n_tokens;
    if (step.finish == BEE_FINISH_NOT_FINITE)
        return bee_fail(error, BEE_ERROR_FORMAT, "the model's logits are not finite");
    return step.finish ? bee_fail(error, BEE_ERROR_ARGUMENT, "the request ended before its cycles") : BEE_OK;
}

/* The prompt's last token still waits for a pass when the request begins: the first cycle is one like all others. */
static bee_status time_cycles(bee_session *s, int n_drafts, int n_past, int n_cycles, bee_cycle_cost *out,
                              bee_error *error) {
    enum { WARM_UP = 2 };
    read_made_up(s, n_past, 1);
    const bee_request request = {.prompt = s->tokens,
                                 .n_prompt = n_past + 1,
                                 .max_tokens = s->n_ctx,
                                 .speculation = n_drafts ? BEE_SPECULATION_DFLASH : BEE_SPECULATION_OFF,
                                 .draft_length = n_drafts,
                                 .sampling = {.temperature = 0, .top_p = 1},
                                 .penalties = {.repetition = 1}};
    int32_t n_tokens = 0;
    bee_status status = bee_session_begin(s, &request, error);
    for (int i = 0; !status && i < WARM_UP; i++) status = run_cycle(s, &n_tokens, error);
    pthread_mutex_lock(&s->engine->mutex);
    out->device_seconds = !status && s->cycle ? device_cycle_seconds(s, n_drafts, n_cycles) : 0;
    pthread_mutex_unlock(&s->engine->mutex);
    const double start = monotonic_seconds();
    n_tokens = 0;
    for (int i = 0; !status && i < n_cycles; i++) status = run_cycle(s, &n_tokens, error);
    out->seconds = (monotonic_seconds() - start) / n_cycles;
    out->tokens = (double)n_tokens / n_cycles;
    return status;
}

bee_status bee_engine_measure_cycles(bee_engine *engine, int32_t n_drafts, int32_t n_past, int32_t n_cycles,
                                     const float *profile, bee_cycle_cost *out, bee_error *error) {
    enum { MORE_CYCLES = 6 }; /* to warm up, queued ahead, and so far from the context's end that they can be */
    bee_status status = check_cycles(engine, n_drafts, n_past, n_cycles, profile, error);
    if (status) return status;
    const int64_t n_ctx = (int64_t)n_past + 1 + (int64_t)(n_cycles + MORE_CYCLES) * (n_drafts + 1) + 3 * BEE_MAX_BLOCK;
    if (n_ctx > engine->target->shape.n_ctx_train)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "the cycles may need %lld positions; the model's context holds %d",
                        (long long)n_ctx, engine->target->shape.n_ctx_train);
    bee_error local;
    if (!error) error = &local;
    bee_session *s = bee_session_open(engine, (int32_t)n_ctx, false, error);
    if (!s) return error->status;
    s->profile = profile;
    status = time_cycles(s, n_drafts, n_past, n_cycles, out, error);
    bee_session_close(s);
    return status;
}

/* ---- limits ------------------------------------------------------------------------------------- */

static bee_pass_needs pass_needs(const Ops *ops, const Model *m) {
    const Shape *s = &m->shape;
    const uint64_t queries = (uint64_t)s->n_head * s->head_size, keys = (uint64_t)s->n_head_kv * s->head_size;
    const uint64_t projections = (2 * queries + 2 * keys) * (uint64_t)s->n_embd;
    bee_pass_needs needs = {
        .weight_bytes = ops->weight_bytes(m->head),
        .kv_bytes_per_position = 2 * sizeof(uint16_t) * keys * (uint64_t)s->n_layer,
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

/* ---- what a draft costs ------------------------------------------------------------------------- */

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
    return (double)pass_needs(e->ops, e->drafter).weight_bytes / (double)pass_needs(e->ops, e->target).weight_bytes;
}

/* What matters most first; what would take too long is left to experience: a large model's passes take seconds. */
static void measure_lengths(bee_session *s, DraftCosts *costs, int n_points) {
    static const int points[] = {0, 5, 3, 7, 1, 4, 2, 6}; /* 1, 8, 4, 16, 2, 6, 3 and 12 rows */
    static const double MOST_SECONDS = 0.4;
    const double end = monotonic_seconds() + MOST_SECONDS;
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        const int point = points[i];
        if (point >= n_points || (point && monotonic_seconds() + usual_cost(costs->pass[0], point) > end)) continue;
        measure_length(s, cost_rows[point], &costs->pass[point], &costs->draft[cost_rows[point] - 1]);
    }
}

static bee_status measure_costs(bee_engine *engine, bee_error *error) {
    DraftCosts *costs = &engine->costs;
    const int context = engine->target->shape.n_ctx_train;
    int n_points = 0;
    while (n_points < COST_POINTS && cost_rows[n_points] <= BEE_MAX_BLOCK && cost_rows[n_points] <= context) n_points++;
    const int most = cost_rows[n_points - 1];
    bee_error local;
    if (!error) error = &local;
    bee_session *s = bee_session_open(engine, most, false, error);
    if (!s) return error->status;
    read_made_up(s, 0, most);
    measure_lengths(s, costs, n_points);
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
    memcpy(engine->costs.draft, known->draft, sizeof known->draft);
    return BEE_OK;
}

bee_status open_costs(bee_engine *engine, const bee_costs *known, bee_error *error) {
    const bee_status status = known ? take_costs(engine, known, error) : measure_costs(engine, error);
    if (status) return status;
    engine->costs.longest =
        engine->drafter && engine->target->shape.n_ctx_train > 1 ? engine->drafter->shape.block_size - 1 : 0;
    costs_complete(&engine->costs, share_of_draft(engine));
    return BEE_OK;
}

void bee_engine_costs(const bee_engine *engine, bee_costs *out) {
    memcpy(out->pass, engine->costs.pass, sizeof out->pass);
    memcpy(out->draft, engine->costs.draft, sizeof out->draft);
}
