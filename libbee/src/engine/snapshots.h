/* Saved states. A recurrent layer's state cannot be cut: a session that goes back takes the nearest one that was saved,
 * and reads on from there. States are saved at the end of each prompt, which is where conversations branch, and every
 * so many tokens; where there is room for no more, the one goes that costs the least to be read again. */
#ifndef BEE_SNAPSHOTS_H
#define BEE_SNAPSHOTS_H

#include "state.h"

/* False where memory runs out. Models without recurrent layers need none. */
bool snapshots_new(bee_session *session);
void snapshots_free(bee_session *session);

/* Behind how many of the session's first n tokens, of which the caches hold n, its layers can go on. */
int snapshots_reach(const bee_session *session, int n);
/* The same by the saved states alone, while a pass is under way. */
int snapshots_saved(const bee_session *session, int n);
/* Lets the session's layers go on where `from` could: n is an answer of one of these two. */
void snapshots_take(bee_session *session, const bee_session *from, int n);
/* Lets them go on there; n is an answer of snapshots_reach, and the tokens behind may change. */
void snapshots_go_to(bee_session *session, int n);
/* Behind a pass, whose tokens have been committed: may save what the layers know. `turn`: the prompt ended in it. No
 * other pass of the session is under way. */
void snapshots_keep(bee_session *session, bool turn);

/* Whether it would, by the number of tokens behind the last saved state. */
bool snapshots_due(const bee_session *session);

#endif
