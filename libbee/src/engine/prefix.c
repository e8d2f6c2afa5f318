#include "prefix.h"

#include "draft/sources.h"
#include "snapshots.h"

/* Tokens that are worth a copy of a chunk, or a pass that somebody waits for. */
enum { LEAST_BORROWED = 32 };

static int least(int a, int b) { return a < b ? a : b; }

static int common_tokens(const int32_t *a, const int32_t *b, int most) {
    int n = 0;
    while (n < most && a[n] == b[n]) n++;
    return n;
}

/* Positions from here on were never written since the first one was. A pass may have written as many rows behind what
 * was committed. */
static int written(const bee_session *s) {
    const int now = s->n_cached + BEE_MAX_PASS_ROWS;
    return s->n_written > now ? s->n_written : now;
}

/* Whether a token behind the holder's first n positions finds all that it sees: layers with a window have forgotten
 * what lies far behind. */
static bool reaches_back(const bee_session *holder, const bee_session *asking, int n) {
    const CacheShape shape = shape_cache(&holder->engine->target->shape);
    bool reaches = cache_reaches_back(holder->cache, &shape, n, written(holder));
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (asking->uses[i] && draft_sources[i]->reaches_back)
            reaches = reaches && draft_sources[i]->reaches_back(holder, n, written(holder));
    return reaches;
}

/* Sources need their context, too. */
static int known_to_sources(const bee_session *holder, const bee_session *asking, int limit) {
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (asking->uses[i] && draft_sources[i]->known) limit = least(limit, draft_sources[i]->known(holder));
    return limit;
}

/* Whether a device may be changing the session's states, also behind a request that was cancelled. */
static bool under_way(const bee_session *s) { return s->cycle && s->engine->ops->device->cycle_queued(s->cycle) > 0; }

int prefix_held(const bee_session *holder, const bee_session *asking, const int32_t *prompt, int n_prompt) {
    const int limit = known_to_sources(holder, asking, least(holder->n_cached, n_prompt - 1));
    int n = common_tokens(holder->tokens, prompt, limit);
    n = under_way(holder) ? snapshots_saved(holder, n) : snapshots_reach(holder, n);
    return reaches_back(holder, asking, n) ? n : 0;
}

bool prefix_keep(bee_session *s, int n) {
    const bee_engine *e = s->engine;
    s->n_written = n ? written(s) : 0;
    s->n_cached = s->n_tokens = n;
    s->active = false;
    snapshots_go_to(s, n);
    drafts_forget(s, n);
    return e->ops->cache_own(e->backend, s->cache, n) && drafts_own(s);
}

/* ---- other sessions -------------------------------------------------------------------------------- */

/* Angles may depend on n_ctx, and windows' rings do. */
static bool may_share(const bee_session *a, const bee_session *b) {
    return a != b && !a->apart && !b->apart && a->n_ctx == b->n_ctx && !a->engine->unshared;
}

PrefixOffer prefix_offered(const bee_session *s) {
    PrefixOffer best = {NULL, s->n_cached};
    for (const bee_session *other = s->engine->sessions; other; other = other->next) {
        if (!may_share(s, other)) continue;
        const int n = prefix_held(other, s, s->tokens, s->n_tokens);
        if (n >= s->n_cached + LEAST_BORROWED && n > best.n) best = (PrefixOffer){other, n};
    }
    return best;
}

void prefix_take(bee_session *s, PrefixOffer offer) {
    const bee_engine *e = s->engine;
    const bee_session *from = offer.holder;
    if (!from) return;
    e->ops->cache_take(e->backend, s->cache, from->cache, offer.n);
    snapshots_take(s, from, offer.n);
    drafts_take(s, from, offer.n);
    s->stats.reused_tokens += offer.n - s->n_cached;
    s->stats.shared_tokens += offer.n - s->n_cached;
    s->n_cached = offer.n;
    s->n_written = s->n_written > written(from) ? s->n_written : written(from);
}

int prefix_awaited(const bee_session *s, const bee_session *reader, int n) {
    const int limit = least(reader->n_tokens, s->n_tokens - 1);
    if (!may_share(s, reader) || limit < n + LEAST_BORROWED) return 0;
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (s->uses[i] && draft_sources[i]->known &&
            !(reader->uses[i] && draft_sources[i]->known(reader) == reader->n_cached))
            return 0;
    const int common = common_tokens(s->tokens, reader->tokens, limit);
    return common > reader->n_cached && common >= n + LEAST_BORROWED ? common : 0;
}
