/* The full logit path of a session: biases and penalties before a token is chosen, log-probabilities behind it. What
 * was said before counts the drafts before a row, so that a row's logits are those that plain decoding would have. */
#ifndef BEE_FULL_PATH_H
#define BEE_FULL_PATH_H

#include "ops.h"

typedef struct FullPath {
    int n_vocab;
    bee_logit_bias *biases; /* [n_biases] */
    int n_biases;
    bee_penalties penalties; /* last_n 0: off */
    LogitEdit *edits;        /* [BEE_MAX_BLOCK][most_edits] */
    int most_edits;
    int32_t *places; /* [n_vocab] while edits are gathered: 1 + a token's edit; otherwise 0 */
    bool logprobs;
    int n_top;
    float *unchanged; /* [BEE_MAX_BLOCK][n_vocab] */
    bee_logprobs results[BEE_MAX_BLOCK];
    int n_results;
} FullPath;

/* Which parameter of the request is out of range. */
bee_status full_path_check(const bee_request *request, int n_vocab, bee_error *error);

/* For a new request, after full_path_check. False where memory runs out; nothing is active then. */
bool full_path_begin(FullPath *path, const bee_request *request, int n_vocab, int n_ctx);
void full_path_end(FullPath *path); /* frees; may be repeated */

static inline bool full_path_active(const FullPath *path) { return path->most_edits > 0 || path->logprobs; }

/* Tells a choice what to do to its row: the one in slot `n_drafts`, which follows the tokens and so many drafts. */
void full_path_prepare(FullPath *path, Choice *choice, const int32_t *tokens, int n_tokens, const int32_t *drafts,
                       int n_drafts);

/* The log-probabilities of slots 0 .. n - 1 are those of the step's tokens. */
void full_path_report(FullPath *path, int n);

#endif
