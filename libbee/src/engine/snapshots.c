#include "snapshots.h"

enum { TOKENS_BETWEEN = 512 };

bool snapshots_new(bee_session *s) {
    const CacheShape shape = shape_cache(&s->engine->target->shape);
    Snapshots *saved = &s->snapshots;
    saved->capacity = cache_snapshots(&shape);
    saved->floats = shape.state_floats;
    if (!saved->capacity) return true;
    saved->states = s->engine->ops->buffer_new(s->engine->backend, (size_t)saved->capacity * saved->floats);
    return saved->states;
}

void snapshots_free(bee_session *s) { s->engine->ops->buffer_free(s->engine->backend, s->snapshots.states); }

int snapshots_saved(const bee_session *s, int n) {
    const Snapshots *saved = &s->snapshots;
    int reached = saved->capacity ? 0 : n;
    for (int i = 0; i < saved->n; i++)
        if (saved->at[i].position <= n) reached = saved->at[i].position;
    return reached;
}

int snapshots_reach(const bee_session *s, int n) {
    int first, last;
    if (!s->snapshots.capacity) return n;
    cache_state_places(s->cache, &first, &last);
    const int reached = snapshots_saved(s, n);
    const int now = last < n ? last : n; /* where the layers stand, without any saved state */
    return now >= first && now > reached ? now : reached;
}

static void move(bee_session *s, float *to, const float *from) {
    s->engine->ops->buffer_move(s->engine->backend, to, from, s->snapshots.floats * sizeof(float));
}

static float *state_of(const Snapshots *saved, int i) {
    return saved->states + (size_t)saved->at[i].slot * saved->floats;
}

void snapshots_go_to(bee_session *s, int n) {
    Snapshots *saved = &s->snapshots;
    int first, last;
    if (!saved->capacity) return;
    while (saved->n && saved->at[saved->n - 1].position > n) saved->n--;
    cache_state_places(s->cache, &first, &last);
    if (first <= n && n <= last) return;
    if (n) move(s, s->cache->states, state_of(saved, saved->n - 1));
    cache_set_states(s->cache, n);
}

void snapshots_take(bee_session *s, const bee_session *from, int n) {
    const bee_engine *e = s->engine;
    const Snapshots *saved = &from->snapshots;
    if (!saved->capacity) return;
    for (int i = 0; i < saved->n; i++) {
        if (saved->at[i].position != n) continue;
        move(s, s->cache->states, state_of(saved, i));
        cache_set_states(s->cache, n);
        return;
    }
    const CacheShape shape = shape_cache(&e->target->shape);
    move(s, s->cache->states, from->cache->states);
    e->ops->buffer_move(e->backend, s->cache->kept, from->cache->kept, shape.kept_floats * sizeof(float));
    memcpy(s->cache->ends, from->cache->ends, (size_t)shape.n_states * sizeof *s->cache->ends);
}

/* Makes room for one more, and returns where its state goes. */
static int take_slot(Snapshots *saved) {
    int cheapest = 0, least = INT32_MAX, slot = 0;
    bool taken[MAX_SNAPSHOTS] = {false};
    for (int i = 0; i < saved->n; i++) {
        const int again = saved->at[i].position - (i ? saved->at[i - 1].position : 0);
        taken[saved->at[i].slot] = true;
        if (again >= least) continue;
        least = again;
        cheapest = i;
    }
    while (slot < saved->capacity && taken[slot]) slot++;
    if (slot < saved->capacity) return slot;
    slot = saved->at[cheapest].slot;
    saved->n--;
    for (int i = cheapest; i < saved->n; i++) saved->at[i] = saved->at[i + 1];
    return slot;
}

/* How many tokens lie between the last saved state and the place where the layers stand; 0 where none is to be saved.
 */
static int unsaved_tokens(const bee_session *s, int *position) {
    const Snapshots *saved = &s->snapshots;
    int last;
    if (!saved->capacity) return 0;
    cache_state_places(s->cache, position, &last);
    return *position > s->n_cached ? 0 : *position - (saved->n ? saved->at[saved->n - 1].position : 0);
}

bool snapshots_due(const bee_session *s) {
    int position;
    return unsaved_tokens(s, &position) >= TOKENS_BETWEEN;
}

void snapshots_keep(bee_session *s, bool turn) {
    Snapshots *saved = &s->snapshots;
    int position;
    if (unsaved_tokens(s, &position) < (turn ? 1 : TOKENS_BETWEEN)) return;
    const int slot = take_slot(saved);
    saved->at[saved->n++] = (Snapshot){position, slot};
    move(s, state_of(saved, saved->n - 1), s->cache->states);
}
