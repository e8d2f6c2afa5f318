#include "copy.h"

#include <stdlib.h>
#include <string.h>

#include "state.h"

/* ---- looking up --------------------------------------------------------------------------------- */

bool copy_index_new(CopyIndex *index, int n_ctx) {
    *index = (CopyIndex){.n_buckets = 64};
    /* One bucket per token: chains then hold little but their own pairs and triples. */
    while (index->n_buckets < (uint32_t)n_ctx && index->n_buckets < 1u << 30) index->n_buckets *= 2;
    for (int i = 0; i < 2; i++) {
        index->latest[i] = malloc(index->n_buckets * sizeof(int32_t));
        index->before[i] = malloc((size_t)n_ctx * sizeof(int32_t));
        if (!index->latest[i] || !index->before[i]) {
            copy_index_free(index);
            return false;
        }
    }
    copy_index_clear(index);
    return true;
}

void copy_index_free(CopyIndex *index) {
    for (int i = 0; i < 2; i++) {
        free(index->latest[i]);
        free(index->before[i]);
    }
    *index = (CopyIndex){.n = 0};
}

void copy_index_clear(CopyIndex *index) {
    for (int i = 0; i < 2; i++) memset(index->latest[i], 0xff, index->n_buckets * sizeof(int32_t)); /* -1 */
    index->n = 0;
}

/* Bucket of the `length` tokens that end at `place`. */
static uint32_t bucket(const CopyIndex *index, const int32_t *tokens, int place, int length) {
    uint64_t hash = 0;
    for (int i = 0; i < length; i++) hash = (hash ^ (uint32_t)tokens[place - i]) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(hash >> 32) & (index->n_buckets - 1);
}

static void add_tokens(CopyIndex *index, const int32_t *tokens, int n) {
    for (; index->n < n; index->n++)
        for (int i = 0; i < 2; i++) {
            if (index->n + 1 < COPY_SHORTEST + i) continue; /* the sequence is shorter than that */
            int32_t *latest = &index->latest[i][bucket(index, tokens, index->n, COPY_SHORTEST + i)];
            index->before[i][index->n] = *latest;
            *latest = index->n;
        }
}

/* How many tokens before and at the two places agree. */
static int common_suffix(const int32_t *tokens, int earlier, int later) {
    int length = 0;
    while (length < COPY_LONGEST && length <= earlier && tokens[earlier - length] == tokens[later - length]) length++;
    return length;
}

/* The best of the places that share at least `shortest` tokens with the end; their chain may hold others, too. */
static CopyMatch best_match(const int32_t *before, const int32_t *tokens, int n, int shortest) {
    CopyMatch best = {0, 0};
    if (n <= shortest) return best;
    int candidates = 0;
    for (int place = before[n - 1]; place >= 0 && candidates < COPY_CANDIDATES; place = before[place]) {
        const int length = common_suffix(tokens, place, n - 1);
        if (length < shortest) continue;
        candidates++;
        if (length > best.length) best = (CopyMatch){length, place + 1};
        if (length == COPY_LONGEST) break;
    }
    return best;
}

CopyMatch copy_find(CopyIndex *index, const int32_t *tokens, int n) {
    add_tokens(index, tokens, n);
    for (int i = 1; i >= 0; i--) {
        const CopyMatch match = best_match(index->before[i], tokens, n, COPY_SHORTEST + i);
        if (match.length) return match;
    }
    return (CopyMatch){0, 0};
}

int32_t copy_token(const int32_t *tokens, int n, CopyMatch match, int i) {
    const int period = n - match.next;
    return tokens[match.next + i % period];
}

/* ---- chances ------------------------------------------------------------------------------------ */

int copy_class(int length) {
    static const int first[COPY_CLASSES] = {2, 3, 4, 6, 9, 16};
    int class = 0;
    while (class < COPY_CLASSES - 1 && length >= first[class + 1]) class++;
    return class;
}

void copy_learn(DraftChances *chances, DraftChances *usual, int length, int agreed, bool ended) {
    for (int i = 0; i < agreed + ended; i++) /* a token that followed again makes the match longer */
        chances_learn(chances, usual, copy_class(length + i), i < agreed);
}

DraftOffer copy_offer(const DraftChances *chances, int length) {
    /* Two tokens recur by chance; three may begin a long copy, which should not wait. */
    DraftOffer offer = {.longest = BEE_MAX_BLOCK - 1, .urgent = length > COPY_SHORTEST};
    for (int i = 0; i < offer.longest; i++) offer.chance[i] = chances->kept[copy_class(length + i)];
    return offer;
}

/* ---- the source --------------------------------------------------------------------------------- */

typedef struct Copying {
    CopyIndex index; /* of the session's tokens, as far as they were looked up in this request */
    CopyMatch match; /* what a copy follows in this cycle, whether it is asked for or not */
} Copying;

static Copying *copying(const bee_session *s) { return s->drafting[SOURCE_COPY]; }

static int longest(const bee_engine *engine) {
    (void)engine;
    return BEE_MAX_BLOCK - 1;
}

static bool session_new(bee_session *s) {
    Copying *c = s->drafting[SOURCE_COPY] = calloc(1, sizeof *c);
    return c && copy_index_new(&c->index, s->n_ctx);
}

static void session_free(bee_session *s) {
    if (copying(s)) copy_index_free(&copying(s)->index);
    free(copying(s));
}

static void forget(bee_session *s, int n) {
    (void)n;
    copy_index_clear(&copying(s)->index);
}

static bool offer(bee_session *s, int n_sessions, int n_forced, DraftOffer *out) {
    (void)n_sessions;
    Copying *c = copying(s);
    c->match = n_forced ? (CopyMatch){0, 0} : copy_find(&c->index, s->tokens, s->n_tokens);
    if (c->match.length) *out = copy_offer(&s->chances[SOURCE_COPY], c->match.length);
    return c->match.length > 0;
}

static bool propose(bee_engine *engine, DraftOrder *orders, int n_orders) {
    (void)engine;
    for (int i = 0; i < n_orders; i++) {
        const bee_session *s = orders[i].session;
        for (int d = 0; d < orders[i].n; d++)
            orders[i].drafts[d] = copy_token(s->tokens, s->n_tokens, copying(s)->match, d);
    }
    return true;
}

/* A copy is known without drafting it, so every new token judges it. */
static void observe(bee_session *s, const DraftOutcome *outcome) {
    const CopyMatch match = copying(s)->match;
    if (!match.length) return;
    const int n_before = s->n_tokens - outcome->n_tokens;
    int agreed = 0;
    while (agreed < outcome->n_tokens && outcome->tokens[agreed] == copy_token(s->tokens, n_before, match, agreed))
        agreed++;
    copy_learn(&s->chances[SOURCE_COPY], &s->engine->usual[SOURCE_COPY], match.length, agreed,
               agreed < outcome->n_tokens);
}

/* What copies in the answers of the bundled drafter's target reach. */
static const double first_chances[BEE_MAX_BLOCK] = {0.35, 0.5, 0.65, 0.8, 0.9, 0.95};

const DraftSource copy_source = {
    .name = "copy",
    .mode = BEE_SPECULATION_COPY,
    .first_chances = first_chances,
    .longest = longest,
    .session_new = session_new,
    .session_free = session_free,
    .forget = forget,
    .offer = offer,
    .propose = propose,
    .observe = observe,
};
