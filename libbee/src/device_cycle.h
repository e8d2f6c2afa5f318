/* Cycles that run on the device from beginning to end: one session's draft, verification, choice, acceptance and the
 * projection of what was accepted, without the host between them. cycle.c decides who takes part, and does its
 * bookkeeping on what they report. */
#ifndef BEE_DEVICE_CYCLE_H
#define BEE_DEVICE_CYCLE_H

#include "engine.h"

/* Whether the session has a cycle under way whose tokens nobody has seen. They are the next ones of its answer. */
static inline bool device_cycle_queued(const bee_session *s) {
    return s->active && s->cycle && s->engine->ops->device->cycle_queued(s->cycle) > 0;
}

/* Whether a cycle of so many drafts of the drafter's, or none, can run there: the session decodes, and no mask, edit or
 * report is wanted. */
bool device_cycle_possible(const bee_session *session, int n_drafts);

/* Runs a cycle, or takes the one that is under way, and where the next one will be of the same kind queues it before it
 * waits. False where the device failed. With drafts, the drafter then knows all accepted positions but none behind. */
bool device_cycle_run(bee_session *session, int n_drafts, CycleOutcome *out);

/* For measurements: seconds of a cycle where so many are queued at once. Nothing of them is kept. */
double device_cycle_seconds(bee_session *session, int n_drafts, int n_cycles);

/* Forgets what is under way: the session stands where the host believes. */
void device_cycle_drop(bee_session *session);

#endif
