#include "logit_edits.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

/* ---- the request -------------------------------------------------------------------------------- */

static bool penalises(const bee_penalties *p) {
    return p->last_n && (p->repetition != 1 || p->frequency != 0 || p->presence != 0);
}

static bee_status check_penalties(const bee_penalties *p, bee_error *error) {
    if (p->last_n < -1)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "penalties.last_n is %d; it must be at least -1 (-1: all tokens)",
                        p->last_n);
    if (!p->last_n) return BEE_OK;
    if (!(p->repetition > 0 && p->repetition <= 100))
        return bee_fail(error, BEE_ERROR_ARGUMENT, "penalties.repetition is %g; it must be above 0 and at most 100",
                        (double)p->repetition);
    if (!(fabsf(p->frequency) <= 100))
        return bee_fail(error, BEE_ERROR_ARGUMENT, "penalties.frequency is %g; it must lie between -100 and 100",
                        (double)p->frequency);
    if (!(fabsf(p->presence) <= 100))
        return bee_fail(error, BEE_ERROR_ARGUMENT, "penalties.presence is %g; it must lie between -100 and 100",
                        (double)p->presence);
    return BEE_OK;
}

static bee_status check_bias(const bee_logit_bias *b, int i, int n_vocab, bee_error *error) {
    if (b->token < 0 || b->token >= n_vocab)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "biases[%d].token is %d; the vocabulary has ids 0 to %d", i,
                        b->token, n_vocab - 1);
    if (!(fabsf(b->bias) <= 1000))
        return bee_fail(error, BEE_ERROR_ARGUMENT, "biases[%d].bias is %g; it must lie between -1000 and 1000", i,
                        (double)b->bias);
    return BEE_OK;
}

bee_status full_path_check(const bee_request *r, int n_vocab, bee_error *error) {
    if (r->n_biases < 0 || r->n_biases > n_vocab)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_biases is %d; it must lie between 0 and %d", r->n_biases,
                        n_vocab);
    if (r->n_biases && !r->biases)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "biases is missing, but n_biases is %d", r->n_biases);
    for (int i = 0; i < r->n_biases; i++) {
        const bee_status status = check_bias(&r->biases[i], i, n_vocab, error);
        if (status) return status;
    }
    if (r->n_top_logprobs < 0 || r->n_top_logprobs > BEE_MAX_TOP_LOGPROBS)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_top_logprobs is %d; it must lie between 0 and %d",
                        r->n_top_logprobs, BEE_MAX_TOP_LOGPROBS);
    return check_penalties(&r->penalties, error);
}

static bool copy_biases(FullPath *path, const bee_request *r) {
    path->n_biases = r->n_biases;
    if (!r->n_biases) return true;
    path->biases = malloc((size_t)r->n_biases * sizeof *path->biases);
    if (!path->biases) return false;
    memcpy(path->biases, r->biases, (size_t)r->n_biases * sizeof *path->biases);
    return true;
}

bool full_path_begin(FullPath *path, const bee_request *r, int n_vocab, int n_ctx) {
    full_path_end(path);
    path->n_vocab = n_vocab;
    path->penalties = r->penalties;
    if (!penalises(&path->penalties)) path->penalties.last_n = 0;
    const int seen = path->penalties.last_n < 0 || path->penalties.last_n > n_ctx ? n_ctx : path->penalties.last_n;
    path->most_edits = r->n_biases + (seen < n_vocab ? seen : n_vocab);
    path->logprobs = r->logprobs;
    path->n_top = r->n_top_logprobs < n_vocab ? r->n_top_logprobs : n_vocab;
    bool ok = copy_biases(path, r);
    if (path->most_edits) {
        path->edits = malloc(BEE_MAX_BLOCK * (size_t)path->most_edits * sizeof *path->edits);
        path->places = calloc((size_t)n_vocab, sizeof *path->places);
        ok = ok && path->edits && path->places;
    }
    if (path->logprobs) {
        path->unchanged = malloc(BEE_MAX_BLOCK * (size_t)n_vocab * sizeof *path->unchanged);
        ok = ok && path->unchanged;
    }
    if (!ok) full_path_end(path);
    return ok;
}

void full_path_end(FullPath *path) {
    free(path->biases);
    free(path->edits);
    free(path->places);
    free(path->unchanged);
    *path = (FullPath){0};
}

/* ---- before the choice -------------------------------------------------------------------------- */

typedef struct Edits {
    FullPath *path;
    LogitEdit *list;
    int n;
} Edits;

static LogitEdit *edit_of(Edits *edits, int32_t token) {
    int32_t *place = &edits->path->places[token];
    if (!*place) {
        edits->list[edits->n] = (LogitEdit){.token = token, .repetition = 1};
        *place = ++edits->n;
    }
    return &edits->list[*place - 1];
}

/* Counts the last tokens of a text of n; how many of them were still wanted. */
static int count_last(Edits *edits, const int32_t *tokens, int n, int wanted) {
    const int first = n > wanted ? n - wanted : 0;
    for (int i = first; i < n; i++) edit_of(edits, tokens[i])->penalty++;
    return wanted - (n - first);
}

/* Counts become penalties. */
static void settle(Edits *edits) {
    const bee_penalties *p = &edits->path->penalties;
    for (int i = 0; i < edits->n; i++) {
        LogitEdit *edit = &edits->list[i];
        edits->path->places[edit->token] = 0;
        if (edit->penalty == 0) continue;
        edit->repetition = p->repetition;
        edit->penalty = edit->penalty * p->frequency + p->presence;
    }
}

static void prepare_edits(FullPath *path, Choice *choice, const int32_t *tokens, int n_tokens, const int32_t *drafts,
                          int n_drafts) {
    Edits edits = {path, path->edits + (size_t)n_drafts * path->most_edits, 0};
    const int last_n = path->penalties.last_n, wanted = last_n < 0 ? n_tokens + n_drafts : last_n;
    for (int i = 0; i < path->n_biases; i++) edit_of(&edits, path->biases[i].token)->bias = path->biases[i].bias;
    count_last(&edits, tokens, n_tokens, count_last(&edits, drafts, n_drafts, wanted));
    settle(&edits);
    choice->edits = edits.list;
    choice->n_edits = edits.n;
}

void full_path_prepare(FullPath *path, Choice *choice, const int32_t *tokens, int n_tokens, const int32_t *drafts,
                       int n_drafts) {
    if (path->most_edits) prepare_edits(path, choice, tokens, n_tokens, drafts, n_drafts);
    if (!path->logprobs) return;
    choice->report = &path->results[n_drafts];
    choice->n_top = path->n_top;
    choice->unchanged = path->unchanged + (size_t)n_drafts * path->n_vocab;
}

/* ---- behind it ---------------------------------------------------------------------------------- */

void full_path_report(FullPath *path, int n) { path->n_results = path->logprobs ? n : 0; }
