/* The masked logit path of a session: what its constraint says of one cycle. */
#ifndef BEE_MASKED_PATH_H
#define BEE_MASKED_PATH_H

#include "state.h"

typedef struct MaskedCycle {
    bool active; /* the constraint wants masks */
    int n_forced;
    int32_t forced[BEE_MAX_BLOCK - 1];    /* drafts that are certain to be chosen */
    const uint32_t *masks[BEE_MAX_BLOCK]; /* [k]: of the token behind k drafts; NULL: any may be chosen */
} MaskedCycle;

/* All of these return -1 where the constraint failed. */

/* Before anything is drafted for a session whose next token is chosen in this cycle. */
int masked_begin(bee_session *session, int room, MaskedCycle *out);

/* The masks behind the committed tokens and behind each draft. Returns how many drafts stay: up to the first that is
 * not allowed. In its place comes what their source thinks best of those that are, where it can say: the drafts are
 * rows `row` and on of its proposal. `source` may be NULL. */
int masked_drafts(bee_session *session, MaskedCycle *cycle, int32_t *drafts, int n, const DraftSource *source, int row);

/* How many of the chosen tokens stay, and whether the request ends with them. */
int masked_commit(bee_session *session, const int32_t *tokens, int n, bool *complete);

#endif
