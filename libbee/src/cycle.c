/* One pass for several sessions: a chunk of each prompt, or one cycle of
 *
 *     draft -> verify -> choose -> accept -> commit
 *
 * The drafts never change the output: a token is what the target chooses at its position, and a draft is kept only
 * where it is that very token. */
#include <string.h>

#include "engine.h"
#include "error.h"

/* A session's part of the pass: rows [first_row, first_row + n_pending + n_drafts). */
typedef struct Part {
    bee_session *session;
    bee_step *step;
    int first_row;
    int n_pending; /* committed tokens that run now; 1 while decoding */
    int n_drafts;
    int first_choice; /* of n_choices logits rows: the last pending token and the drafts */
    int n_choices;    /* 0 where the prompt does not end in this pass */
    int n_new;        /* tokens gained */
    int32_t drafts[BEE_MAX_BLOCK];
} Part;

typedef struct Cycle {
    bee_engine *engine;
    Part parts[BEE_MAX_PASS_ROWS];
    int n_parts;
    Row rows[BEE_MAX_PASS_ROWS];
    int32_t head_rows[BEE_MAX_PASS_ROWS];
    Choice choices[BEE_MAX_PASS_ROWS];
    int n_rows, n_choices;
} Cycle;

/* ---- who gets how many rows --------------------------------------------------------------------- */

static bool prompt_left(const bee_session *s) { return s->n_tokens - s->n_cached > 1; }

static int waiting_prompt(const bee_session *s) { return s->stats.output_tokens ? 0 : s->n_tokens - s->n_cached; }

/* Every session gets one row; drafts come next, evenly; prompts share what is left, evenly. */
static void share_rows(Cycle *c) {
    int reading = 0, room = BEE_MAX_PASS_ROWS - c->n_parts;
    for (int i = 0; i < c->n_parts; i++) reading += prompt_left(c->parts[i].session);
    const int each_draft = c->n_parts > reading ? room / (c->n_parts - reading) : 0;
    for (int i = 0; i < c->n_parts; i++) {
        Part *p = &c->parts[i];
        const int wanted = session_draft_length(p->session);
        p->n_pending = 1;
        p->n_drafts = wanted < each_draft ? wanted : each_draft;
        room -= p->n_drafts;
    }
    for (int i = 0; i < c->n_parts; i++) {
        Part *p = &c->parts[i];
        if (!prompt_left(p->session)) continue;
        const int left = p->session->n_tokens - p->session->n_cached, share = 1 + room / reading;
        p->n_pending = left < share ? left : share;
        room -= p->n_pending - 1;
        reading--;
    }
}

/* ---- draft -------------------------------------------------------------------------------------- */

static void propose_drafts(Cycle *c) {
    bee_engine *e = c->engine;
    int n_rows = 0, n_head = 0;
    for (int i = 0; i < c->n_parts; i++) {
        const Part *p = &c->parts[i];
        const bee_session *s = p->session;
        const int block = p->n_drafts ? p->n_drafts + 1 : 0, base = s->n_tokens - 1;
        for (int b = 0; b < block; b++) {
            const int visible = e->drafter->shape.causal ? base + b + 1 : base + block;
            c->rows[n_rows] =
                (Row){s->draft_cache, b ? e->drafter->shape.mask_token : s->tokens[base], base + b, visible};
            if (b) {
                c->head_rows[n_head] = n_rows;
                c->choices[n_head] = (Choice){&s->sampling, base + b, n_head, -1};
                n_head++;
            }
            n_rows++;
        }
    }
    if (!n_head) return;
    DraftPass pass = {e->ops, e->drafter, &e->draft_work, c->rows, n_rows, c->head_rows, n_head, c->choices};
    draft_forward(e->backend, &pass);
    const Choice *choice = c->choices;
    for (int i = 0; i < c->n_parts; i++)
        for (int d = 0; d < c->parts[i].n_drafts; d++, choice++)
            c->parts[i].drafts[d] =
                choice->token < 0 ? 0 : choice->token; /* a draft may be any token: it is verified */
}

/* ---- verify and choose -------------------------------------------------------------------------- */

static void add_rows(Cycle *c, Part *p) {
    const bee_session *s = p->session;
    const bool ends = s->n_cached + p->n_pending == s->n_tokens;
    p->first_row = c->n_rows;
    p->first_choice = c->n_choices;
    p->n_choices = ends ? 1 + p->n_drafts : 0;
    for (int i = 0; i < p->n_pending + p->n_drafts; i++) {
        const int position = s->n_cached + i;
        const int32_t token = i < p->n_pending ? s->tokens[position] : p->drafts[i - p->n_pending];
        if (ends && i >= p->n_pending - 1) {
            c->head_rows[c->n_choices] = c->n_rows;
            c->choices[c->n_choices] = (Choice){&s->sampling, position + 1, c->n_choices, -1};
            c->n_choices++;
        }
        c->rows[c->n_rows++] = (Row){s->cache, token, position, position + 1};
    }
}

static bool any_cancelled(void *argument) {
    const Cycle *c = argument;
    for (int i = 0; i < c->n_parts; i++)
        if (atomic_load_explicit(&c->parts[i].session->cancelled, memory_order_relaxed)) return true;
    return false;
}

/* False where a session was cancelled: the pass ended early and counts for nobody. */
static bool verify_and_choose(Cycle *c) {
    bee_engine *e = c->engine;
    c->n_rows = c->n_choices = 0;
    for (int i = 0; i < c->n_parts; i++) add_rows(c, &c->parts[i]);
    TargetPass pass = {.ops = e->ops,
                       .model = e->target,
                       .work = &e->work,
                       .rows = c->rows,
                       .n_rows = c->n_rows,
                       .taps = e->taps,
                       .n_taps = e->n_taps,
                       .head_rows = c->head_rows,
                       .n_head_rows = c->n_choices,
                       .choices = c->choices,
                       .cancelled = any_cancelled,
                       .cancel_argument = c};
    target_forward(e->backend, &pass);
    return !atomic_load(&pass.stopped);
}

/* ---- accept ------------------------------------------------------------------------------------- */

static bool is_stop_token(const bee_session *s, int32_t token) {
    for (int i = 0; i < s->n_stop_tokens; i++)
        if (s->stop_tokens[i] == token) return true;
    return false;
}

static bee_finish finish_of(const bee_session *s, int32_t token) {
    if (is_stop_token(s, token)) return BEE_FINISH_STOP;
    if (s->stats.output_tokens >= s->max_tokens) return BEE_FINISH_LENGTH;
    return s->n_tokens >= s->n_ctx ? BEE_FINISH_CONTEXT : BEE_FINISH_NONE;
}

/* Whether all tokens that could be accepted were chosen: none is where logits are not finite. */
static bool all_chosen(const Cycle *c, const Part *p) {
    for (int i = 0; i < p->n_choices; i++) {
        const int32_t token = c->choices[p->first_choice + i].token;
        if (token < 0) return false;
        if (is_stop_token(p->session, token) || (i < p->n_drafts && p->drafts[i] != token)) break;
    }
    return true;
}

/* The chosen tokens as long as the drafts before them agree. */
static void accept(Cycle *c, Part *p) {
    bee_session *s = p->session;
    for (p->n_new = 0; p->n_new < p->n_choices && !p->step->finish;) {
        const int32_t token = c->choices[p->first_choice + p->n_new].token;
        p->step->tokens[p->n_new++] = token;
        s->stats.output_tokens++;
        if (s->n_tokens < s->n_ctx) s->tokens[s->n_tokens++] = token;
        p->step->finish = finish_of(s, token);
        if (p->n_new <= p->n_drafts && p->drafts[p->n_new - 1] != token) break;
    }
    p->step->n_tokens = p->n_new;
}

static void count(const Part *p) {
    bee_stats *stats = &p->session->stats;
    if (p->n_pending > 1 || !p->n_choices) return; /* reading the prompt */
    const int accepted = p->n_new - 1;
    if (p->session->draft_length && !p->step->finish)
        draft_chances_observe(&p->session->chances, p->n_drafts, accepted);
    stats->cycles++;
    stats->reduced_cycles++;
    stats->drafted_tokens += p->n_drafts;
    stats->accepted_tokens += accepted;
    stats->accepted_histogram[accepted]++;
}

/* ---- commit ------------------------------------------------------------------------------------- */

/* Rows whose token was committed when the pass ran, or was accepted by it. */
static int committed_rows(const Part *p) { return p->n_pending + (p->n_new > 1 ? p->n_new - 1 : 0); }

static void keep_features(const Cycle *c, const Part *p) {
    const bee_engine *e = c->engine;
    const bee_session *s = p->session;
    const size_t size = (size_t)e->n_taps * e->target->shape.n_embd;
    for (int i = 0; s->features && i < committed_rows(p); i++)
        memcpy(s->features + (size_t)(s->n_cached + i) * size,
               e->work.features + (size_t)(p->first_row + i) * e->work.feature_stride, size * sizeof(float));
}

/* The committed rows' features become the drafter's context, for sessions that draft. */
static void inject(Cycle *c) {
    bee_engine *e = c->engine;
    Row rows[BEE_MAX_PASS_ROWS];
    int32_t feature_rows[BEE_MAX_PASS_ROWS];
    int n = 0;
    for (int i = 0; i < c->n_parts; i++) {
        const Part *p = &c->parts[i];
        bee_session *s = p->session;
        if (!e->drafter || !s->draft_length || s->n_injected != s->n_cached) continue;
        for (int r = 0; r < committed_rows(p); r++, n++) {
            feature_rows[n] = p->first_row + r;
            rows[n] = c->rows[p->first_row + r];
            rows[n].cache = s->draft_cache;
        }
        s->n_injected += committed_rows(p);
    }
    if (!n) return;
    InjectPass pass = {e->ops, e->drafter, &e->draft_work, e->work.features, e->work.feature_stride, feature_rows,
                       rows,   n};
    inject_forward(e->backend, &pass);
}

static void commit(Cycle *c) {
    for (int i = 0; i < c->n_parts; i++) keep_features(c, &c->parts[i]);
    inject(c);
    for (int i = 0; i < c->n_parts; i++) {
        const Part *p = &c->parts[i];
        bee_session *s = p->session;
        s->n_cached += committed_rows(p);
        p->step->n_prompt_left = waiting_prompt(s);
        if (p->step->finish) s->active = false;
    }
}

/* ---- a step ------------------------------------------------------------------------------------- */

static bee_status run_cycle(Cycle *c, bee_error *error) {
    const double start = monotonic_seconds();
    share_rows(c);
    propose_drafts(c);
    if (!verify_and_choose(c)) return BEE_OK;
    /* Before anything is accepted: a step that fails leaves the other sessions as they were. */
    for (int i = 0; i < c->n_parts; i++) {
        if (all_chosen(c, &c->parts[i])) continue;
        c->parts[i].session->active = false;
        return bee_fail(error, BEE_ERROR_FORMAT, "the model's logits are not finite; the file's weights are broken");
    }
    for (int i = 0; i < c->n_parts; i++) {
        accept(c, &c->parts[i]);
        count(&c->parts[i]);
    }
    commit(c);
    const double seconds = monotonic_seconds() - start;
    for (int i = 0; i < c->n_parts; i++) {
        const Part *p = &c->parts[i];
        const bool decoding = p->n_pending == 1 && p->n_choices;
        *(decoding ? &p->session->stats.decode_seconds : &p->session->stats.prefill_seconds) += seconds;
    }
    return BEE_OK;
}

static bee_status check_sessions(const bee_engine *engine, bee_session *const *sessions, int32_t n, bee_error *error) {
    if (n < 1 || n > BEE_MAX_PASS_ROWS)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "n_sessions is %d; it must lie between 1 and %d", n,
                        BEE_MAX_PASS_ROWS);
    for (int i = 0; i < n; i++) {
        if (!sessions[i] || sessions[i]->engine != engine || !sessions[i]->active)
            return bee_fail(error, BEE_ERROR_ARGUMENT, "session %d has no running request on this engine", i);
        for (int j = 0; j < i; j++)
            if (sessions[i] == sessions[j]) return bee_fail(error, BEE_ERROR_ARGUMENT, "session %d is given twice", i);
    }
    return BEE_OK;
}

/* Cancelled sessions end here; the others take part in the pass. */
static void enlist(Cycle *c, bee_session *const *sessions, int32_t n, bee_step *steps) {
    for (int i = 0; i < n; i++) {
        steps[i] = (bee_step){.n_prompt_left = waiting_prompt(sessions[i])};
        if (atomic_load(&sessions[i]->cancelled)) {
            steps[i].finish = BEE_FINISH_CANCELLED;
            sessions[i]->active = false;
        } else {
            c->parts[c->n_parts++] = (Part){.session = sessions[i], .step = &steps[i]};
        }
    }
}

bee_status bee_engine_step(bee_engine *engine, bee_session *const *sessions, int32_t n_sessions, bee_step *steps,
                           bee_error *error) {
    Cycle cycle = {.engine = engine};
    pthread_mutex_lock(&engine->mutex);
    bee_status status = check_sessions(engine, sessions, n_sessions, error);
    if (!status) {
        enlist(&cycle, sessions, n_sessions, steps);
        if (cycle.n_parts) status = run_cycle(&cycle, error);
        /* A pass that a cancellation ended reports it now, not with the next step. */
        for (int i = 0; i < cycle.n_parts && !status; i++) {
            Part *p = &cycle.parts[i];
            if (p->n_new || p->step->finish || !atomic_load(&p->session->cancelled)) continue;
            p->step->finish = BEE_FINISH_CANCELLED;
            p->session->active = false;
        }
    }
    pthread_mutex_unlock(&engine->mutex);
    return status;
}
