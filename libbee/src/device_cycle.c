#include "device_cycle.h"

#include "dflash_draft.h"

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
    e->ops->device->cycle_queue(e->backend, s->cycle, cycle_body, &passes, &input, n_drafts);
}

static void begin(bee_session *s) {
    bee_engine *e = s->engine;
    const CycleState state = {.sampling = s->sampling,
                              .cache = s->cache,
                              .draft_cache = s->draft_cache,
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

bool device_cycle_possible(const bee_session *s, int n_drafts) {
    if (!s->cycle || !session_decodes(s) || full_path_active(&s->full)) return false;
    return !n_drafts || drafter_is_ready(s);
}

/* Where what comes next depends on this cycle's tokens, it cannot be queued behind it: a constraint may call for masks,
 * "auto" may choose another source, and features that are kept for a drafter must be taken from the pass's memory. */
static bool goes_on_alike(const bee_session *s, int n_drafts) {
    if (s->constrained || s->features) return false;
    if (s->speculation == BEE_SPECULATION_DFLASH)
        return n_drafts > 0 && n_drafts == s->draft_length && s->n_tokens + 3 * BEE_MAX_BLOCK < s->n_ctx &&
               s->max_tokens - s->stats.output_tokens > 3 * BEE_MAX_BLOCK;
    return s->speculation == BEE_SPECULATION_OFF;
}

bool device_cycle_run(bee_session *s, int n_drafts, CycleOutcome *out) {
    bee_engine *e = s->engine;
    const bool queued = device_cycle_queued(s);
    if (!queued && (n_drafts || !has_room_for_features(s, 1))) project_features(e, &s, 1);
    if (!queued) begin(s);
    const double start = monotonic_seconds();
    if (!queued) queue(s, n_drafts);
    if (goes_on_alike(s, n_drafts)) queue(s, n_drafts);
    if (!e->ops->device->cycle_read(e->backend, s->cycle, out)) return false;
    /* A pass like others. Behind another cycle it would not be: the caller's time would be part of its own. */
    if (!queued && !n_drafts) costs_observe_pass(&e->costs, 1, false, monotonic_seconds() - start);
    if (out->n_new || !queued) return true;
    /* The device found an end where the host sees none: logits behind a draft that are not finite, which may be sound
     * behind another token. */
    device_cycle_drop(s);
    return device_cycle_run(s, n_drafts, out);
}

void device_cycle_drop(bee_session *s) {
    CycleOutcome outcome;
    while (s->cycle && s->engine->ops->device->cycle_queued(s->cycle))
        if (!s->engine->ops->device->cycle_read(s->engine->backend, s->cycle, &outcome)) return;
}

double device_cycle_seconds(bee_session *s, int n_drafts, int n_cycles) {
    device_cycle_drop(s);
    if (n_drafts) project_features(s->engine, &s, 1);
    begin(s);
    const double start = monotonic_seconds();
    for (int i = 0; i < n_cycles; i++) queue(s, n_drafts);
    begin(s); /* waits for them, and goes back */
    return (monotonic_seconds() - start) / n_cycles;
}
