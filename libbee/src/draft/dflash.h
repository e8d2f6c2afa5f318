/* The drafter's side of sessions: the target's features on their way into its cache, and the blocks it drafts.
 *
 * The drafter attends to the features of all positions that the target has run. Projecting them costs a pass that reads
 * the drafter's weights whatever the number of rows, so features wait in the session until the drafter is asked, or
 * until there is no room for more. A session whose features reach the cache's end without a gap can be drafted for. */
#ifndef BEE_DFLASH_DRAFT_H
#define BEE_DFLASH_DRAFT_H

#include "state.h"

extern const DraftSource dflash_source, mtp_source;

/* The drafter's cache holds the first n_injected of the session's positions, and the features of the n_waiting behind
 * these are at hand. */
typedef struct Dflash {
    Cache *cache;
    float *waiting; /* [BEE_MAX_PASS_ROWS][feature_stride] */
    int32_t n_injected, n_waiting;
} Dflash;

/* NULL without a drafter, or a block that predicts. */
static inline Dflash *dflash_of(const bee_session *s) {
    return s->drafting[s->engine->predicts ? SOURCE_MTP : SOURCE_DFLASH];
}

/* Whether the drafter can know all that the target's cache holds. */
bool drafter_is_ready(const bee_session *session);

/* Whether n more rows of features may wait. */
bool has_room_for_features(const bee_session *session, int n);

/* Keeps the features of rows [first_row, first_row + n) of the target's last pass before it is known that they will be
 * committed: they are to wait behind those of n_before positions that are as uncertain. n_waiting does not count them
 * yet. There must be room. */
void move_features(bee_session *session, int first_row, int n, int n_before);

/* Projects what waits, but for the last `n_left` rows of each, 0 or 1. It is gathered in the target's workspace, where
 * the features of its last pass are lost. */
void project_features(bee_engine *engine, bee_session *const *sessions, int n_sessions, int n_left);

/* What sources that read features have in common; the first two are for those of `source`. */
bool features_new(bee_session *session, SourceId source);
void features_free(bee_session *session, SourceId source);
void features_keep(bee_session *session, int first_row, int n);
void features_forget(bee_session *session, int n);
bool features_own(bee_session *session);
void features_take(bee_session *session, const bee_session *from, int n);
int features_known(const bee_session *session);
bool features_reach_back(const bee_session *session, int n, int written);
int32_t drafter_instead(bee_engine *engine, const bee_sampling *sampling, int32_t position, int row,
                        const uint32_t *mask);

#endif
