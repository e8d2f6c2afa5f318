/* Looking inside: logits, features and drafts for tests and training, and the costs of passes. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "error.h"

/* Runs tokens [s->n_cached, s->n_cached + n) of the session; logits of every row, or none. */
static void evaluate_rows(bee_session *s, int n, bool want_logits) {
    bee_engine *e = s->engine;
    Row rows[BEE_MAX_PASS_ROWS];
    int32_t index[BEE_MAX_PASS_ROWS];
    for (int i = 0; i < n; i++) {
        const int position = s->n_cached + i;
        rows[i] = (Row){s->cache, s->tokens[position], position, position + 1};
        index[i] = i;
    }
    TargetPass pass = {.ops = e->ops,
                       .model = e->target,
                       .work = &e->work,
                       .rows = rows,
                       .n_rows = n,
                       .taps = e->taps,
                       .n_taps = e->n_taps,
                       .head_rows = index,
                       .n_head_rows = want_logits ? n : 0};
    target_forward(e->backend, &pass);
    const size_t size = (size_t)e->n_taps * e->target->shape.n_embd;
    for (int i = 0; s->features && i < n; i++)
        memcpy(s->features + (size_t)(s->n_cached + i) * size, e->work.features + i * e->work.feature_stride,
               size * sizeof(float));
    if (e->drafter && s->n_injected == s->n_cached) {
        for (int i = 0; i < n; i++) rows[i].cache = s->draft_cache;
        InjectPass inject = {e->ops, e->drafter, &e->draft_work, e->work.features, e->work.feature_stride, index,
                             rows,   n};
        inject_forward(e->backend, &inject);
        s->n_injected += n;
    }
    s->n_cached += n;
}

static bee_status check_evaluate(const bee_session *s, const int32_t *tokens, int32_t n, int32_t rows,
                                 bee_error *error) {
    if (n < 1 || n > s->n_ctx)
        return bee_fail(error, BEE_ERROR_CONTEXT, "n is %d; the context holds 1 to %d tokens", n, s->n_ctx);
    if (rows < 1 || rows > BEE_MAX_PASS_ROWS)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "rows_per_pass is %d; it must lie between 1 and %d", rows,
                        BEE_MAX_PASS_ROWS);
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= s->engine->target->shape.n_vocab)
            return bee_fail(error, BEE_ERROR_ARGUMENT, "token %d is %d; the vocabulary has ids 0 to %d", i, tokens[i],
                            s->engine->target->shape.n_vocab - 1);
    return BEE_OK;
}

bee_status bee_session_evaluate(bee_session *s, const int32_t *tokens, int32_t n, int32_t rows_per_pass, float *logits,
                                bee_error *error) {
    const bee_status status = check_evaluate(s, tokens, n, rows_per_pass, error);
    if (status) return status;
    bee_engine *e = s->engine;
    const size_t n_vocab = (size_t)e->target->shape.n_vocab;
    pthread_mutex_lock(&e->mutex);
    s->active = false;
    memmove(s->tokens, tokens, (size_t)n * sizeof *tokens);
    s->n_tokens = n;
    s->n_cached = s->n_injected = 0;
    while (s->n_cached < n) {
        const int from = s->n_cached, rows = n - from < rows_per_pass ? n - from : rows_per_pass;
        evaluate_rows(s, rows, logits != NULL);
        for (int i = 0; logits && i < rows; i++)
            memcpy(logits + (size_t)(from + i) * n_vocab, e->work.logits + i * e->work.logit_stride,
                   n_vocab * sizeof(float));
    }
    pthread_mutex_unlock(&e->mutex);
    return BEE_OK;
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

/* One draft block after the session's tokens. */
static void draft_rows(bee_session *s, int32_t last_token, int n, int32_t *drafts, float *logits) {
    static const bee_sampling greedy = {.temperature = 0, .top_p = 1};
    bee_engine *e = s->engine;
    Row rows[BEE_MAX_BLOCK];
    int32_t index[BEE_MAX_BLOCK];
    Choice choices[BEE_MAX_BLOCK];
    const int base = s->n_cached, block = n + 1;
    for (int b = 0; b < block; b++) {
        const int visible = e->drafter->shape.causal ? base + b + 1 : base + block;
        rows[b] = (Row){s->draft_cache, b ? e->drafter->shape.mask_token : last_token, base + b, visible};
        if (!b) continue;
        index[b - 1] = b;
        choices[b - 1] = (Choice){&greedy, base + b, b - 1, -1};
    }
    DraftPass pass = {e->ops, e->drafter, &e->draft_work, rows, block, index, n, choices};
    draft_forward(e->backend, &pass);
    const size_t n_logits = (size_t)e->drafter->n_head_rows;
    for (int i = 0; i < n; i++) {
        drafts[i] = choices[i].token;
        if (logits)
            memcpy(logits + i * n_logits, e->draft_work.logits + i * e->draft_work.logit_stride,
                   n_logits * sizeof(float));
    }
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
    bee_status status = BEE_OK;
    pthread_mutex_lock(&e->mutex);
    if (s->n_injected != s->n_cached)
        status = bee_fail(error, BEE_ERROR_ARGUMENT,
                          "the session's tokens ran without speculation, so the drafter lacks their features");
    else
        draft_rows(s, last_token, n, drafts, logits);
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

/* Times one target pass of n_rows at the session's end, without the projection for the drafter, then takes its rows
 * back. */
static double time_pass(bee_session *s, int n_rows) {
    const int cached = s->n_cached, injected = s->n_injected;
    s->n_injected = -1;
    pthread_mutex_lock(&s->engine->mutex);
    const double start = monotonic_seconds();
    evaluate_rows(s, n_rows, true);
    const double seconds = monotonic_seconds() - start;
    pthread_mutex_unlock(&s->engine->mutex);
    s->n_cached = cached;
    s->n_injected = injected;
    return seconds;
}

static bee_status time_draft(bee_session *s, int n_drafts, double *seconds, bee_error *error) {
    int32_t drafts[BEE_MAX_BLOCK];
    const double start = monotonic_seconds();
    const bee_status status = bee_session_draft(s, s->tokens[s->n_cached], n_drafts, drafts, NULL, error);
    *seconds = monotonic_seconds() - start;
    return status;
}

/* Reads n_past made-up tokens into the session and puts n_more behind them. */
static void read_made_up(bee_session *s, int n_past, int n_more) {
    for (int i = 0; i < n_past + n_more; i++) s->tokens[i] = i * 37 % s->engine->target->shape.n_vocab;
    s->n_cached = s->n_injected = 0;
    while (s->n_cached < n_past) {
        const int left = n_past - s->n_cached;
        pthread_mutex_lock(&s->engine->mutex);
        evaluate_rows(s, left < BEE_MAX_PASS_ROWS ? left : BEE_MAX_PASS_ROWS, false);
        pthread_mutex_unlock(&s->engine->mutex);
    }
}

/* Medians over `repeats` passes and drafts after n_past tokens; `times` has room for 2 * repeats. */
static bee_status measure_session(bee_session *s, int n_rows, int n_past, int repeats, double *times,
                                  double *pass_seconds, double *draft_seconds, bee_error *error) {
    const bee_engine *e = s->engine;
    const bool drafts = e->drafter && n_rows > 1 && n_rows <= e->drafter->shape.block_size;
    read_made_up(s, n_past, n_rows);
    bee_status status = BEE_OK;
    for (int i = 0; i < repeats && !status; i++) {
        times[i] = time_pass(s, n_rows);
        times[repeats + i] = 0;
        if (drafts) status = time_draft(s, n_rows - 1, &times[repeats + i], error);
    }
    if (status) return status;
    *pass_seconds = median(times, repeats);
    *draft_seconds = median(times + repeats, repeats);
    return BEE_OK;
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
    const bee_status status =
        times ? measure_session(s, n_rows, n_past, repeats, times, pass_seconds, draft_seconds, error)
              : bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
    free(times);
    bee_session_close(s);
    return status;
}

/* The least of several rounds over all lengths: what else the machine does can only add to a time, and would bend the
 * comparison if it fell on one length alone. */
static bee_status measure_lengths(bee_session *s, DraftCosts *costs, int longest, bee_error *error) {
    enum { ROUNDS = 5 };
    for (int round = 0; round < ROUNDS; round++) {
        for (int k = 0; k <= longest; k++) {
            double draft = 0;
            const double pass = time_pass(s, k + 1);
            const bee_status status = k ? time_draft(s, k, &draft, error) : BEE_OK;
            if (status) return status;
            if (!round || pass + draft < costs->seconds[k]) costs->seconds[k] = pass + draft;
        }
    }
    /* More drafts never cost less: where they seem to, it is noise. */
    for (int k = 1; k <= longest; k++)
        if (costs->seconds[k] < costs->seconds[k - 1]) costs->seconds[k] = costs->seconds[k - 1];
    costs->longest = longest;
    return BEE_OK;
}

bee_status measure_draft_costs(bee_engine *engine, bee_error *error) {
    const int context = engine->target->shape.n_ctx_train, longest = engine->drafter->shape.block_size - 1;
    const int n_past = context - longest - 1 < 64 ? 0 : 64;
    if (context <= longest) return BEE_OK; /* no room to draft */
    bee_error local;
    if (!error) error = &local;
    bee_session *s = bee_session_open(engine, n_past + longest + 1, false, error);
    if (!s) return error->status;
    read_made_up(s, n_past, longest + 1);
    const bee_status status = measure_lengths(s, &engine->draft_costs, longest, error);
    bee_session_close(s);
    return status;
}
