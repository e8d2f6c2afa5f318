/* What other files of an engine ask of its sessions. */
#ifndef BEE_SESSION_H
#define BEE_SESSION_H

#include "state.h"

/* Refuses ids that are not in the vocabulary; `name` is what the message calls a token. */
bee_status check_tokens(const bee_engine *engine, const char *name, const int32_t *tokens, int32_t n, bee_error *error);

/* What a session drafts in its next cycle. */
typedef struct Drafts {
    const DraftSource *source; /* NULL: none, so that what is forced stands alone */
    int n;                     /* the forced ones among them */
    bool urgent;               /* as a source's offer says */
} Drafts;

/* For the next cycle of a session that decodes: what the request asks, as far as context, output and the sources' state
 * allow, and at most `longest`, in a pass of so many sessions. The first `n_forced` are known, where anything is
 * drafted at all. */
Drafts session_choose_drafts(bee_session *session, int longest, int n_sessions, int n_forced);

#endif
