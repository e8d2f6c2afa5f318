/* The sources that there are, and what is done with all of them. */
#ifndef BEE_DRAFT_SOURCES_H
#define BEE_DRAFT_SOURCES_H

#include "source.h"

extern const DraftSource *const draft_sources[N_DRAFT_SOURCES];

/* Whether requests of this mode ask the source. */
bool source_serves(const DraftSource *source, bee_speculation mode);

/* The source whose model drafts for this engine; where none does, the one that could. */
SourceId drafting_model(const bee_engine *engine);

/* Of all sources that the engine has, where a session's beginning changes: */
void drafts_forget(bee_session *session, int n);
bool drafts_own(bee_session *session);
void drafts_take(bee_session *session, const bee_session *from, int n);

/* For sessions whose tokens do not come from a request: */
void drafts_make_room(bee_engine *engine, bee_session *session, int n_rows);
void drafts_keep(bee_session *session, int first_row, int n);

#endif
