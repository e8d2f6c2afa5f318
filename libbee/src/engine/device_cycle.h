/* Cycles that run on the device from beginning to end: one session's draft, verification, choice, acceptance and the
 * projection of what was accepted, without the host between them. cycle.c decides who takes part, and does its
 * bookkeeping on what they report. */
#ifndef BEE_DEVICE_CYCLE_H
#define BEE_DEVICE_CYCLE_H

#include "state.h"

/* Whether the session has a cycle under way whose tokens nobody has seen. They are the next ones of its answer. */
static inline bool device_cycle_queued(const bee_session *s) {
    return s->active && s->cycle && s->engine->ops->device->cycle_queued(s->cycle) > 0;
}

/* Whether a cycle of so many drafts from this source, or none, can run there: the session decodes, no mask, edit or
 * report is wanted, and no source needs the host. */
bool device_cycle_possible(const bee_session *session, const DraftSource *source, int n_drafts);

/* Whether another cycle with so many drafts from this source, or none, can be queued behind one that nobody has read
 * yet; `urgent` as a source's offer says. */
bool device_cycle_goes_on(const bee_session *session, const DraftSource *source, int n_drafts, bool urgent);

/* Runs a cycle, or takes the one that is under way, whatever that drafts; with `ahead` another one is queued before it
 * waits. False where the device failed. */
bool device_cycle_run(bee_session *session, int n_drafts, bool ahead, CycleOutcome *out);

/* Of a cycle that drafted so many, `n_rows` are about to be committed: their features lie where they belong. With
 * drafts the drafter knows them, and nothing behind. */
void device_cycle_commit(bee_session *session, int n_drafts, int n_rows);

/* For measurements: seconds of a cycle where so many are queued at once. Nothing of them is kept but states of
 * recurrent layers, which cannot go back. */
double device_cycle_seconds(bee_session *session, int n_drafts, int n_cycles);

/* Forgets what is under way: the session stands where the host believes. */
void device_cycle_drop(bee_session *session);

#endif
