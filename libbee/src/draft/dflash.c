#include "dflash.h"

#include <stdlib.h>

/* ---- features ----------------------------------------------------------------------------------- */

bool drafter_is_ready(const bee_session *s) {
    const Dflash *d = dflash_of(s);
    return d && d->n_injected + d->n_waiting == s->n_cached;
}

bool has_room_for_features(const bee_session *s, int n) {
    return !dflash_of(s) || dflash_of(s)->n_waiting + n <= BEE_MAX_PASS_ROWS;
}

void move_features(bee_session *s, int first_row, int n, int n_before) {
    const bee_engine *e = s->engine;
    const Dflash *d = dflash_of(s);
    const size_t stride = e->work.feature_stride;
    if (n && drafter_is_ready(s))
        e->ops->buffer_move(e->backend, d->waiting + (size_t)(d->n_waiting + n_before) * stride,
                            e->work.features + (size_t)first_row * stride, (size_t)n * stride * sizeof(float));
}

void features_keep(bee_session *s, int first_row, int n) {
    if (!drafter_is_ready(s)) return;
    move_features(s, first_row, n, 0);
    dflash_of(s)->n_waiting += n;
}

void features_forget(bee_session *s, int n) {
    Dflash *d = dflash_of(s);
    if (d->n_injected > n) d->n_injected = n;
    if (d->n_injected + d->n_waiting > n) d->n_waiting = n - d->n_injected;
}

bool features_own(bee_session *s) {
    const bee_engine *e = s->engine;
    return e->ops->cache_own(e->backend, dflash_of(s)->cache, dflash_of(s)->n_injected);
}

/* The longer of the two injected beginnings, and the features behind it that wait there. */
void features_take(bee_session *s, const bee_session *from, int n) {
    const bee_engine *e = s->engine;
    Dflash *to = dflash_of(s);
    const Dflash *d = dflash_of(from);
    const size_t stride = e->work.feature_stride;
    if (features_known(from) < n) return;
    const int injected = d->n_injected < n ? d->n_injected : n;
    if (injected > to->n_injected) {
        e->ops->cache_take(e->backend, to->cache, d->cache, injected);
        to->n_injected = injected;
    }
    to->n_waiting = n - to->n_injected;
    if (to->n_waiting)
        e->ops->buffer_move(e->backend, to->waiting, d->waiting + (size_t)(to->n_injected - d->n_injected) * stride,
                            (size_t)to->n_waiting * stride * sizeof(float));
}

int features_known(const bee_session *s) { return dflash_of(s)->n_injected + dflash_of(s)->n_waiting; }

bool features_reach_back(const bee_session *s, int n, int written) {
    const CacheShape shape = shape_cache(&s->engine->drafter->shape);
    return cache_reaches_back(dflash_of(s)->cache, &shape, n, written);
}

/* Rows 0 .. n_rows - 1 of the workspace's features go to the places in the drafter's caches that `rows` name. */
static void inject(bee_engine *e, const Row *rows, int n_rows) {
    int32_t feature_rows[BEE_MAX_PASS_ROWS];
    for (int i = 0; i < n_rows; i++) feature_rows[i] = i;
    InjectPass inject = {.ops = e->ops,
                         .model = e->drafter,
                         .work = &e->draft_work,
                         .features = e->work.features,
                         .feature_stride = e->work.feature_stride,
                         .feature_rows = feature_rows,
                         .rows = rows,
                         .n_rows = n_rows};
    PredictPass predict = {.ops = e->ops,
                           .model = e->drafter,
                           .work = &e->draft_work,
                           .rows = rows,
                           .n_rows = n_rows,
                           .hidden = e->work.features,
                           .hidden_stride = e->work.feature_stride};
    if (e->predicts)
        predict_forward(e->backend, &predict);
    else
        inject_forward(e->backend, &inject);
}

/* The row of features at a position. A block that predicts reads the token behind it, too, where there is one yet. */
static Row row_at(const bee_session *s, int position) {
    const int behind = position + 1 < s->n_tokens ? position + 1 : position;
    return (Row){dflash_of(s)->cache, s->tokens[behind], position, position + 1};
}

void project_features(bee_engine *e, bee_session *const *sessions, int n_sessions, int n_left) {
    const size_t stride = e->work.feature_stride;
    Row rows[BEE_MAX_PASS_ROWS];
    int n_rows = 0;
    for (int i = 0; i < n_sessions; i++) {
        bee_session *s = sessions[i];
        Dflash *d = dflash_of(s);
        const int n_now = d->n_waiting > n_left ? d->n_waiting - n_left : 0;
        for (int w = 0; w < n_now;) {
            const int room = BEE_MAX_PASS_ROWS - n_rows, left = n_now - w, n = left < room ? left : room;
            e->ops->buffer_move(e->backend, e->work.features + (size_t)n_rows * stride, d->waiting + (size_t)w * stride,
                                (size_t)n * stride * sizeof(float));
            for (int end = w + n; w < end; w++) rows[n_rows++] = row_at(s, d->n_injected + w);
            if (n_rows < BEE_MAX_PASS_ROWS) continue;
            inject(e, rows, n_rows);
            n_rows = 0;
        }
        if (n_now && n_now < d->n_waiting)
            e->ops->buffer_move(e->backend, d->waiting, d->waiting + (size_t)n_now * stride, stride * sizeof(float));
        d->n_injected += n_now;
        d->n_waiting -= n_now;
    }
    if (n_rows) inject(e, rows, n_rows);
}

/* ---- blocks ------------------------------------------------------------------------------------- */

/* Drafts all orders in one pass of at most BEE_MAX_PASS_ROWS rows, n + 1 for each. Their sessions' features must all be
 * projected. */
static void draft_blocks(bee_engine *e, DraftOrder *orders, int n_orders) {
    Row rows[BEE_MAX_PASS_ROWS];
    int32_t head_rows[BEE_MAX_PASS_ROWS];
    Choice choices[BEE_MAX_PASS_ROWS];
    int n_rows = 0, n_head = 0;
    for (int i = 0; i < n_orders; i++) {
        DraftOrder *order = &orders[i];
        const int base = order->session->n_cached, end = base + order->n + 1;
        order->row = n_head;
        for (int position = base; order->n && position < end; position++) {
            const bool mask = position > base;
            if (mask) {
                head_rows[n_head] = n_rows;
                choices[n_head] = (Choice){.sampling = order->sampling, .position = position, .logits_row = n_head};
                n_head++;
            }
            rows[n_rows++] =
                (Row){dflash_of(order->session)->cache, mask ? e->drafter->shape.mask_token : order->last_token,
                      position, e->drafter->shape.causal ? position + 1 : end};
        }
    }
    DraftPass pass = {.ops = e->ops,
                      .model = e->drafter,
                      .work = &e->draft_work,
                      .rows = rows,
                      .n_rows = n_rows,
                      .head_rows = head_rows,
                      .n_head_rows = n_head,
                      .choices = choices};
    draft_forward(e->backend, &pass);
    const Choice *choice = choices;
    for (int i = 0; i < n_orders; i++)
        for (int d = 0; d < orders[i].n; d++, choice++) orders[i].drafts[d] = choice->token < 0 ? 0 : choice->token;
}

typedef struct Redraft {
    bee_engine *engine;
    Choice choice;
} Redraft;

static void run_redraft(Worker *worker, void *argument) {
    Redraft *redraft = argument;
    const bee_engine *e = redraft->engine;
    e->ops->choose(worker, e->draft_work.logits, e->draft_work.logit_stride, e->drafter->n_head_rows,
                   e->drafter->draft_tokens, &redraft->choice, 1);
}

int32_t drafter_instead(bee_engine *e, const bee_sampling *sampling, int32_t position, int row, const uint32_t *mask) {
    Redraft redraft = {e, {.sampling = sampling, .position = position, .logits_row = row, .mask = mask}};
    const RunInput input = {
        .model = e->drafter, .choices = &redraft.choice, .n_choices = 1, .mask_words = (int)mask_words(e)};
    e->ops->run(e->backend, run_redraft, &redraft, &input);
    return redraft.choice.token;
}

/* ---- the source --------------------------------------------------------------------------------- */

static int longest(const bee_engine *e) { return e->drafter && !e->predicts ? e->drafter->shape.block_size - 1 : 0; }

bool features_new(bee_session *s, SourceId source) {
    const bee_engine *e = s->engine;
    Dflash *d = s->drafting[source] = calloc(1, sizeof *d);
    if (!d) return false;
    /* A draft pass writes its block beyond the committed tokens, so the cache has room for one more. */
    d->cache = cache_for(e, e->drafter, s->n_ctx + BEE_MAX_BLOCK);
    d->waiting = e->ops->buffer_new(e->backend, BEE_MAX_PASS_ROWS * e->work.feature_stride);
    return d->cache && d->waiting;
}

void features_free(bee_session *s, SourceId source) {
    const bee_engine *e = s->engine;
    Dflash *d = s->drafting[source];
    if (!d) return;
    e->ops->cache_free(e->backend, d->cache);
    e->ops->buffer_free(e->backend, d->waiting);
    free(d);
}

static bool session_new(bee_session *s) { return features_new(s, SOURCE_DFLASH); }

static void session_free(bee_session *s) { features_free(s, SOURCE_DFLASH); }

static bool offer(bee_session *s, int n_sessions, int n_forced, DraftOffer *out) {
    (void)n_forced; /* a block goes on behind whatever stands first in it */
    const bee_engine *e = s->engine;
    if (!drafter_is_ready(s)) return false;
    *out = offer_block(&e->costs, &e->draft_costs[SOURCE_DFLASH], &s->chances[SOURCE_DFLASH], n_sessions);
    return true;
}

/* Projects the features of sessions whose drafter is about to run, and of those which have no room for this pass's. A
 * draft after a pause projects what waited in the meantime, which is not its usual cost. */
static bool propose(bee_engine *e, DraftOrder *orders, int n_orders) {
    bee_session *sessions[BEE_MAX_PASS_ROWS];
    int n = 0, n_projected = 0, n_drafting = 0;
    for (int i = 0; i < n_orders; i++) {
        bee_session *s = orders[i].session;
        n_drafting += orders[i].n > 0;
        if (!orders[i].n && has_room_for_features(s, orders[i].n_rows)) continue;
        n_projected += dflash_of(s)->n_waiting;
        sessions[n++] = s;
    }
    if (n) project_features(e, sessions, n, 0);
    if (n_drafting) draft_blocks(e, orders, n_orders);
    return n_projected <= n_drafting * BEE_MAX_BLOCK;
}

static void observe(bee_session *s, const DraftOutcome *outcome) {
    chances_observe_block(&s->chances[SOURCE_DFLASH], &s->engine->usual[SOURCE_DFLASH], outcome->drafted,
                          outcome->n_tokens - 1);
}

/* A little less than what the bundled drafter reaches. */
static const double first_chances[BEE_MAX_BLOCK] = {0.55, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5,
                                                    0.5,  0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5};

const DraftSource dflash_source = {
    .name = "dflash",
    .mode = BEE_SPECULATION_DFLASH,
    .is_model = true,
    .on_device = true,
    .first_chances = first_chances,
    .longest = longest,
    .session_new = session_new,
    .session_free = session_free,
    .forget = features_forget,
    .own = features_own,
    .take = features_take,
    .known = features_known,
    .reaches_back = features_reach_back,
    .offer = offer,
    .propose = propose,
    .instead = drafter_instead,
    .keep = features_keep,
    .observe = observe,
};
