/* Beginnings of sequences: what a session need not read because it holds it, or another session does.
 *
 * Keys and values of the same tokens at the same positions are the same bits, whoever computed them, so a session whose
 * prompt begins with what another one holds takes it over: whole chunks of 128 positions then belong to both, and the
 * rest of a chunk and states of recurrent layers are copied. A session that closes, or goes back, leaves to the others
 * what they hold. Where several prompts of a step begin alike, the first of them reads what they have in common, and
 * the others wait for it. */
#ifndef BEE_PREFIX_H
#define BEE_PREFIX_H

#include "state.h"

/* How many tokens of a prompt `asking` could go on behind, with what `holder` holds, which may be itself. The last one
 * always runs again: its logits are wanted. */
int prefix_held(const bee_session *holder, const bee_session *asking, const int32_t *prompt, int n_prompt);

/* The session, which holds n positions or more, holds n from now on, and may write behind them. False where memory runs
 * out; then no pass may run. */
bool prefix_keep(bee_session *session, int n);

/* A beginning that another session of the engine holds. */
typedef struct PrefixOffer {
    const bee_session *holder; /* NULL: none that is worth it */
    int n;                     /* tokens; those that the session holds itself where there is none */
} PrefixOffer;

/* Of a session that reads its prompt: the longest, and taking it over. */
PrefixOffer prefix_offered(const bee_session *session);
void prefix_take(bee_session *session, PrefixOffer offer);

/* How many tokens of its prompt the session finds in `reader` when that has read so many of its own: worth waiting for,
 * where n are to be had now. 0: nothing is. Both read their prompts. */
int prefix_awaited(const bee_session *session, const bee_session *reader, int n);

#endif
