#include "copy.h"

#include <stdlib.h>
#include <string.h>

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
