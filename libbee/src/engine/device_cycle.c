#include "device_cycle.h"

#include "clock.h"
#include "draft/dflash.h"
#include "draft/sources.h"
#include "snapshots.h"

/* The passes of one cycle. Their rows are made on the device; the arrays here only stand for them. */
typedef struct Passes {
    const DeviceOps *device;
    int n_drafts;
    TargetPass verify;
    DraftPass draft;
    InjectPass inject;
} Passes;

static void cycle_body(Worker *worker, void *argument) {
    Passes *p = argument;
    if (p->n_drafts) {
        p->device->cycle_draft_rows(worker);
        draft_body(worker, &p->draft);
    }
    p->device->cycle_verify_rows(worker);
    target_body(worker, &p->verify);
    p->device->cycle_accept(worker);
    if (p->n_drafts) inject_body(worker, &p->inject);
}

static void queue(bee_session *s, int n_drafts) {
    bee_engine *e = s->engine;
    const Row rows[1] = {{0}};
    Choice choices[1] = {{0}};
    const int32_t index[BEE_MAX_PASS_ROWS] = {0};
    const int n = n_drafts + 1;
    Passes passes = {.device = e->ops->device,
                     .n_drafts = n_drafts,
                     .verify = {.ops = e->ops,
                                .model = e->target,
                                .work = &e->work,
                                .rows = rows,
                                .n_rows = n,
                                .taps = e->taps,
                                .n_taps = e->n_taps,
                                .head_rows = index,
                                .n_head_rows = n,
                                .choices = choices},
                     .draft = {.ops = e->ops,
                               .model = e->drafter,
                               .work = &e->draft_work,
                               .rows = rows,
                               .n_rows = n,
                               .head_rows = index + 1,
                               .n_head_rows = n_drafts,
                               .choices = choices},
                     .inject = {.ops = e->ops,
                                .model = e->drafter,
                                .work = &e->draft_work,
                                .features = e->work.features,
                                .feature_stride = e->work.feature_stride,
                                .feature_rows = index,
                                .rows = rows,
                                .n_rows = n}};
    const RunInput input = {.model = e->target, .index = index};
    const int n_before = e->ops->device->cycle_queued(s->cycle);
    e->ops->device->cycle_queue(e->backend, s->cycle, cycle_body, &passes, &input, n_drafts);
    if (!n_drafts && s->uses[SOURCE_DFLASH]) move_features(s, 0, 1, n_before);
}

static void begin(bee_session *s) {
    bee_engine *e = s->engine;
    const CycleState state = {.sampling = s->sampling,
                              .cache = s->cache,
                              .draft_cache = dflash_of(s) ? dflash_of(s)->cache : NULL,
                              .last_token = s->tokens[s->n_tokens - 1],
                              .n_cached = s->n_cached,
                              .output_left = s->max_tokens - s->stats.output_tokens,
                              .context_left = s->n_ctx - s->n_tokens,
                              .stop_tokens = s->stop_tokens,
                              .n_stop_tokens = s->n_stop_tokens,
                              .mask_token = e->drafter ? e->drafter->shape.mask_token : 0,
                              .causal = e->drafter && e->drafter->shape.causal,
                              .profile = s->profile};
    e->ops->device->cycle_set(e->backend, s->cycle, &state);
}

/* Sources that must be told of rows are told by the host, but for the drafter. */
static bool needs_host(const bee_session *s, const DraftSource *source) {
    if (source && !source->on_device) return true;
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (s->uses[i] && draft_sources[i]->keep && !draft_sources[i]->on_device) return true;
    return false;
}

bool device_cycle_possible(const bee_session *s, const DraftSource *source, int n_drafts) {
    if (!s->cycle || !session_decodes(s) || full_path_active(&s->full) || needs_host(s, source)) return false;
    return !n_drafts || drafter_is_ready(s);
}

/* Near the end, drafts are fewer. */
static bool has_room_for_drafts(const bee_session *s) {
    return s->n_tokens + 3 * BEE_MAX_BLOCK < s->n_ctx && s->max_tokens - s->stats.output_tokens > 3 * BEE_MAX_BLOCK;
}

/* Whether "auto" may choose the next cycle before it knows this one: where the choice repeats what the last cycle did,
 * and nothing urgent is in sight. To be late now and then costs a few per cent (an estimate), which only short cycles
 * gain back. */
static bool choice_may_be_early(const bee_session *s, const DraftSource *source, int n_drafts, bool urgent) {
    const bee_engine *e = s->engine;
    if ((source && !source->on_device) || source != s->last_source || urgent) return false;
    return cost_of_pass(&e->costs, n_drafts + 1) +
               cost_of_draft(&e->draft_costs[SOURCE_DFLASH], &e->costs, n_drafts, 1) <
           e->short_cycle;
}

/* A constraint may call for masks, features for the host must be taken from the pass's memory before the next, and
 * states that are to be saved, before the next changes them. */
bool device_cycle_goes_on(const bee_session *s, const DraftSource *source, int n_drafts, bool urgent) {
    if (s->constrained || s->features || snapshots_due(s)) return false;
    if (s->speculation == BEE_SPECULATION_OFF) return true;
    if (n_drafts ? !has_room_for_drafts(s) : !has_room_for_features(s, 2)) return false;
    if (s->speculation == BEE_SPECULATION_DFLASH) return n_drafts > 0 && n_drafts == s->draft_length;
    return choice_may_be_early(s, source, n_drafts, urgent);
}

bool device_cycle_run(bee_session *s, int n_drafts, bool ahead, CycleOutcome *out) {
    bee_engine *e = s->engine;
    const bool queued = device_cycle_queued(s);
    if (!queued && (n_drafts || !has_room_for_features(s, 1))) project_features(e, &s, 1, 0);
    if (!queued) begin(s);
    const double start = monotonic_seconds();
    if (!queued) queue(s, n_drafts);
    if (ahead) queue(s, n_drafts);
    s->n_ahead += ahead;
    if (!e->ops->device->cycle_read(e->backend, s->cycle, out)) return false;
    e->unfinished = ahead || out->n_drafts > 0; /* the projection runs behind the result */
    /* A pass like others. Behind another cycle it would not be: the caller's time would be part of its own. */
    if (!queued && !n_drafts) pass_costs_observe(&e->costs, 1, false, monotonic_seconds() - start);
    if (out->n_new || !queued) return true;
    /* The device found an end where the host sees none: logits behind a draft that are not finite, which may be sound
     * behind another token. */
    device_cycle_drop(s);
    return device_cycle_run(s, n_drafts, ahead, out);
}

void device_cycle_commit(bee_session *s, int n_drafts, int n_rows) {
    if (n_drafts)
        dflash_of(s)->n_injected = s->n_cached + n_rows;
    else if (s->uses[SOURCE_DFLASH] && drafter_is_ready(s))
        dflash_of(s)->n_waiting += n_rows;
}

void device_cycle_drop(bee_session *s) {
    CycleOutcome outcome;
    while (s->cycle && s->engine->ops->device->cycle_queued(s->cycle))
        if (!s->engine->ops->device->cycle_read(s->engine->backend, s->cycle, &outcome)) return;
}

double device_cycle_seconds(bee_session *s, int n_drafts, int n_cycles) {
    double start = 0, end = 0;
    device_cycle_drop(s);
    if (n_drafts) project_features(s->engine, &s, 1, 0);
    begin(s);
    for (int round = 0; round < 2; round++) { /* the first one records what the device has not run yet */
        start = monotonic_seconds();
        for (int i = 0; i < n_cycles; i++) queue(s, n_drafts);
        begin(s); /* waits for them, and goes back */
        end = monotonic_seconds();
    }
    return (end - start) / n_cycles;
}
