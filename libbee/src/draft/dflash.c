#include "dflash.h"

#include <string.h>

/* ---- features ----------------------------------------------------------------------------------- */

bool drafter_is_ready(const bee_session *s) {
    return s->engine->drafter && s->n_injected + s->n_waiting == s->n_cached;
}

void move_features(bee_session *s, int first_row, int n, int n_before) {
    const bee_engine *e = s->engine;
    const size_t stride = e->work.feature_stride;
    if (n && drafter_is_ready(s))
        e->ops->buffer_move(e->backend, s->waiting + (size_t)(s->n_waiting + n_before) * stride,
                            e->work.features + (size_t)first_row * stride, (size_t)n * stride * sizeof(float));
}

void keep_features(bee_session *s, int first_row, int n, bool for_drafter) {
    const Workspace *work = &s->engine->work;
    const Ops *ops = s->engine->ops;
    Backend *backend = s->engine->backend;
    const size_t size = (size_t)s->engine->n_taps * s->engine->target->shape.n_embd;
    const float *rows = work->features + (size_t)first_row * work->feature_stride;
    for (int i = 0; s->features && i < n; i++)
        ops->buffer_read(backend, s->features + (size_t)(s->n_cached + i) * size,
                         rows + (size_t)i * work->feature_stride, size * sizeof(float));
    if (!for_drafter || !drafter_is_ready(s)) return;
    move_features(s, first_row, n, 0);
    s->n_waiting += n;
}

void forget_features(bee_session *s, int n) {
    if (s->n_injected > n) s->n_injected = n;
    if (s->n_injected + s->n_waiting > n) s->n_waiting = n - s->n_injected;
}

bool has_room_for_features(const bee_session *s, int n) { return s->n_waiting + n <= BEE_MAX_PASS_ROWS; }

/* Rows 0 .. n_rows - 1 of the workspace's features go to the places in the drafter's caches that `rows` name. */
static void inject(bee_engine *e, const Row *rows, int n_rows) {
    int32_t feature_rows[BEE_MAX_PASS_ROWS];
    for (int i = 0; i < n_rows; i++) feature_rows[i] = i;
    InjectPass pass = {.ops = e->ops,
                       .model = e->drafter,
                       .work = &e->draft_work,
                       .features = e->work.features,
                       .feature_stride = e->work.feature_stride,
                       .feature_rows = feature_rows,
                       .rows = rows,
                       .n_rows = n_rows};
    inject_forward(e->backend, &pass);
}

void project_features(bee_engine *e, bee_session *const *sessions, int n_sessions) {
    const size_t stride = e->work.feature_stride;
    Row rows[BEE_MAX_PASS_ROWS];
    int n_rows = 0;
    for (int i = 0; i < n_sessions; i++) {
        bee_session *s = sessions[i];
        for (int w = 0; w < s->n_waiting;) {
            const int room = BEE_MAX_PASS_ROWS - n_rows, left = s->n_waiting - w, n = left < room ? left : room;
            e->ops->buffer_move(e->backend, e->work.features + (size_t)n_rows * stride, s->waiting + (size_t)w * stride,
                                (size_t)n * stride * sizeof(float));
            for (int end = w + n; w < end; w++) {
                const int position = s->n_injected + w;
                rows[n_rows++] = (Row){s->draft_cache, s->tokens[position], position, position + 1};
            }
            if (n_rows < BEE_MAX_PASS_ROWS) continue;
            inject(e, rows, n_rows);
            n_rows = 0;
        }
        s->n_injected += s->n_waiting;
        s->n_waiting = 0;
    }
    if (n_rows) inject(e, rows, n_rows);
}

/* ---- blocks ------------------------------------------------------------------------------------- */

void draft_blocks(bee_engine *e, const DraftBlock *blocks, int n_blocks) {
    Row rows[BEE_MAX_PASS_ROWS];
    int32_t head_rows[BEE_MAX_PASS_ROWS];
    Choice choices[BEE_MAX_PASS_ROWS];
    int n_rows = 0, n_head = 0;
    for (int i = 0; i < n_blocks; i++) {
        const DraftBlock *block = &blocks[i];
        const int base = block->session->n_cached, end = base + block->n + 1;
        for (int position = base; position < end; position++) {
            const bool mask = position > base;
            if (mask) {
                head_rows[n_head] = n_rows;
                choices[n_head] = (Choice){.sampling = block->sampling, .position = position, .logits_row = n_head};
                n_head++;
            }
            rows[n_rows++] = (Row){block->session->draft_cache, mask ? e->drafter->shape.mask_token : block->last_token,
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
    for (int i = 0; i < n_blocks; i++)
        for (int d = 0; d < blocks[i].n; d++, choice++) blocks[i].drafts[d] = choice->token < 0 ? 0 : choice->token;
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

int32_t draft_allowed(bee_engine *e, const bee_sampling *sampling, int32_t position, int row, const uint32_t *mask) {
    Redraft redraft = {e, {.sampling = sampling, .position = position, .logits_row = row, .mask = mask}};
    const RunInput input = {
        .model = e->drafter, .choices = &redraft.choice, .n_choices = 1, .mask_words = (int)mask_words(e)};
    e->ops->run(e->backend, run_redraft, &redraft, &input);
    return redraft.choice.token;
}
