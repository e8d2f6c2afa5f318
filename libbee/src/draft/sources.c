#include "sources.h"

#include "copy.h"
#include "dflash.h"
#include "state.h"

const DraftSource *const draft_sources[N_DRAFT_SOURCES] = {
    [SOURCE_DFLASH] = &dflash_source,
    [SOURCE_MTP] = &mtp_source,
    [SOURCE_COPY] = &copy_source,
};

bool source_serves(const DraftSource *source, bee_speculation mode) {
    return mode == BEE_SPECULATION_AUTO || mode == source->mode;
}

SourceId drafting_model(const bee_engine *e) {
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (draft_sources[i]->is_model && draft_sources[i]->longest(e)) return (SourceId)i;
    return SOURCE_DFLASH;
}

void drafts_make_room(bee_engine *e, bee_session *s, int n_rows) {
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (draft_sources[i]->longest(e))
            draft_sources[i]->propose(e, &(DraftOrder){.session = s, .n_rows = n_rows}, 1);
}

void drafts_keep(bee_session *s, int first_row, int n) {
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (draft_sources[i]->keep && draft_sources[i]->longest(s->engine)) draft_sources[i]->keep(s, first_row, n);
}

void drafts_forget(bee_session *s, int n) {
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (draft_sources[i]->forget && draft_sources[i]->longest(s->engine)) draft_sources[i]->forget(s, n);
}

bool drafts_own(bee_session *s) {
    bool ok = true;
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (draft_sources[i]->own && draft_sources[i]->longest(s->engine)) ok = draft_sources[i]->own(s) && ok;
    return ok;
}

void drafts_take(bee_session *s, const bee_session *from, int n) {
    for (int i = 0; i < N_DRAFT_SOURCES; i++)
        if (draft_sources[i]->take && draft_sources[i]->longest(s->engine)) draft_sources[i]->take(s, from, n);
}
