#include "constraint.h"

int masked_begin(bee_session *s, int room, MaskedCycle *out) {
    *out = (MaskedCycle){.active = false};
    if (!s->constrained || s->free) return 0;
    const int32_t n = s->constraint.begin(s->constraint.user, out->forced, room);
    if (n < BEE_CONSTRAINT_FREE) return -1;
    out->active = n != BEE_CONSTRAINT_FREE;
    out->n_forced = n < 0 ? 0 : n < room ? n : room;
    return 0;
}

static int advance(bee_session *s, MaskedCycle *cycle, int32_t draft, int behind) {
    if (behind && (draft < 0 || draft >= s->engine->target->shape.n_vocab)) return BEE_CONSTRAINT_FAILED;
    uint32_t *mask = s->masks + (size_t)behind * mask_words(s->engine);
    const int32_t result = s->constraint.advance(s->constraint.user, draft, mask);
    if (result < BEE_CONSTRAINT_FAILED || result > BEE_CONSTRAINT_MASKED) return BEE_CONSTRAINT_FAILED;
    cycle->masks[behind] = result == BEE_CONSTRAINT_MASKED ? mask : NULL;
    return result;
}

/* Goes over draft `d`, or over its source's best one that is allowed. */
static int advance_or_replace(bee_session *s, MaskedCycle *cycle, int32_t *drafts, int d, const DraftSource *source,
                              int row) {
    const int result = advance(s, cycle, drafts[d], d + 1);
    if (result != BEE_CONSTRAINT_REFUSED || !source || !source->instead) return result;
    const int32_t other = source->instead(s->engine, &s->sampling, s->n_cached + d + 1, row + d, cycle->masks[d]);
    if (other < 0) return result;
    drafts[d] = other;
    return advance(s, cycle, other, d + 1);
}

int masked_drafts(bee_session *s, MaskedCycle *cycle, int32_t *drafts, int n, const DraftSource *source, int row) {
    if (!cycle->active) return n;
    if (advance(s, cycle, -1, 0) == BEE_CONSTRAINT_FAILED) return -1;
    /* Behind the constraint's end there is no mask, and what follows is another cycle's. */
    for (int d = 0; d < n; d++) {
        const int result =
            cycle->masks[d] ? advance_or_replace(s, cycle, drafts, d, source, row) : BEE_CONSTRAINT_REFUSED;
        if (result == BEE_CONSTRAINT_FAILED) return -1;
        if (result == BEE_CONSTRAINT_REFUSED) return d;
    }
    return n;
}

static bool is_of_interest(const bee_session *s, const int32_t *tokens, int n) {
    const uint32_t *watched = s->constraint.watched;
    if (!s->watching || !watched) return true;
    for (int i = 0; i < n; i++)
        if (watched[tokens[i] / 32] >> tokens[i] % 32 & 1) return true;
    return false;
}

int masked_commit(bee_session *s, const int32_t *tokens, int n, bool *complete) {
    *complete = false;
    if (!s->constrained || !n || !is_of_interest(s, tokens, n)) return n;
    int32_t next = BEE_CONSTRAINT_MASKED;
    const int32_t kept = s->constraint.commit(s->constraint.user, tokens, n, &next);
    /* A cycle may yield nothing, where its first token calls for a mask that it was chosen without: once. */
    if (kept < 0 || kept > n || (!kept && s->stalled)) return -1;
    s->stalled = !kept;
    s->watching = next == BEE_CONSTRAINT_WATCHING;
    s->free = s->watching || next == BEE_CONSTRAINT_FREE;
    *complete = next == BEE_CONSTRAINT_COMPLETE;
    return kept;
}
