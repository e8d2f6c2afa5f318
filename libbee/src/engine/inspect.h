/* Looking inside: logits, features and drafts, for tests, training and measurements. */
#ifndef BEE_INSPECT_H
#define BEE_INSPECT_H

#include "state.h"

/* Runs tokens [s->n_cached, s->n_cached + n) of the session; logits of every row, or none; tokens chosen from them, or
 * none. */
void evaluate_rows(bee_session *session, int n, bool want_logits, Choice *choices);

/* Keeps the features of rows [first_row, first_row + n) of the target's last pass for bee_session_features, where the
 * session was opened with that wish: positions from n_cached on. */
void keep_features(bee_session *session, int first_row, int n);

#endif
