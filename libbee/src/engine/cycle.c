/* One pass for several sessions: a chunk of each prompt, or one cycle of
 *
 *     draft -> verify -> choose -> accept -> commit
 *
 * The drafts never change the output: a token is what the target chooses at its position, and a draft is kept only
 * where it is that very token. */
#include <string.h>

#include "clock.h"
#include "device_cycle.h"
#include "draft/dflash.h"
#include "draft/sources.h"
#include "error.h"
#include "inspect.h"
#include "prefix.h"
#include "sampling/constraint.h"
#include "session.h"
#include "snapshots.h"

/* A session's part of the pass: rows [first_row, first_row + n_pending + n_drafts). */
typedef struct Part {
    bee_session *session;
    bee_step *step;
    int first_row;
    int n_pending;             /* committed tokens that run now; 1 while decoding */
    int stop;                  /* of the prompt, nothing is read behind here: others wait for it; 0: none do */
    const DraftSource *source; /* of what is not forced; NULL: none */
    int n_drafts;
    int draft_row; /* of the source's proposal */
    bool urgent;   /* the next choice should not be made before this cycle's tokens are known */
    MaskedCycle masked;
    int first_choice; /* of n_choices logits rows: the last pending token and the drafts */
    int n_choices;    /* 0 where the prompt does not end in this pass */
    int n_new;        /* tokens gained */
    bool cut;         /* the constraint kept fewer than were chosen */
    bool on_device;   /* it ran as a whole there: the drafter's features are in place */
    int32_t drafts[BEE_MAX_BLOCK];
} Part;

/* A request that its constraint ends takes no part in the pass. */
static void fail_constraint(Part *p) {
    p->step->finish = BEE_FINISH_CONSTRAINT;
    p->session->active = false;
    p->n_pending = p->n_drafts = p->n_choices = 0;
    p->source = NULL;
}

static bool has_failed(const Part *p) { return p->step->finish != BEE_FINISH_NONE; }

typedef struct Cycle {
    bee_engine *engine;
    Part parts[BEE_MAX_PASS_ROWS];
    int n_parts;
    bool company; /* other sessions were given to the step, too */
    Row rows[BEE_MAX_PASS_ROWS];
    int32_t head_rows[BEE_MAX_PASS_ROWS];
    Choice choices[BEE_MAX_PASS_ROWS];
    int n_rows, n_choices;
} Cycle;

/* ---- who gets how many rows --------------------------------------------------------------------- */

static bool prompt_left(const bee_session *s) { return s->n_tokens - s->n_cached > 1; }

static int waiting_prompt(const bee_session *s) { return s->stats.output_tokens ? 0 : s->n_tokens - s->n_cached; }

static void choose_drafts(const Cycle *c, Part *p, int longest) {
    const int room = longest < BEE_MAX_BLOCK - 1 ? longest : BEE_MAX_BLOCK - 1;
    if (masked_begin(p->session, room, &p->masked) < 0) {
        fail_constraint(p);
        return;
    }
    const Drafts drafts = session_choose_drafts(p->session, room, c->n_parts, p->masked.n_forced);
    p->source = drafts.source;
    p->n_drafts = drafts.n;
    p->urgent = drafts.urgent;
}

/* Whether the first of two sessions that read alike reads for both: who is further on, and of equals the earlier. */
static bool comes_first(const Part *a, const Part *b) {
    const int ahead = a->session->n_cached - b->session->n_cached;
    return ahead > 0 || (!ahead && a < b);
}

/* Whether another session of the pass reads what this one could take over from it, and more than n tokens, which are to
 * be had now: it stops there for a moment. The first of all waits for nobody, so that every pass goes on. */
static bool waits(Cycle *c, const Part *p, int n) {
    bool found = false;
    for (int i = 0; i < c->n_parts; i++) {
        Part *reader = &c->parts[i];
        if (!prompt_left(reader->session) || !comes_first(reader, p)) continue;
        const int stop = prefix_awaited(p->session, reader->session, n);
        if (stop && (!reader->stop || stop < reader->stop)) reader->stop = stop;
        found |= stop > 0;
    }
    return found;
}

/* Sessions whose beginning another one reads in this pass take no part in it; the others first take over what is
 * there. */
static void share_beginnings(Cycle *c) {
    bool waiting[BEE_MAX_PASS_ROWS] = {false};
    int n = 0;
    for (int i = 0; i < c->n_parts; i++) {
        bee_session *s = c->parts[i].session;
        if (!prompt_left(s)) continue;
        const PrefixOffer offer = prefix_offered(s);
        waiting[i] = waits(c, &c->parts[i], offer.n);
        if (!waiting[i]) prefix_take(s, offer);
    }
    for (int i = 0; i < c->n_parts; i++)
        if (!waiting[i]) c->parts[n++] = c->parts[i];
    c->n_parts = n;
}

/* Every session gets one row; drafts come next, evenly; prompts share what is left, evenly. */
static void share_rows(Cycle *c) {
    int reading = 0, room = BEE_MAX_PASS_ROWS - c->n_parts;
    for (int i = 0; i < c->n_parts; i++) reading += prompt_left(c->parts[i].session);
    const int each_draft = c->n_parts > reading ? room / (c->n_parts - reading) : 0;
    for (int i = 0; i < c->n_parts; i++) {
        Part *p = &c->parts[i];
        p->n_pending = 1;
        if (session_decodes(p->session)) choose_drafts(c, p, each_draft);
        room -= p->n_drafts;
    }
    for (int i = 0; i < c->n_parts; i++) {
        Part *p = &c->parts[i];
        if (!prompt_left(p->session)) continue;
        const bool stops = p->stop > p->session->n_cached; /* else it has taken over more than that */
        const int left = (stops ? p->stop : p->session->n_tokens) - p->session->n_cached, share = 1 + room / reading;
        p->n_pending = left < share ? left : share;
        room -= p->n_pending - 1;
        reading--;
    }
}

/* ---- draft -------------------------------------------------------------------------------------- */

/* Asks a source for the drafts of those that chose it, and all that use it for room. */
static void ask(Cycle *c, SourceId id) {
    bee_engine *e = c->engine;
    const DraftSource *source = draft_sources[id];
    DraftOrder orders[BEE_MAX_PASS_ROWS];
    Part *parts[BEE_MAX_PASS_ROWS];
    int n = 0, n_drafting = 0;
    for (int i = 0; i < c->n_parts; i++) {
        Part *p = &c->parts[i];
        const bee_session *s = p->session;
        if (!s->uses[id]) continue;
        const bool asked = p->source == source;
        parts[n] = p;
        orders[n++] = (DraftOrder){.session = p->session,
                                   .last_token = s->tokens[s->n_tokens - 1],
                                   .sampling = &s->sampling,
                                   .n = asked ? p->n_drafts : 0,
                                   .n_rows = p->n_pending + p->n_drafts,
                                   .drafts = p->drafts};
        n_drafting += asked;
    }
    if (!n) return;
    double predicted = 0;
    for (int i = 0; i < n; i++)
        if (n_drafting)
            predicted += cost_of_draft(&e->draft_costs[id], &e->costs, orders[i].n, n_drafting) / n_drafting;
    const double start = monotonic_seconds();
    const bool usual = source->propose(e, orders, n);
    for (int i = 0; i < n; i++) parts[i]->draft_row = parts[i]->source == source ? orders[i].row : parts[i]->draft_row;
    if (!source->is_model || !n_drafting) return;
    if (usual && !e->unfinished) draft_costs_observe(&e->draft_costs[id], predicted, monotonic_seconds() - start);
    e->unfinished = false;
}

/* Whether the pass reads the session's last token, behind which one is chosen. */
static bool chooses(const Part *p) {
    return p->n_pending && p->session->n_cached + p->n_pending == p->session->n_tokens;
}

/* Drafts that the constraint allows, and the masks behind them. */
static void constrain_drafts(Part *p) {
    bee_session *s = p->session;
    if (!s->constrained || !chooses(p)) return;
    if (!session_decodes(s) && masked_begin(s, 0, &p->masked) < 0) {
        fail_constraint(p);
        return;
    }
    if (p->n_drafts < p->masked.n_forced) p->masked.n_forced = p->n_drafts;
    memcpy(p->drafts, p->masked.forced, (size_t)p->masked.n_forced * sizeof *p->drafts);
    const int n = masked_drafts(s, &p->masked, p->drafts, p->n_drafts, p->source, p->draft_row);
    if (n < 0)
        fail_constraint(p);
    else
        p->n_drafts = n;
    if (p->masked.n_forced > p->n_drafts) p->masked.n_forced = p->n_drafts;
}

static void propose_drafts(Cycle *c) {
    for (int id = 0; id < N_DRAFT_SOURCES; id++) ask(c, (SourceId)id);
    for (int i = 0; i < c->n_parts; i++) constrain_drafts(&c->parts[i]);
}

/* ---- verify and choose -------------------------------------------------------------------------- */

/* What is chosen behind so many drafts, in the pass's last row so far. */
static void add_choice(Cycle *c, Part *p, int position, int behind) {
    bee_session *s = p->session;
    Choice *choice = &c->choices[c->n_choices];
    *choice = (Choice){
        .sampling = &s->sampling, .position = position, .logits_row = c->n_choices, .mask = p->masked.masks[behind]};
    full_path_prepare(&s->full, choice, s->tokens, s->n_tokens, p->drafts, behind);
    c->head_rows[c->n_choices++] = c->n_rows - 1;
}

static void add_rows(Cycle *c, Part *p) {
    const bee_session *s = p->session;
    const bool ends = chooses(p);
    p->first_row = c->n_rows;
    p->first_choice = c->n_choices;
    p->n_choices = ends ? 1 + p->n_drafts : 0;
    for (int i = 0; i < p->n_pending + p->n_drafts; i++) {
        const int position = s->n_cached + i, behind = i - p->n_pending + 1;
        const int32_t token = behind < 1 ? s->tokens[position] : p->drafts[behind - 1];
        c->rows[c->n_rows++] = (Row){s->cache, token, position, position + 1};
        if (ends && behind >= 0) add_choice(c, p, position + 1, behind);
    }
}

static bool any_cancelled(void *argument) {
    const Cycle *c = argument;
    for (int i = 0; i < c->n_parts; i++)
        if (atomic_load_explicit(&c->parts[i].session->cancelled, memory_order_relaxed)) return true;
    return false;
}

/* False where nothing was run, or a session was cancelled: then the pass ended early and counts for nobody. */
static bool verify_and_choose(Cycle *c) {
    bee_engine *e = c->engine;
    c->n_rows = c->n_choices = 0;
    for (int i = 0; i < c->n_parts; i++) add_rows(c, &c->parts[i]);
    if (!c->n_rows) return false;
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
                       .cancelled =
                           e->ops->device ? NULL : any_cancelled, /* a device records the pass and is not asked */
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

/* After `token`, the n-th that the cycle yields. */
static bee_finish finish_of(const bee_session *s, int32_t token, int n) {
    if (is_stop_token(s, token)) return BEE_FINISH_STOP;
    if (s->stats.output_tokens + n >= s->max_tokens) return BEE_FINISH_LENGTH;
    return s->n_tokens + n >= s->n_ctx ? BEE_FINISH_CONTEXT : BEE_FINISH_NONE;
}

/* The chosen tokens as long as the drafts before them agree, and the logits are finite. */
static int agreed_tokens(const Cycle *c, const Part *p, int32_t *tokens, bee_finish *finish) {
    int n = 0;
    while (n < p->n_choices && !*finish) {
        const int32_t token = c->choices[p->first_choice + n].token;
        if (token < 0) break;
        tokens[n++] = token;
        *finish = finish_of(p->session, token, n);
        if (n <= p->n_drafts && p->drafts[n - 1] != token) break;
    }
    return n;
}

/* Of those, what the constraint keeps. */
static void accept(const Cycle *c, Part *p) {
    bee_session *s = p->session;
    bee_step *step = p->step;
    const int agreed = agreed_tokens(c, p, step->tokens, &step->finish);
    bool complete;
    const int kept = masked_commit(s, step->tokens, agreed, &complete);
    p->n_new = kept < 0 ? 0 : kept;
    p->cut = p->n_new < agreed;
    if (p->cut) step->finish = kept < 0 ? BEE_FINISH_CONSTRAINT : BEE_FINISH_NONE;
    if (complete && kept >= 0 && step->finish != BEE_FINISH_STOP) step->finish = BEE_FINISH_COMPLETE;
    for (int i = 0; i < p->n_new && s->n_tokens < s->n_ctx; i++) s->tokens[s->n_tokens++] = step->tokens[i];
    s->stats.output_tokens += p->n_new;
    step->n_tokens = p->n_new;
    full_path_report(&s->full, p->n_new);
}

static int kept_drafts(const Part *p) { return p->n_new > 1 ? p->n_new - 1 : 0; }

static void count(const Part *p) {
    bee_stats *stats = &p->session->stats;
    const int accepted = kept_drafts(p);
    const bool modelled = p->source && p->source->is_model, copied = p->source && !modelled;
    stats->cycles++;
    (*(full_path_active(&p->session->full) ? &stats->full_cycles
       : p->masked.active                  ? &stats->masked_cycles
                                           : &stats->reduced_cycles))++;
    stats->drafted_tokens += p->n_drafts;
    stats->forced_tokens += p->masked.n_forced;
    stats->accepted_tokens += accepted;
    stats->copied_tokens += copied * p->n_drafts;
    stats->copied_accepted += copied * accepted;
    stats->accepted_histogram[accepted]++;
    stats->drafted_histogram[p->n_drafts]++;
    stats->drafter_histogram[modelled * p->n_drafts]++;
}

/* What the cycle tells of the sources. Where a constraint had its hand in the drafts, or in what was kept of them,
 * nothing is learned. */
static void observe_drafts(const Part *p) {
    bee_session *s = p->session;
    if (p->cut || p->masked.n_forced) return;
    for (int i = 0; i < N_DRAFT_SOURCES; i++) {
        const DraftSource *source = draft_sources[i];
        const DraftOutcome outcome = {
            .drafted = p->source == source ? p->n_drafts : 0, .tokens = p->step->tokens, .n_tokens = p->n_new};
        if (s->uses[i] && source->observe) source->observe(s, &outcome);
    }
}

/* ---- commit ------------------------------------------------------------------------------------- */

/* Rows whose token was committed when the pass ran, or was accepted by it. Where no token was kept, the last row runs
 * again: what is chosen behind it is still open. */
static int committed_rows(const Part *p) { return p->n_pending + (p->n_choices ? p->n_new - 1 : 0); }

static void commit(Part *p) {
    bee_session *s = p->session;
    const int n = committed_rows(p);
    keep_features(s, p->first_row, n);
    if (p->on_device) device_cycle_commit(s, p->n_drafts, n);
    for (int i = 0; i < N_DRAFT_SOURCES && !p->on_device; i++)
        if (s->uses[i] && draft_sources[i]->keep) draft_sources[i]->keep(s, p->first_row, n);
    s->n_cached += n;
    const bool turn = p->n_choices && s->stats.output_tokens == p->n_new;
    if (!device_cycle_queued(s)) snapshots_keep(s, turn || s->n_cached == p->stop);
    s->last_source = p->source;
    p->step->n_prompt_left = waiting_prompt(s);
    if (p->step->finish) s->active = false;
}

/* ---- a step ------------------------------------------------------------------------------------- */

static bool is_decoding(const Part *p) { return p->n_pending == 1 && p->n_choices; }

/* A pass that read no prompt tells what passes over so many rows cost, where the device had nothing before it to do. */
static void observe_pass(const Cycle *c, double seconds) {
    if (c->engine->unfinished) return;
    for (int i = 0; i < c->n_parts; i++)
        if (!is_decoding(&c->parts[i]) || full_path_active(&c->parts[i].session->full)) return;
    pass_costs_observe(&c->engine->costs, c->n_rows, c->n_rows > c->n_parts, seconds);
}

static void conclude(const Cycle *c, Part *p) {
    if (has_failed(p)) return;
    /* Its own numbers alone are broken: rows do not see each other. */
    if (p->n_choices && c->choices[p->first_choice].token < 0) {
        p->step->finish = BEE_FINISH_NOT_FINITE;
        p->session->active = false;
        return;
    }
    accept(c, p);
    if (is_decoding(p) && p->n_new) {
        count(p);
        if (!p->step->finish) observe_drafts(p);
    }
    commit(p);
}

/* On a device, one session that needs nothing from the host between draft and commit: the pass's outcome is taken as if
 * it had been drafted and verified here. */
static bool runs_on_device(const Cycle *c) {
    const Part *p = &c->parts[0];
    if (c->n_parts > 1 || !c->engine->ops->device || has_failed(p)) return false;
    if (device_cycle_queued(p->session)) return true;
    return !p->masked.active && device_cycle_possible(p->session, p->source, p->n_drafts);
}

static bool run_on_device(Cycle *c) {
    Part *p = &c->parts[0];
    CycleOutcome outcome;
    const bool ahead = !c->company && device_cycle_goes_on(p->session, p->source, p->n_drafts, p->urgent);
    /* What is under way runs before what was chosen now. Drafts of the host's that find it void are left for the next
     * cycle. */
    const int n_drafts = p->source && p->source->on_device ? p->n_drafts : 0;
    if (!device_cycle_run(p->session, n_drafts, ahead, &outcome)) return false;
    p->source = outcome.n_drafts ? &dflash_source : NULL;
    p->n_drafts = outcome.n_drafts;
    memcpy(p->drafts, outcome.drafts, sizeof p->drafts);
    p->n_choices = outcome.n_drafts + 1;
    for (int i = 0; i < p->n_choices; i++) c->choices[i] = (Choice){.token = outcome.tokens[i]};
    p->on_device = true;
    return true;
}

/* Drafts, verifies and chooses; false where that was cut short. */
static bool run_passes(Cycle *c) {
    if (runs_on_device(c)) return run_on_device(c);
    propose_drafts(c);
    const double proposed = monotonic_seconds();
    if (!verify_and_choose(c)) return false;
    observe_pass(c, monotonic_seconds() - proposed);
    c->engine->unfinished = c->engine->ops->device && !c->n_choices;
    return true;
}

static void run_cycle(Cycle *c) {
    const double start = monotonic_seconds();
    share_rows(c);
    if (!run_passes(c)) return;
    for (int i = 0; i < c->n_parts; i++) conclude(c, &c->parts[i]);
    const double seconds = monotonic_seconds() - start;
    for (int i = 0; i < c->n_parts; i++) {
        bee_stats *stats = &c->parts[i].session->stats;
        *(is_decoding(&c->parts[i]) ? &stats->decode_seconds : &stats->prefill_seconds) += seconds;
    }
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
        sessions[i]->full.n_results = 0;
        steps[i] = (bee_step){.n_prompt_left = waiting_prompt(sessions[i])};
        if (atomic_load(&sessions[i]->cancelled)) {
            steps[i].finish = BEE_FINISH_CANCELLED;
            sessions[i]->active = false;
        } else {
            c->parts[c->n_parts++] = (Part){.session = sessions[i], .step = &steps[i]};
        }
    }
}

/* Sessions in company whose cycle is under way yield its tokens first, and take no part in the pass. */
static void take_queued(Cycle *c) {
    if (c->n_parts < 2) return;
    int n = 0;
    for (int i = 0; i < c->n_parts; i++) {
        Part *p = &c->parts[i];
        if (device_cycle_queued(p->session)) {
            Cycle alone = {.engine = c->engine, .parts = {*p}, .n_parts = 1, .company = true};
            run_cycle(&alone);
        } else {
            c->parts[n++] = *p;
        }
    }
    c->n_parts = n;
}

bee_status bee_engine_step(bee_engine *engine, bee_session *const *sessions, int32_t n_sessions, bee_step *steps,
                           bee_error *error) {
    Cycle cycle = {.engine = engine};
    pthread_mutex_lock(&engine->mutex);
    bee_status status = engine_status(engine, error);
    if (!status) status = check_sessions(engine, sessions, n_sessions, error);
    if (!status) {
        enlist(&cycle, sessions, n_sessions, steps);
        cycle.company = cycle.n_parts > 1;
        take_queued(&cycle);
        if (cycle.n_parts > 1) share_beginnings(&cycle);
        if (cycle.n_parts) run_cycle(&cycle);
        /* A pass that a cancellation ended reports it now, not with the next step. */
        for (int i = 0; i < cycle.n_parts; i++) {
            Part *p = &cycle.parts[i];
            if (p->n_new || p->step->finish || !atomic_load(&p->session->cancelled)) continue;
            p->step->finish = BEE_FINISH_CANCELLED;
            p->session->active = false;
        }
        status = engine_status(engine, error);
    }
    pthread_mutex_unlock(&engine->mutex);
    return status;
}
