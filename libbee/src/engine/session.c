#include "session.h"

#include <stdlib.h>
#include <string.h>

#include "device_cycle.h"
#include "draft/sources.h"
#include "error.h"
#include "prefix.h"
#include "sampling/sample.h"
#include "snapshots.h"

static bool session_allocate(bee_session *s, bool keep_features) {
    bee_engine *e = s->engine;
    s->tokens = malloc((size_t)s->n_ctx * sizeof *s->tokens);
    s->cache = cache_for(e, e->target, s->n_ctx);
    if (!s->tokens || !s->cache || !snapshots_new(s)) return false;
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (draft_sources[i]->session_new && draft_sources[i]->longest(e) && !draft_sources[i]->session_new(s))
            return false;
    if (e->ops->device && !(s->cycle = e->ops->device->cycle_new(e->backend))) return false;
    if (keep_features && e->n_taps) {
        s->features = malloc((size_t)s->n_ctx * e->n_taps * e->target->shape.n_embd * sizeof(float));
        if (!s->features) return false;
    }
    return true;
}

/* Among the engine's, under its lock. */
static void join(bee_session *s) {
    s->next = s->engine->sessions;
    s->engine->sessions = s;
}

static void leave(bee_session *s) {
    bee_session **at = &s->engine->sessions;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
}

static void session_free(bee_session *s) {
    if (s->cycle) s->engine->ops->device->cycle_free(s->engine->backend, s->cycle); /* waits for what is under way */
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (draft_sources[i]->session_free) draft_sources[i]->session_free(s);
    snapshots_free(s);
    s->engine->ops->cache_free(s->engine->backend, s->cache);
    full_path_end(&s->full);
    free(s->masks);
    free(s->features);
    free(s->tokens);
    free(s);
}

static void fail_session(const bee_engine *e, int32_t n_ctx, bee_error *error) {
    const CacheShape shape = shape_cache(&e->target->shape);
    if (shape.n_states)
        fail_to_make(e->ops, e->backend, error,
                     "out of memory for a context of %d tokens; %.2f GB of it are states of recurrent layers, whatever "
                     "n_ctx",
                     n_ctx, 1e-9 * (double)cache_state_bytes(&shape));
    else
        fail_to_make(e->ops, e->backend, error, "out of memory for a context of %d tokens; ask for a smaller n_ctx",
                     n_ctx);
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
    s->apart = keep_features; /* whoever borrows a beginning has no features of it */
    s->n_ctx = n_ctx;
    pthread_mutex_lock(&engine->mutex);
    const bool ok = session_allocate(s, keep_features);
    if (ok) {
        join(s);
    } else {
        session_free(s);
        fail_session(engine, n_ctx, error);
    }
    pthread_mutex_unlock(&engine->mutex);
    return ok ? s : NULL;
}

void bee_session_close(bee_session *s) {
    if (!s) return;
    bee_engine *e = s->engine;
    pthread_mutex_lock(&e->mutex);
    leave(s);
    session_free(s);
    pthread_mutex_unlock(&e->mutex);
}

bee_status check_tokens(const bee_engine *e, const char *name, const int32_t *tokens, int32_t n, bee_error *error) {
    const int n_vocab = e->target->shape.n_vocab;
    for (int32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= n_vocab)
            return bee_fail(error, BEE_ERROR_ARGUMENT, "%s %d is %d; the vocabulary has ids 0 to %d", name, i,
                            tokens[i], n_vocab - 1);
    return BEE_OK;
}

static bee_status check_prompt(const bee_session *s, const bee_request *r, bee_error *error) {
    if (!r->prompt || r->n_prompt < 1)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "the prompt is empty; it needs at least one token");
    if (r->n_prompt > s->n_ctx)
        return bee_fail(error, BEE_ERROR_CONTEXT,
                        "the prompt has %d tokens, but the context holds %d; shorten it or raise n_ctx", r->n_prompt,
                        s->n_ctx);
    return check_tokens(s->engine, "prompt token", r->prompt, r->n_prompt, error);
}

/* Whether the session's engine has the source and the mode asks for it. */
static bool takes_part(const bee_session *s, int source, bee_speculation mode) {
    return source_serves(draft_sources[source], mode) && draft_sources[source]->longest(s->engine) > 0;
}

static bee_status check_speculation(const bee_session *s, const bee_request *r, bee_error *error) {
    if ((int)r->speculation < BEE_SPECULATION_OFF || (int)r->speculation > BEE_SPECULATION_MTP)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "speculation is %d; bee_speculation has 0 to 4",
                        (int)r->speculation);
    if (r->speculation == BEE_SPECULATION_OFF) return BEE_OK;
    int n = 0, longest = BEE_MAX_BLOCK - 1;
    bool asks_model = false;
    for (int i = 0; i < N_DRAFT_SOURCES; i++) {
        if (!takes_part(s, i, r->speculation)) continue;
        n++;
        asks_model |= draft_sources[i]->is_model;
        if (draft_sources[i]->longest(s->engine) < longest) longest = draft_sources[i]->longest(s->engine);
    }
    if (!n)
        return bee_fail(error, BEE_ERROR_ARGUMENT,
                        r->speculation == BEE_SPECULATION_MTP
                            ? "speculation is MTP, but no block of the model's file drafts here"
                            : "speculation is DFLASH, but the engine has no drafter");
    if (r->draft_length < -1 || r->draft_length > longest)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "draft_length is %d; it must lie between -1 (automatic) and %d%s",
                        r->draft_length, longest, asks_model ? ", the drafter's block" : "");
    return BEE_OK;
}

static bee_status check_request(const bee_session *s, const bee_request *r, bee_error *error) {
    bee_status status = check_prompt(s, r, error);
    if (!status) status = sampling_check(&r->sampling, error);
    if (!status) status = check_speculation(s, r, error);
    if (!status) status = full_path_check(r, s->engine->target->shape.n_vocab, error);
    if (status) return status;
    if (r->constraint && !(r->constraint->begin && r->constraint->advance && r->constraint->commit))
        return bee_fail(error, BEE_ERROR_ARGUMENT, "the constraint lacks one of its functions");
    if (r->max_tokens < 1)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "max_tokens is %d; it must be at least 1", r->max_tokens);
    if (r->n_stop_tokens < 0 || r->n_stop_tokens > BEE_MAX_STOP_TOKENS)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_stop_tokens is %d; it must lie between 0 and %d",
                        r->n_stop_tokens, BEE_MAX_STOP_TOKENS);
    if (r->n_stop_tokens && !r->stop_tokens)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "stop_tokens is missing, but n_stop_tokens is %d", r->n_stop_tokens);
    return BEE_OK;
}

static void set_speculation(bee_session *s, const bee_request *r) {
    s->speculation = r->speculation;
    s->draft_length = r->draft_length;
    for (int i = 0; i < N_DRAFT_SOURCES; i++) {
        const DraftSource *source = draft_sources[i];
        s->uses[i] = takes_part(s, i, r->speculation) && r->draft_length;
        if (source->is_model && source->mode == r->speculation && r->draft_length < 0)
            s->draft_length = source->longest(s->engine);
        chances_begin(&s->chances[i], &s->engine->usual[i]);
    }
}

/* What the masked and the full logit path need beyond logits. */
static bool prepare_paths(bee_session *s, const bee_request *r) {
    const int n_vocab = s->engine->target->shape.n_vocab;
    if (r->constraint && !s->masks) s->masks = malloc(BEE_MAX_BLOCK * mask_words(s->engine) * sizeof *s->masks);
    return full_path_begin(&s->full, r, n_vocab, s->n_ctx) && (s->masks || !r->constraint);
}

/* False where memory runs out: then no request runs. */
static bool start_request(bee_session *s, const bee_request *r) {
    device_cycle_drop(s);
    set_speculation(s, r);
    const int reused = prefix_held(s, s, r->prompt, r->n_prompt);
    if (!prefix_keep(s, reused)) return false;
    memmove(s->tokens, r->prompt, (size_t)r->n_prompt * sizeof *s->tokens);
    s->n_tokens = r->n_prompt;
    s->sampling = r->sampling;
    s->max_tokens = r->max_tokens;
    s->n_stop_tokens = r->n_stop_tokens;
    if (r->n_stop_tokens) memcpy(s->stop_tokens, r->stop_tokens, (size_t)r->n_stop_tokens * sizeof *s->stop_tokens);
    s->constrained = r->constraint != NULL;
    if (r->constraint) s->constraint = *r->constraint;
    s->last_source = NULL;
    s->n_ahead = 0;
    s->stalled = s->free = s->watching = false;
    s->stats = (bee_stats){.prompt_tokens = r->n_prompt, .reused_tokens = reused};
    atomic_store(&s->cancelled, false);
    prefix_take(s, prefix_offered(s));
    s->active = true;
    return true;
}

bee_status bee_session_begin(bee_session *s, const bee_request *request, bee_error *error) {
    const bee_status status = check_request(s, request, error);
    if (status) return status;
    pthread_mutex_lock(&s->engine->mutex);
    const bool ok = prepare_paths(s, request) && start_request(s, request);
    pthread_mutex_unlock(&s->engine->mutex);
    return ok ? BEE_OK
              : bee_fail(error, BEE_ERROR_MEMORY,
                         "out of memory for the masks or penalties of a request, or for keys and values that it no "
                         "longer shares");
}

static int least(int a, int b) { return a < b ? a : b; }

Drafts session_choose_drafts(bee_session *s, int longest, int n_sessions, int n_forced) {
    Drafts drafts = {NULL, 0, false};
    DraftOffer offers[N_DRAFT_SOURCES];
    const DraftSource *sources[N_DRAFT_SOURCES];
    int n_offers = 0;
    if (s->speculation == BEE_SPECULATION_OFF) return drafts;
    for (int i = 0; i < N_DRAFT_SOURCES; i++) {
        if (!s->uses[i] || !draft_sources[i]->offer(s, n_sessions, n_forced, &offers[n_offers])) continue;
        drafts.urgent |= offers[n_offers].urgent;
        sources[n_offers++] = draft_sources[i];
    }
    /* The cycle yields one token more than it keeps drafts. */
    const int output_left = s->max_tokens - s->stats.output_tokens - 1;
    const int room = s->n_tokens < s->n_ctx ? s->n_ctx - s->n_tokens - 1 : 0;
    longest = least(least(longest, BEE_MAX_BLOCK - 1), least(output_left, room));
    const int fixed = s->draft_length < 0 ? -1 : least(s->draft_length, longest);
    const DraftLimits limits = {.forced = n_forced,
                                .shortest = fixed > 0 ? fixed : 0,
                                .longest = fixed < 0 ? longest : fixed,
                                .n_sessions = n_sessions};
    const DraftChoice choice = draft_choose(&s->engine->costs, offers, n_offers, &limits);
    if (choice.offer >= 0) drafts.source = sources[choice.offer];
    drafts.n = choice.length;
    return drafts;
}

void bee_session_cancel(bee_session *s) { atomic_store(&s->cancelled, true); }

void bee_session_stats(const bee_session *s, bee_stats *out) {
    pthread_mutex_lock(&s->engine->mutex);
    *out = s->stats;
    pthread_mutex_unlock(&s->engine->mutex);
}

bee_status bee_session_logprobs(const bee_session *s, int32_t i, bee_logprobs *out, bee_error *error) {
    pthread_mutex_lock(&s->engine->mutex);
    const int n = s->full.n_results;
    if (i >= 0 && i < n) *out = s->full.results[i];
    pthread_mutex_unlock(&s->engine->mutex);
    if (i >= 0 && i < n) return BEE_OK;
    return bee_fail(error, BEE_ERROR_ARGUMENT, "token %d has no log-probabilities; the last step has those of %d", i,
                    n);
}

int32_t bee_session_tokens(const bee_session *s, const int32_t **tokens) {
    pthread_mutex_lock(&s->engine->mutex);
    const int32_t n = s->n_cached;
    pthread_mutex_unlock(&s->engine->mutex);
    *tokens = s->tokens;
    return n;
}
