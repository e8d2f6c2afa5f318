#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "error.h"
#include "sample.h"

static bool session_allocate(bee_session *s, bool keep_features) {
    bee_engine *e = s->engine;
    s->tokens = malloc((size_t)s->n_ctx * sizeof *s->tokens);
    s->cache = e->ops->cache_new(e->backend, &e->target->heads, e->target->shape.n_layer, s->n_ctx);
    if (!s->tokens || !s->cache) return false;
    /* A draft pass writes its block beyond the committed tokens, so its cache has room for one more. */
    if (e->drafter) {
        s->draft_cache =
            e->ops->cache_new(e->backend, &e->drafter->heads, e->drafter->shape.n_layer, s->n_ctx + BEE_MAX_BLOCK);
        if (!s->draft_cache) return false;
    }
    if (keep_features && e->n_taps) {
        s->features = malloc((size_t)s->n_ctx * e->n_taps * e->target->shape.n_embd * sizeof(float));
        if (!s->features) return false;
    }
    return true;
}

static void session_free(bee_session *s) {
    s->engine->ops->cache_free(s->engine->backend, s->cache);
    s->engine->ops->cache_free(s->engine->backend, s->draft_cache);
    free(s->features);
    free(s->tokens);
    free(s);
}

bee_session *bee_session_open(bee_engine *engine, int32_t n_ctx, bool keep_features, bee_error *error) {
    if (!engine || n_ctx < 1 || n_ctx > engine->target->shape.n_ctx_train) {
        bee_fail(error, BEE_ERROR_ARGUMENT, "n_ctx is %d; it must lie between 1 and the model's context length, %d",
                 n_ctx, engine ? engine->target->shape.n_ctx_train : 0);
        return NULL;
    }
    bee_session *s = calloc(1, sizeof *s);
    if (!s) {
        bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
        return NULL;
    }
    s->engine = engine;
    s->n_ctx = n_ctx;
    pthread_mutex_lock(&engine->mutex);
    const bool ok = session_allocate(s, keep_features);
    pthread_mutex_unlock(&engine->mutex);
    if (ok) return s;
    session_free(s);
    bee_fail(error, BEE_ERROR_MEMORY, "out of memory for a context of %d tokens; ask for a smaller n_ctx", n_ctx);
    return NULL;
}

void bee_session_close(bee_session *s) {
    if (!s) return;
    bee_engine *e = s->engine;
    pthread_mutex_lock(&e->mutex);
    session_free(s);
    pthread_mutex_unlock(&e->mutex);
}

static bee_status check_tokens(const bee_session *s, const int32_t *tokens, int32_t n, bee_error *error) {
    const int n_vocab = s->engine->target->shape.n_vocab;
    if (!tokens || n < 1)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "the prompt is empty; it needs at least one token");
    for (int32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= n_vocab)
            return bee_fail(error, BEE_ERROR_ARGUMENT, "prompt token %d is %d; the vocabulary has ids 0 to %d", i,
                            tokens[i], n_vocab - 1);
    if (n > s->n_ctx)
        return bee_fail(error, BEE_ERROR_CONTEXT,
                        "the prompt has %d tokens, but the context holds %d; shorten it or raise n_ctx", n, s->n_ctx);
    return BEE_OK;
}

static bee_status check_request(const bee_session *s, const bee_request *r, bee_error *error) {
    const bee_engine *e = s->engine;
    const int longest = e->drafter ? e->drafter->shape.block_size - 1 : 0;
    bee_status status = check_tokens(s, r->prompt, r->n_prompt, error);
    if (!status) status = sampling_check(&r->sampling, error);
    if (status) return status;
    if (r->max_tokens < 1)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "max_tokens is %d; it must be at least 1", r->max_tokens);
    if (r->draft_length < -1 || r->draft_length > longest)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "draft_length is %d; it must lie between -1 (automatic) and %d%s",
                        r->draft_length, longest, e->drafter ? "" : ", because there is no drafter");
    if (r->n_stop_tokens < 0 || r->n_stop_tokens > BEE_MAX_STOP_TOKENS)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_stop_tokens is %d; it must lie between 0 and %d",
                        r->n_stop_tokens, BEE_MAX_STOP_TOKENS);
    if (r->n_stop_tokens && !r->stop_tokens)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "stop_tokens is missing, but n_stop_tokens is %d", r->n_stop_tokens);
    return BEE_OK;
}

/* How many tokens of the prompt the caches already hold. The last one always runs again: its logits are wanted. */
static int reusable_prefix(const bee_session *s, const bee_request *r) {
    int limit = s->n_cached < r->n_prompt - 1 ? s->n_cached : r->n_prompt - 1;
    if (s->draft_length && s->n_injected < limit) limit = s->n_injected; /* the drafter needs its context, too */
    int n = 0;
    while (n < limit && s->tokens[n] == r->prompt[n]) n++;
    return n;
}

static void start_request(bee_session *s, const bee_request *r) {
    s->draft_length = s->engine->drafter ? r->draft_length : 0;
    draft_chances_reset(&s->chances);
    const int reused = reusable_prefix(s, r);
    s->n_cached = reused;
    if (s->n_injected > reused) s->n_injected = reused;
    memmove(s->tokens, r->prompt, (size_t)r->n_prompt * sizeof *s->tokens);
    s->n_tokens = r->n_prompt;
    s->sampling = r->sampling;
    s->max_tokens = r->max_tokens;
    s->n_stop_tokens = r->n_stop_tokens;
    if (r->n_stop_tokens) memcpy(s->stop_tokens, r->stop_tokens, (size_t)r->n_stop_tokens * sizeof *s->stop_tokens);
    s->stats = (bee_stats){.prompt_tokens = r->n_prompt, .reused_tokens = reused};
    atomic_store(&s->cancelled, false);
    s->active = true;
}

bee_status bee_session_begin(bee_session *s, const bee_request *request, bee_error *error) {
    const bee_status status = check_request(s, request, error);
    if (status) return status;
    pthread_mutex_lock(&s->engine->mutex);
    start_request(s, request);
    pthread_mutex_unlock(&s->engine->mutex);
    return BEE_OK;
}

int session_draft_length(const bee_session *s) {
    if (s->n_tokens - s->n_cached != 1 || s->n_injected != s->n_cached) return 0;
    int length = s->draft_length < 0 ? draft_length_choose(&s->engine->draft_costs, &s->chances) : s->draft_length;
    /* The cycle yields one token more than it keeps drafts. */
    const int output_left = s->max_tokens - s->stats.output_tokens - 1, room = s->n_ctx - s->n_tokens;
    if (output_left < length) length = output_left;
    if (room < length) length = room;
    return length > 0 ? length : 0;
}

void bee_session_cancel(bee_session *s) { atomic_store(&s->cancelled, true); }

void bee_session_stats(const bee_session *s, bee_stats *out) {
    pthread_mutex_lock(&s->engine->mutex);
    *out = s->stats;
    pthread_mutex_unlock(&s->engine->mutex);
}

int32_t bee_session_tokens(const bee_session *s, const int32_t **tokens) {
    pthread_mutex_lock(&s->engine->mutex);
    const int32_t n = s->n_cached;
    pthread_mutex_unlock(&s->engine->mutex);
    *tokens = s->tokens;
    return n;
}
