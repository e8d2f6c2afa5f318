/* What passes, drafts and cycles take on scratch sessions. */
#ifndef BEE_MEASURE_H
#define BEE_MEASURE_H

#include "state.h"

/* Whether the engine's drafter drafts so many tokens at once. */
bool can_draft(const bee_engine *engine, int n);

/* Reads n_past made-up tokens into the session and puts n_more behind them. */
void read_made_up(bee_session *session, int n_past, int n_more);

/* What a scratch session takes for one pass of n_rows at its end, with a token chosen from each, and for a draft of
 * n_rows - 1 tokens behind it, as in a cycle that commits two: their features are projected with it. The session is
 * then as it was. `drafts` must be false where the drafter cannot draft as many. */
void time_cycle(bee_session *session, int n_rows, bool drafts, double *pass_seconds, double *draft_seconds);

/* Seconds of a cycle where a device has so many queued at once. The session goes on as if there had been none. */
double time_queued_cycles(bee_session *session, int n_drafts, int n_cycles);

#endif
