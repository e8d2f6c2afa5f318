/* Drafts by the block that belongs to the target and predicts a further token (MTP).
 *
 * It reads the embedding of a token beside what the target made of the token before, and attends to what it read of the
 * text so far. Row p of its cache belongs to the pair of what the target made at position p and the token at p + 1: the
 * last row of the text is therefore the first draft's. Each further draft goes on from what the block itself made of
 * the one before, in a pass of its own, and writes its row behind the text's, where the next pair will overwrite it.
 * What the target makes waits in the session as a drafter's features do (dflash.h). */
#include "dflash.h"

/* One token of each order: the j-th draft behind the text. Logits of order i's j-th draft are row i * most + j. */
static void draft_one(bee_engine *e, DraftOrder *orders, int n, int j, int most) {
    Row rows[BEE_MAX_PASS_ROWS];
    int32_t head_rows[BEE_MAX_PASS_ROWS];
    Choice choices[BEE_MAX_PASS_ROWS];
    Workspace work = e->draft_work;
    work.logits += (size_t)j * work.logit_stride;
    if (n > 1) work.logit_stride *= (size_t)most;
    for (int i = 0; i < n; i++) {
        const DraftOrder *order = &orders[i];
        const int position = order->session->n_cached - 1 + j;
        const int32_t token = !j ? order->last_token : order->drafts[(j <= order->n ? j : order->n) - 1];
        head_rows[i] = i;
        rows[i] = (Row){dflash_of(order->session)->cache, token, position, position + 1};
        choices[i] = (Choice){.sampling = order->sampling, .position = position + 2, .logits_row = i};
    }
    PredictPass pass = {.ops = e->ops,
                        .model = e->drafter,
                        .work = &work,
                        .rows = rows,
                        .n_rows = n,
                        .hidden = j ? work.hidden : e->work.features,
                        .hidden_stride = j ? work.embd_stride : e->work.feature_stride,
                        .own = j > 0,
                        .variant = n > 1 ? most * BEE_MAX_BLOCK + j : j,
                        .head_rows = head_rows,
                        .n_head_rows = n,
                        .choices = choices};
    predict_forward(e->backend, &pass);
    for (int i = 0; i < n; i++)
        if (j < orders[i].n) orders[i].drafts[j] = choices[i].token < 0 ? 0 : choices[i].token;
}

/* All rows of the text but the last, which drafts, are read before. */
static void draft(bee_engine *e, DraftOrder *orders, int n) {
    const size_t stride = e->work.feature_stride;
    bee_session *sessions[BEE_MAX_PASS_ROWS];
    int most = 0;
    for (int i = 0; i < n; i++) {
        sessions[i] = orders[i].session;
        most = orders[i].n > most ? orders[i].n : most;
    }
    project_features(e, sessions, n, 1);
    for (int i = 0; i < n; i++) {
        Dflash *d = dflash_of(sessions[i]);
        e->ops->buffer_move(e->backend, e->work.features + (size_t)i * stride, d->waiting, stride * sizeof(float));
        d->n_injected++;
        d->n_waiting = 0;
        orders[i].row = i * most;
    }
    for (int j = 0; j < most; j++) draft_one(e, orders, n, j, most);
}

/* ---- the source ----------------------------------------------------------------------------------- */

static int longest(const bee_engine *e) { return e->predicts ? e->drafter->shape.block_size - 1 : 0; }

static bool session_new(bee_session *s) { return features_new(s, SOURCE_MTP); }

static void session_free(bee_session *s) { features_free(s, SOURCE_MTP); }

static bool offer(bee_session *s, int n_sessions, int n_forced, DraftOffer *out) {
    const bee_engine *e = s->engine;
    if (n_forced || !drafter_is_ready(s) || !dflash_of(s)->n_waiting) return false;
    *out = offer_block(&e->costs, &e->draft_costs[SOURCE_MTP], &s->chances[SOURCE_MTP], n_sessions);
    return true;
}

static bool propose(bee_engine *e, DraftOrder *orders, int n_orders) {
    bee_session *sessions[BEE_MAX_PASS_ROWS];
    DraftOrder drafting[BEE_MAX_PASS_ROWS];
    int places[BEE_MAX_PASS_ROWS], n = 0, n_drafting = 0, n_waiting = 0;
    for (int i = 0; i < n_orders; i++) {
        bee_session *s = orders[i].session;
        if (orders[i].n) {
            n_waiting += dflash_of(s)->n_waiting;
            places[n_drafting] = i;
            drafting[n_drafting++] = orders[i];
        } else if (!has_room_for_features(s, orders[i].n_rows)) {
            sessions[n++] = s;
        }
    }
    if (n) project_features(e, sessions, n, 0);
    if (n_drafting) draft(e, drafting, n_drafting);
    for (int i = 0; i < n_drafting; i++) orders[places[i]].row = drafting[i].row;
    return !n && n_waiting <= n_drafting * BEE_MAX_BLOCK;
}

static void observe(bee_session *s, const DraftOutcome *outcome) {
    chances_observe_block(&s->chances[SOURCE_MTP], &s->engine->usual[SOURCE_MTP], outcome->drafted,
                          outcome->n_tokens - 1);
}

/* Of heads that were trained with their model. */
static const double first_chances[BEE_MAX_BLOCK] = {0.7, 0.6, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4,
                                                    0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4};

const DraftSource mtp_source = {
    .name = "mtp",
    .mode = BEE_SPECULATION_MTP,
    .is_model = true,
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
