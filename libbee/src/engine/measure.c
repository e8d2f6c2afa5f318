#include "measure.h"

#include <stdlib.h>

#include "clock.h"
#include "device_cycle.h"
#include "draft/sources.h"
#include "error.h"
#include "inspect.h"
#include "snapshots.h"

static int compare_seconds(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, compare_seconds);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

void time_cycle(bee_session *s, int n_rows, bool drafts, double *pass_seconds, double *draft_seconds) {
    static const bee_sampling greedy = {.temperature = 0, .top_p = 1};
    bee_engine *e = s->engine;
    Choice choices[BEE_MAX_PASS_ROWS];
    int32_t tokens[BEE_MAX_BLOCK];
    const int cached = s->n_cached;
    for (int i = 0; i < n_rows; i++)
        choices[i] = (Choice){.sampling = &greedy, .position = cached + i + 1, .logits_row = i};
    pthread_mutex_lock(&e->mutex);
    drafts_make_room(e, s, BEE_MAX_PASS_ROWS);
    const double start = monotonic_seconds();
    evaluate_rows(s, n_rows, true, choices);
    const double passed = monotonic_seconds();
    if (drafts) {
        s->n_cached = cached + 2;
        drafts_forget(s, s->n_cached);
        draft_sources[drafting_model(e)]->propose(
            e, &(DraftOrder){s, s->tokens[cached], &greedy, n_rows - 1, 0, tokens, 0}, 1);
    }
    *pass_seconds = passed - start;
    *draft_seconds = drafts ? monotonic_seconds() - passed : 0;
    s->n_cached = cached;
    cache_set_states(s->cache, cached); /* which ones, does not matter here */
    drafts_forget(s, cached);
    pthread_mutex_unlock(&e->mutex);
}

bool can_draft(const bee_engine *e, int n) { return n > 0 && n <= draft_sources[drafting_model(e)]->longest(e); }

void read_made_up(bee_session *s, int n_past, int n_more) {
    for (int i = 0; i < n_past + n_more; i++) s->tokens[i] = i * 37 % s->engine->target->shape.n_vocab;
    pthread_mutex_lock(&s->engine->mutex);
    while (s->n_cached < n_past) {
        const int left = n_past - s->n_cached;
        evaluate_rows(s, left < BEE_MAX_PASS_ROWS ? left : BEE_MAX_PASS_ROWS, false, NULL);
    }
    pthread_mutex_unlock(&s->engine->mutex);
}

/* Sizes of passes, and what they took after n_past tokens: [size][turn]. Drafts: NULL where none are wanted. */
typedef struct Measurement {
    const int32_t *n_rows;
    int n_sizes, n_past, repeats;
    double *passes, *drafts;
} Measurement;

static int longest_pass(const Measurement *m) {
    int most = 0;
    for (int i = 0; i < m->n_sizes; i++) most = m->n_rows[i] > most ? m->n_rows[i] : most;
    return most;
}

static void measure_session(bee_session *s, const Measurement *m) {
    read_made_up(s, m->n_past, longest_pass(m));
    for (int turn = 0; turn < m->repeats; turn++)
        for (int i = 0; i < m->n_sizes; i++) {
            double draft;
            const int at = i * m->repeats + turn, n = m->n_rows[i];
            time_cycle(s, n, m->drafts && can_draft(s->engine, n - 1), &m->passes[at],
                       m->drafts ? &m->drafts[at] : &draft);
        }
}

static bee_status check_measurement(const bee_engine *e, const Measurement *m, bee_error *error) {
    bool fits = m->n_past >= 0 && m->repeats >= 1 && m->repeats <= 10000 && m->n_sizes >= 1 && m->n_sizes <= 100;
    for (int i = 0; fits && i < m->n_sizes; i++) fits = m->n_rows[i] >= 1 && m->n_rows[i] <= BEE_MAX_PASS_ROWS;
    if (!fits)
        return bee_fail(error, BEE_ERROR_ARGUMENT,
                        "n_rows must lie between 1 and %d, n_past be at least 0, repeats between 1 and 10000, and "
                        "n_sizes between 1 and 100",
                        BEE_MAX_PASS_ROWS);
    if (m->n_past <= e->target->shape.n_ctx_train - longest_pass(m)) return BEE_OK;
    return bee_fail(error, BEE_ERROR_ARGUMENT, "n_past + n_rows is %lld; the model's context holds %d",
                    (long long)m->n_past + longest_pass(m), e->target->shape.n_ctx_train);
}

/* The medians; draft_seconds NULL: no drafts are wanted. */
static bee_status measure(bee_engine *engine, Measurement m, double *pass_seconds, double *draft_seconds,
                          bee_error *error) {
    bee_status status = check_measurement(engine, &m, error);
    if (status) return status;
    bee_error local;
    if (!error) error = &local;
    bee_session *s = bee_session_open(engine, m.n_past + longest_pass(&m), false, error);
    if (!s) return error->status;
    s->apart = true;
    const size_t n = (size_t)m.n_sizes * (size_t)m.repeats;
    double *times = malloc(2 * n * sizeof *times);
    m.passes = times;
    m.drafts = draft_seconds ? times + n : NULL;
    if (times) measure_session(s, &m);
    for (int i = 0; times && i < m.n_sizes; i++) {
        pass_seconds[i] = median(m.passes + i * m.repeats, m.repeats);
        if (m.drafts) draft_seconds[i] = median(m.drafts + i * m.repeats, m.repeats);
    }
    bee_session_close(s);
    if (!times) return bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
    free(times);
    return engine_status(engine, error);
}

bee_status bee_engine_measure(bee_engine *engine, int32_t n_rows, int32_t n_past, int32_t repeats, double *pass_seconds,
                              double *draft_seconds, bee_error *error) {
    const Measurement m = {.n_rows = &n_rows, .n_sizes = 1, .n_past = n_past, .repeats = repeats};
    return measure(engine, m, pass_seconds, draft_seconds, error);
}

bee_status bee_engine_measure_passes(bee_engine *engine, const int32_t *n_rows, int32_t n_sizes, int32_t n_past,
                                     int32_t repeats, double *pass_seconds, bee_error *error) {
    const Measurement m = {.n_rows = n_rows, .n_sizes = n_sizes, .n_past = n_past, .repeats = repeats};
    return measure(engine, m, pass_seconds, NULL, error);
}

/* Whether cycles of so many drafts can run on the device without the host. */
static bool runs_whole(const bee_engine *e, int n_drafts) {
    return e->ops->device && (!n_drafts || draft_sources[drafting_model(e)]->on_device);
}

/* Cycles that count for nothing have moved the states of recurrent layers on: from the last saved one, rows are read
 * again. */
static void read_states_again(bee_session *s) {
    const int n = s->n_cached;
    s->n_cached = snapshots_reach(s, n);
    snapshots_go_to(s, s->n_cached);
    while (s->n_cached < n) {
        const int left = n - s->n_cached;
        evaluate_rows(s, left < BEE_MAX_PASS_ROWS ? left : BEE_MAX_PASS_ROWS, false, NULL);
    }
}

double time_queued_cycles(bee_session *s, int n_drafts, int n_cycles) {
    pthread_mutex_lock(&s->engine->mutex);
    device_cycle_drop(s);
    snapshots_keep(s, true);
    const double seconds = device_cycle_seconds(s, n_drafts, n_cycles);
    read_states_again(s);
    pthread_mutex_unlock(&s->engine->mutex);
    return seconds;
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
    if (profile && !runs_whole(e, n_drafts))
        return bee_fail(error, BEE_ERROR_UNSUPPORTED,
                        "only cycles that run on a device as a whole draw accepted drafts from a profile");
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
                                 .speculation =
                                     n_drafts ? draft_sources[drafting_model(s->engine)]->mode : BEE_SPECULATION_OFF,
                                 .draft_length = n_drafts,
                                 .sampling = {.temperature = 0, .top_p = 1},
                                 .penalties = {.repetition = 1}};
    int32_t n_tokens = 0;
    bee_status status = bee_session_begin(s, &request, error);
    for (int i = 0; !status && i < WARM_UP; i++) status = run_cycle(s, &n_tokens, error);
    out->device_seconds = !status && runs_whole(s->engine, n_drafts) ? time_queued_cycles(s, n_drafts, n_cycles) : 0;
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
    s->apart = true;
    s->profile = profile;
    status = time_cycles(s, n_drafts, n_past, n_cycles, out, error);
    bee_session_close(s);
    return status;
}
