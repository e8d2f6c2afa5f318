#include "inspect.h"

#include <string.h>

#include "device_cycle.h"
#include "draft/sources.h"
#include "error.h"
#include "prefix.h"
#include "session.h"

void keep_features(bee_session *s, int first_row, int n) {
    const bee_engine *e = s->engine;
    const size_t size = (size_t)e->n_taps * e->target->shape.n_embd, stride = e->work.feature_stride;
    for (int i = 0; s->features && i < n; i++)
        e->ops->buffer_read(e->backend, s->features + (size_t)(s->n_cached + i) * size,
                            e->work.features + (size_t)(first_row + i) * stride, size * sizeof(float));
}

void evaluate_rows(bee_session *s, int n, bool want_logits, Choice *choices) {
    bee_engine *e = s->engine;
    Row rows[BEE_MAX_PASS_ROWS];
    int32_t index[BEE_MAX_PASS_ROWS];
    for (int i = 0; i < n; i++) {
        const int position = s->n_cached + i;
        rows[i] = (Row){s->cache, s->tokens[position], position, position + 1};
        index[i] = i;
    }
    drafts_make_room(e, s, n);
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
    keep_features(s, 0, n);
    drafts_keep(s, 0, n);
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
    if (!prefix_keep(s, 0)) {
        pthread_mutex_unlock(&e->mutex);
        return bee_fail(error, BEE_ERROR_MEMORY, "out of memory for keys and values that are no longer shared");
    }
    memmove(s->tokens, tokens, (size_t)n * sizeof *tokens);
    s->n_tokens = n;
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
    const DraftSource *source = draft_sources[drafting_model(e)];
    if (source->known(s) != s->n_cached) {
        status = bee_fail(error, BEE_ERROR_ARGUMENT,
                          "the session's tokens ran without speculation, so the drafter lacks their features");
    } else {
        source->propose(e, &(DraftOrder){s, last_token, &greedy, n, 0, drafts, 0}, 1);
        for (int i = 0; logits && i < n; i++)
            e->ops->buffer_read(e->backend, logits + (size_t)i * n_logits,
                                e->draft_work.logits + (size_t)i * e->draft_work.logit_stride,
                                n_logits * sizeof(float));
        status = engine_status(e, error);
    }
    pthread_mutex_unlock(&e->mutex);
    return status;
}
