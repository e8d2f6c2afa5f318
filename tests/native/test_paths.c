/* Tests of the masked and the full logit path on tiny random models: the same tokens and log-probabilities whatever the
 * drafts and the company, and the same as choosing by hand; forced tokens; constraints that fail. */
#include "compiled_kernels.h"
#include "engine/device_cycle.h"
#include "engine_exercise.h"
#include "sample_row.h"

#include <math.h>
#include <pthread.h>

/* ---- rules: what may follow, as a function of the tokens alone ---------------------------------------- */

typedef struct Rules {
    uint64_t seed;
    int n_vocab;
    int free;       /* of 8 places, how many are free */
    int run_every;  /* a run of tokens without a choice begins at one of so many places; 0: nowhere */
    int longest;    /* tokens of such a run */
    int first_run;  /* tokens of a run at the start */
    int shortest;   /* tokens that are needed before the end may come; it comes at one of 5 places then */
    bool for_ever;  /* it never comes */
    int nothing_at; /* the place at which a mask allows nothing; 0: none */
} Rules;

/* Behind some tokens. */
typedef struct Place {
    uint64_t hash;
    int n;
    int run; /* tokens that are left of a run */
} Place;

typedef enum Kind { RUN, FREE, SINGLE, FEW, HALF, NEARLY_ALL, NOTHING } Kind;

static uint64_t roll(uint64_t hash, uint64_t purpose) { return mix_bits(hash + purpose * 0x9e3779b97f4a7c15); }

static Place first_place(const Rules *r) { return (Place){roll(r->seed, 1), 0, r->first_run}; }

static Place follow(const Rules *r, Place at, int32_t token) {
    Place next = {roll(at.hash, 100 + (uint64_t)token), at.n + 1, at.run - (at.run > 0)};
    if (!at.run && r->run_every && roll(next.hash, 2) % (uint64_t)r->run_every == 0)
        next.run = 1 + (int)(roll(next.hash, 3) % (uint64_t)r->longest);
    return next;
}

static Kind kind_of(const Rules *r, Place at) {
    if (r->nothing_at && at.n == r->nothing_at) return NOTHING;
    if (at.run) return RUN;
    if (roll(at.hash, 4) % 8 < (uint64_t)r->free) return FREE;
    return (Kind)(SINGLE + roll(at.hash, 5) % 4);
}

/* A token that is always allowed. */
static int32_t certain_token(const Rules *r, Place at) { return (int32_t)(roll(at.hash, 6) % (uint64_t)r->n_vocab); }

/* At a free place: whether the token is left as it is; one of 6 is void, and chosen anew among those that are not. */
static bool allows(const Rules *r, Place at, int32_t token) {
    static const uint64_t one_of[] = {[FEW] = 16, [HALF] = 2};
    const Kind kind = kind_of(r, at);
    if (kind == NOTHING) return false;
    if (token == certain_token(r, at)) return true;
    if (kind == RUN || kind == SINGLE) return false;
    const uint64_t hash = roll(at.hash, 1000 + (uint64_t)token);
    return kind == FREE ? hash % 6 != 0 : kind == NEARLY_ALL ? hash % 32 != 0 : hash % one_of[kind] == 0;
}

static bool is_complete(const Rules *r, Place at) {
    return !r->for_ever && !at.run && at.n >= r->shortest && roll(at.hash, 7) % 5 == 0;
}

static void write_mask(const Rules *r, Place at, uint32_t *mask) {
    memset(mask, 0, (size_t)(r->n_vocab + 31) / 32 * sizeof *mask);
    for (int32_t token = 0; token < r->n_vocab; token++)
        mask[token / 32] |= (uint32_t)allows(r, at, token) << token % 32;
    if (r->n_vocab % 32) mask[r->n_vocab / 32] |= (uint32_t)roll(at.hash, 8) << r->n_vocab % 32; /* means nothing */
}

/* ---- a constraint that follows rules, and checks how it is called ------------------------------------- */

typedef enum Phase { IDLE, BEGUN, ADVANCING, ENDED } Phase;

/* What goes wrong. */
typedef struct Sabotage {
    int begin, advance, commit; /* the so manieth call of one of them returns `result` */
    int result;
    bool complete;        /* and is complete */
    bool for_ever;        /* all later calls, too */
    bee_session *cancels; /* cancelled during that advance, which returns what it should */
    bool lies;            /* what is called certain is refused */
    bool silent;          /* nothing is called certain */
} Sabotage;

typedef struct Guide {
    Rules rules;
    Place at;    /* behind the committed tokens */
    bool narrow; /* the place is free, but what was chosen there was void */
    Phase phase;
    bool free_cycle;
    Place path[BEE_MAX_BLOCK]; /* behind so many drafts */
    int32_t drafts[BEE_MAX_BLOCK];
    int n_drafts;
    int32_t forced[BEE_MAX_BLOCK];
    int n_forced;
    pthread_t thread;
    /* what happened */
    int begins, advances, commits, refused, cuts, nothing_kept, abandoned, free_cycles;
    Sabotage wrong;
    bool struck; /* it did go wrong */
} Guide;

static Guide guide_of(const Rules *rules) {
    return (Guide){.rules = *rules, .at = first_place(rules), .thread = pthread_self()};
}

/* Whether this is the call that goes wrong. */
static bool strikes(Guide *g, int call, int bad) {
    const bool now = bad && (call == bad || (g->wrong.for_ever && call > bad));
    g->struck |= now;
    return now;
}

static bool is_free(const Guide *g, Place at) {
    return kind_of(&g->rules, at) == FREE && !(g->narrow && at.n == g->at.n);
}

static int32_t guide_begin(void *user, int32_t *forced, int32_t room) {
    Guide *g = user;
    CHECK(pthread_equal(pthread_self(), g->thread));
    CHECK(g->phase != ENDED);
    CHECK(forced && room >= 0 && room < BEE_MAX_BLOCK);
    g->abandoned += g->phase != IDLE;
    g->phase = BEGUN;
    g->n_forced = g->n_drafts = 0;
    if (strikes(g, ++g->begins, g->wrong.begin)) return g->wrong.result;
    /* A free place may also be told of when its mask is asked for. */
    g->free_cycle = is_free(g, g->at) && roll(g->at.hash, 9) % 4;
    g->free_cycles += g->free_cycle;
    if (g->free_cycle) return BEE_CONSTRAINT_FREE;
    int32_t n = 0;
    for (Place at = g->at; !g->wrong.silent && at.run && kind_of(&g->rules, at) == RUN; n++) {
        const int32_t token = certain_token(&g->rules, at);
        if (n < room) forced[n] = g->forced[g->n_forced++] = (token + g->wrong.lies) % g->rules.n_vocab;
        at = follow(&g->rules, at, token);
    }
    return n;
}

static int32_t describe(const Guide *g, Place at, uint32_t *mask) {
    if (is_free(g, at)) return BEE_CONSTRAINT_FREE;
    write_mask(&g->rules, at, mask);
    return BEE_CONSTRAINT_MASKED;
}

static int32_t advance_over(Guide *g, int32_t draft, uint32_t *mask) {
    const Rules *r = &g->rules;
    const Place here = g->path[g->n_drafts];
    CHECK(draft >= 0 && draft < r->n_vocab && g->n_drafts < BEE_MAX_BLOCK - 1);
    CHECK(!is_free(g, here) && !is_complete(r, here)); /* no drafts behind a place without a mask */
    const bool forced = g->n_drafts < g->n_forced && !g->wrong.lies;
    if (forced) CHECK_EQ(draft, g->forced[g->n_drafts]);
    const Place next = follow(r, here, draft);
    const bool complete = is_complete(r, next);
    if (!allows(r, here, draft) || (complete && !forced && roll(next.hash, 10) % 2)) {
        g->refused++;
        return BEE_CONSTRAINT_REFUSED;
    }
    g->drafts[g->n_drafts++] = draft;
    g->path[g->n_drafts] = next;
    return complete ? BEE_CONSTRAINT_FREE : describe(g, next, mask);
}

static int32_t guide_advance(void *user, int32_t draft, uint32_t *mask) {
    Guide *g = user;
    CHECK(pthread_equal(pthread_self(), g->thread));
    CHECK(mask && !g->free_cycle && g->phase == (draft == -1 ? BEGUN : ADVANCING));
    memset(mask, 0xa5, (size_t)(g->rules.n_vocab + 31) / 32 * sizeof *mask); /* counts only where it is a mask */
    g->phase = ADVANCING;
    if (strikes(g, ++g->advances, g->wrong.advance)) {
        if (!g->wrong.cancels) return g->wrong.result;
        bee_session_cancel(g->wrong.cancels);
    }
    if (draft != -1) return advance_over(g, draft, mask);
    g->path[0] = g->at;
    return describe(g, g->at, mask);
}

/* Goes over one chosen token; whether it stays. */
static bool take_token(Guide *g, int i, int32_t token) {
    const Rules *r = &g->rules;
    const bool free = is_free(g, g->at);
    if (g->free_cycle && !free) return false; /* was chosen without the mask that belongs here */
    if (free && !allows(r, g->at, token)) {
        g->narrow = true;
        return false;
    }
    if (!free) CHECK(allows(r, g->at, token) && g->at.hash == g->path[i].hash);
    g->at = follow(r, g->at, token);
    g->narrow = false;
    return true;
}

static int32_t guide_commit(void *user, const int32_t *tokens, int32_t n, int32_t *next) {
    Guide *g = user;
    CHECK(pthread_equal(pthread_self(), g->thread));
    CHECK(g->phase == (g->free_cycle ? BEGUN : ADVANCING));
    CHECK(n >= 1 && n <= BEE_MAX_BLOCK && next && *next == BEE_CONSTRAINT_MASKED);
    if (!g->free_cycle) CHECK(n <= g->n_drafts + 1 && !memcmp(tokens, g->drafts, (size_t)(n - 1) * sizeof *tokens));
    g->phase = IDLE;
    if (strikes(g, ++g->commits, g->wrong.commit)) {
        if (g->wrong.complete) *next = BEE_CONSTRAINT_COMPLETE;
        return g->wrong.result == INT32_MAX ? n + 1 : g->wrong.result;
    }
    int32_t kept = 0;
    bool complete = false;
    while (kept < n && !complete && take_token(g, kept, tokens[kept])) {
        kept++;
        complete = is_complete(&g->rules, g->at);
    }
    if (complete) {
        *next = BEE_CONSTRAINT_COMPLETE;
        g->phase = ENDED;
    } else if (is_free(g, g->at) && roll(g->at.hash, 11) % 2) { /* the next cycle need not ask */
        *next = BEE_CONSTRAINT_FREE;
        g->phase = BEGUN;
        g->free_cycle = true;
        g->free_cycles++;
    }
    g->cuts += kept < n;
    g->nothing_kept += kept == 0;
    return kept;
}

/* ---- requests ------------------------------------------------------------------------------------------ */

typedef struct Answer {
    Output out;
    bee_logprobs logprobs[MOST];
} Answer;

typedef struct Job {
    bee_request request;
    int32_t prompt[MOST];
    bee_logit_bias biases[8];
    int32_t stops[3];
    bool constrained;
    Rules rules;
    int n_ctx;
    Guide guide; /* of the run under way */
    bee_constraint constraint;
    Answer answer;
} Job;

static void random_rules(Random *random, int n_vocab, Rules *r) {
    static const int free[] = {0, 1, 3, 6, 8};
    static const int run_every[] = {0, 4, 12, 40};
    *r = (Rules){.seed = random_bits(random),
                 .n_vocab = n_vocab,
                 .free = free[random_below(random, 5)],
                 .run_every = run_every[random_below(random, 4)],
                 .longest = 20,
                 .first_run = random_below(random, 3) ? 0 : random_below(random, 20),
                 .shortest = random_below(random, 40),
                 .for_ever = random_below(random, 4) == 0};
}

static void random_full_path(Random *random, int n_vocab, Job *job) {
    static const int last_n[] = {-1, 1, 5, 64, 1000};
    bee_request *r = &job->request;
    if (random_below(random, 2)) {
        r->biases = job->biases;
        r->n_biases = 1 + random_below(random, n_vocab < 8 ? n_vocab : 8);
        const int first = random_below(random, n_vocab);
        for (int i = 0; i < r->n_biases; i++)
            job->biases[i] = (bee_logit_bias){(first + i) % n_vocab, (float)(3 * random_normal(random))};
    }
    if (random_below(random, 2))
        r->penalties = (bee_penalties){.last_n = last_n[random_below(random, 5)],
                                       .repetition = random_below(random, 2) ? 1.7f : 1,
                                       .frequency = random_below(random, 2) ? 0.4f : 0,
                                       .presence = random_below(random, 2) ? -0.6f : 1.1f};
    r->logprobs = random_below(random, 2);
    if (r->logprobs) r->n_top_logprobs = random_below(random, 2) ? random_below(random, 21) : 0;
}

static void random_job(Random *random, int n_vocab, Job *job) {
    *job = (Job){.constrained = random_below(random, 5) != 0};
    bee_request *r = &job->request;
    *r = (bee_request){.prompt = job->prompt,
                       .n_prompt = 1 + random_below(random, 40),
                       .max_tokens = 1 + random_below(random, 50),
                       .sampling = random_sampling(random)};
    /* Half of the prompts repeat themselves, so that there is something to copy. */
    random_prompt(random, job->prompt, r->n_prompt, random_below(random, 2) || n_vocab < 4 ? n_vocab : 3);
    if (random_below(random, 3) == 0) random_prompt(random, job->stops, r->n_stop_tokens = 2, n_vocab);
    r->stop_tokens = job->stops;
    job->n_ctx = random_below(random, 3) ? N_CTX : r->n_prompt + random_below(random, 30);
    random_rules(random, n_vocab, &job->rules);
    if (random_below(random, 2)) random_full_path(random, n_vocab, job);
}

static bool job_is_full(const Job *job) {
    const bee_request *r = &job->request;
    const bee_penalties *p = &r->penalties;
    return r->n_biases || r->logprobs || (p->last_n && (p->repetition != 1 || p->frequency != 0 || p->presence != 0));
}

static void begin_job(bee_session *session, Job *job) {
    job->answer = (Answer){.out = {.n = 0}};
    if (job->constrained) {
        const Sabotage wrong = job->guide.wrong;
        job->guide = guide_of(&job->rules);
        job->guide.wrong = wrong;
        job->constraint = (bee_constraint){&job->guide, guide_begin, guide_advance, guide_commit, NULL};
        job->request.constraint = &job->constraint;
    }
    bee_error error = {BEE_OK, ""};
    if (!CHECK_EQ(bee_session_begin(session, &job->request, &error), BEE_OK)) printf("    %s\n", error.message);
    job->constraint = (bee_constraint){.user = NULL}; /* the session has its own */
}

static void take_logprobs(bee_session *session, const bee_step *step, Job *job) {
    const int n = job->request.logprobs ? step->n_tokens : 0, before = job->answer.out.n - step->n_tokens;
    for (int i = 0; i < n; i++) CHECK_EQ(bee_session_logprobs(session, i, &job->answer.logprobs[before + i], NULL), 0);
    bee_logprobs none;
    CHECK_EQ(bee_session_logprobs(session, n, &none, NULL), BEE_ERROR_ARGUMENT);
}

/* The counts of a request that has ended. */
static void check_job(bee_session *session, Job *job) {
    Output *out = &job->answer.out;
    bee_session_stats(session, &out->stats);
    const bee_stats *s = &out->stats;
    check_stats(out, job->request.n_prompt);
    CHECK(s->forced_tokens + s->copied_tokens <= s->drafted_tokens);
    /* What is forced is what the masks demand. A cycle that ends with a draft counts it as its own token. */
    const int cut =
        job->guide.cuts + (out->finish == BEE_FINISH_CONTEXT) + (out->finish == BEE_FINISH_STOP ? BEE_MAX_BLOCK : 0);
    if (!job->guide.wrong.lies && !job->guide.struck) CHECK(s->accepted_tokens + cut >= s->forced_tokens);
    if (job->request.speculation == BEE_SPECULATION_OFF) CHECK(s->drafted_tokens == 0 && s->forced_tokens == 0);
    CHECK_EQ(s->full_cycles, job_is_full(job) ? s->cycles : 0);
    if (!job->constrained) CHECK_EQ(s->masked_cycles + s->forced_tokens, 0);
    if (job->constrained && out->finish == BEE_FINISH_COMPLETE) CHECK_EQ(job->guide.phase, ENDED);
    CHECK_EQ(out->finish == BEE_FINISH_COMPLETE, job->constrained && job->guide.phase == ENDED && out->finish != 1);
}

/* Runs jobs together. `waits`: now and then one of them takes no part in a pass, as in a queue. */
static void run_jobs(bee_engine *engine, bee_session *const *sessions, Job *const *jobs, int n_jobs, bool waits) {
    enum { MOST_JOBS = 16 };
    int running = n_jobs;
    for (int i = 0; i < n_jobs; i++) begin_job(sessions[i], jobs[i]);
    for (int pass = 0; running && pass < 1000; pass++) {
        bee_session *active[MOST_JOBS];
        bee_step steps[MOST_JOBS];
        int index[MOST_JOBS], n = 0;
        for (int i = 0; i < n_jobs; i++)
            if (!jobs[i]->answer.out.finish && (!waits || (pass + i) % 4)) active[n] = sessions[i], index[n++] = i;
        if (!n) continue;
        if (!CHECK_EQ(bee_engine_step(engine, active, n, steps, NULL), BEE_OK)) break;
        for (int i = 0; i < n; i++) {
            Job *job = jobs[index[i]];
            take_step(&steps[i], &job->answer.out);
            if (steps[i].n_tokens) take_logprobs(active[i], &steps[i], job);
            if (steps[i].finish) check_job(active[i], job);
            running -= steps[i].finish != BEE_FINISH_NONE;
        }
    }
    CHECK_EQ(running, 0);
}

static void run_alone(bee_engine *engine, Job *job) {
    bee_session *session = open_session(engine, job->n_ctx);
    run_jobs(engine, &session, &job, 1, false);
    bee_session_close(session);
}

static bool same_logprobs(const bee_logprobs *a, const bee_logprobs *b) {
    const size_t n = (size_t)a->n_top;
    return !memcmp(&a->logprob, &b->logprob, sizeof a->logprob) && a->n_top == b->n_top &&
           !memcmp(a->top_tokens, b->top_tokens, n * sizeof *a->top_tokens) &&
           !memcmp(a->top_logprobs, b->top_logprobs, n * sizeof *a->top_logprobs);
}

static bool same_answer(const Answer *a, const Answer *b) {
    bool same = same_output(&a->out, &b->out);
    for (int i = 0; same && i < a->out.n; i++) same = same_logprobs(&a->logprobs[i], &b->logprobs[i]);
    return same;
}

static bool check_same(const Job *job, const Answer *expected, const char *what) {
    const bee_request *r = &job->request;
    const Output *a = &job->answer.out, *b = &expected->out;
    if (CHECK(same_answer(&job->answer, expected))) return true;
    printf("    %s: speculation %d, draft length %d, temperature %g; %d tokens and finish %d, expected %d and %d\n",
           what, (int)r->speculation, r->draft_length, (double)r->sampling.temperature, a->n, (int)a->finish, b->n,
           (int)b->finish);
    return false;
}

/* ---- by hand ------------------------------------------------------------------------------------------- */

/* Biases and penalties, as bee.h and llama.cpp say. */
static void edit_by_hand(const bee_request *r, const int32_t *tokens, int n_tokens, float *row, int n_vocab) {
    const bee_penalties *p = &r->penalties;
    for (int i = 0; i < r->n_biases; i++) row[r->biases[i].token] += r->biases[i].bias;
    if (!p->last_n) return;
    const int first = p->last_n < 0 || p->last_n > n_tokens ? 0 : n_tokens - p->last_n;
    for (int token = 0; token < n_vocab; token++) {
        int count = 0;
        for (int i = first; i < n_tokens; i++) count += tokens[i] == token;
        if (!count) continue;
        if (row[token] > 0)
            row[token] /= p->repetition;
        else
            row[token] *= p->repetition;
        row[token] -= (float)count * p->frequency + p->presence;
    }
}

static void mask_by_hand(const Rules *r, Place at, float *row) {
    for (int token = 0; token < r->n_vocab; token++)
        if (!allows(r, at, token)) row[token] = -INFINITY;
}

/* The sum's terms are exponentials of rounded differences to a largest logit, with a relative error of 2e-7, which
 * kernels.c promises; their sum adds n / 16 roundings in each lane and four across lanes, and the result is rounded. */
static double logprob_bound(const float *row, int n, double logprob) {
    float largest = row[0], smallest = row[0];
    for (int i = 1; i < n; i++) {
        if (row[i] > largest) largest = row[i];
        if (row[i] < smallest) smallest = row[i];
    }
    const double u = 0x1p-24;
    return 1.001 * (2e-7 + u * (double)(largest - smallest) + u * (n / 16 + 5)) + u * fabs(logprob);
}

static void check_logprobs(const bee_request *r, const float *row, int n, int32_t token, const bee_logprobs *got) {
    double largest = row[0], sum = 0;
    for (int i = 1; i < n; i++) largest = fmax(largest, row[i]);
    for (int i = 0; i < n; i++) sum += exp(row[i] - largest);
    const double log_sum = largest + log(sum), logprob = row[token] - log_sum;
    CHECK_NEAR(got->logprob, logprob, logprob_bound(row, n, logprob));
    CHECK_EQ(got->n_top, r->n_top_logprobs < n ? r->n_top_logprobs : n);
    bool listed[1024] = {false};
    for (int i = 0; i < got->n_top; i++) {
        int32_t best = -1;
        for (int32_t t = 0; t < n; t++)
            if (!listed[t] && (best < 0 || row[t] > row[best])) best = t;
        listed[best] = true;
        CHECK_EQ(got->top_tokens[i], best);
        CHECK_NEAR(got->top_logprobs[i], row[best] - log_sum, logprob_bound(row, n, row[best] - log_sum));
        if (best == token) CHECK(got->top_logprobs[i] == got->logprob);
    }
}

static int32_t choose_by_hand(const Job *job, Place at, float *row, int n_vocab, int position, const Reductions *with) {
    const bee_sampling *s = &job->request.sampling;
    const bool free = job->constrained && kind_of(&job->rules, at) == FREE;
    if (job->constrained && !free) mask_by_hand(&job->rules, at, row);
    int32_t token = sample_row(row, n_vocab, NULL, s, position, with);
    if (free && !allows(&job->rules, at, token)) {
        mask_by_hand(&job->rules, at, row);
        token = sample_row(row, n_vocab, NULL, s, position, with);
    }
    return token;
}

/* How the request ends behind the n-th token. */
static bee_finish finish_by_hand(const Job *job, int32_t token, int n, Place behind) {
    const bee_request *r = &job->request;
    for (int i = 0; i < r->n_stop_tokens; i++)
        if (r->stop_tokens[i] == token) return BEE_FINISH_STOP;
    if (job->constrained && is_complete(&job->rules, behind)) return BEE_FINISH_COMPLETE;
    if (n >= r->max_tokens) return BEE_FINISH_LENGTH;
    return r->n_prompt + n >= job->n_ctx ? BEE_FINISH_CONTEXT : BEE_FINISH_NONE;
}

static void check_by_hand(bee_engine *engine, const Job *job) {
    const bee_request *r = &job->request;
    const Output *out = &job->answer.out;
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    const int n_vocab = info.n_vocab;
    const Kernels *kernels = kernels_named(info.instruction_set);
    const Reductions reductions = {kernels->largest, kernels->sum_exp, kernels->may_win};
    bee_session *session = open_session(engine, job->n_ctx);
    int32_t tokens[2 * MOST];
    memcpy(tokens, r->prompt, (size_t)r->n_prompt * sizeof *tokens);
    memcpy(tokens + r->n_prompt, out->tokens, (size_t)out->n * sizeof *tokens);
    const int n = r->n_prompt + out->n - 1;
    float *logits = malloc((size_t)(n * n_vocab) * sizeof *logits), row[1024];
    CHECK(out->n > 0);
    CHECK_EQ(bee_session_evaluate(session, tokens, n, 16, logits, NULL), BEE_OK);
    Place at = first_place(&job->rules);
    for (int i = 0; i < out->n; i++) {
        const int position = r->n_prompt + i;
        const float *unchanged = logits + (size_t)(position - 1) * (size_t)n_vocab;
        memcpy(row, unchanged, (size_t)n_vocab * sizeof *row);
        edit_by_hand(r, tokens, position, row, n_vocab);
        CHECK_EQ(out->tokens[i], choose_by_hand(job, at, row, n_vocab, position, &reductions));
        if (r->logprobs) check_logprobs(r, unchanged, n_vocab, out->tokens[i], &job->answer.logprobs[i]);
        at = follow(&job->rules, at, out->tokens[i]);
        CHECK_EQ(finish_by_hand(job, out->tokens[i], i + 1, at), i == out->n - 1 ? out->finish : BEE_FINISH_NONE);
    }
    free(logits);
    bee_session_close(session);
}

/* ---- the same whatever the drafts ---------------------------------------------------------------------- */

typedef struct Totals {
    int finishes[8];
    long masked, full, reduced, forced, drafted, accepted, refused, cuts, nothing_kept, free_cycles, copied, unforced;
} Totals;

static void add_totals(Totals *t, const Job *job) {
    const bee_stats *s = &job->answer.out.stats;
    const Guide *g = &job->guide;
    t->finishes[job->answer.out.finish]++;
    t->masked += s->masked_cycles, t->full += s->full_cycles, t->reduced += s->reduced_cycles;
    t->forced += s->forced_tokens, t->drafted += s->drafted_tokens, t->accepted += s->accepted_tokens;
    t->refused += g->refused, t->cuts += g->cuts, t->nothing_kept += g->nothing_kept;
    t->free_cycles += g->free_cycles, t->copied += s->copied_accepted;
    t->unforced += s->accepted_tokens - s->forced_tokens;
}

/* All that a test is for did happen. */
static void check_totals(const Totals *t) {
    if (test_rounds(8) < 8) return; /* too few rounds to see everything */
    for (int finish = BEE_FINISH_STOP; finish <= BEE_FINISH_CONTEXT; finish++) CHECK(t->finishes[finish] > 0);
    CHECK(t->finishes[BEE_FINISH_COMPLETE] > 0);
    CHECK_EQ(t->finishes[BEE_FINISH_NOT_FINITE] + t->finishes[BEE_FINISH_CONSTRAINT], 0);
    CHECK(t->masked > test_rounds(100) && t->full > test_rounds(100) && t->reduced > test_rounds(100));
    CHECK(t->forced > test_rounds(100) && t->refused > test_rounds(100) && t->free_cycles > test_rounds(100) &&
          t->unforced > test_rounds(100));
    CHECK(t->cuts > test_rounds(50) && t->nothing_kept > test_rounds(50) && t->copied > test_rounds(20));
}

static void compare_modes(bee_engine *engine, Job *job, bool all_lengths, Random *random, Totals *totals) {
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    job->request.speculation = BEE_SPECULATION_OFF;
    run_alone(engine, job);
    check_by_hand(engine, job);
    add_totals(totals, job);
    const Answer off = job->answer;
    bee_session *session = open_session(engine, job->n_ctx); /* each request finds what others left */
    for (int mode = BEE_SPECULATION_AUTO; mode <= BEE_SPECULATION_COPY; mode++) {
        const bool copies = mode == BEE_SPECULATION_COPY || !info.has_drafter;
        const int longest = copies ? BEE_MAX_BLOCK - 1 : info.block_size - 1;
        if (mode == BEE_SPECULATION_DFLASH && !info.has_drafter) continue;
        for (int length = -1; length <= longest; length++) {
            if (!all_lengths && length >= 0 && random_below(random, longest)) continue;
            job->request.speculation = (bee_speculation)mode;
            job->request.draft_length = length;
            run_jobs(engine, &session, &job, 1, false);
            CHECK_EQ(job->guide.abandoned, 0);
            check_same(job, &off, info.instruction_set);
            add_totals(totals, job);
        }
    }
    bee_session_close(session);
}

static void test_identity(void) {
    Random random = {40};
    Totals totals = {.masked = 0};
    for (int p = 0; p < N_PAIRS; p++)
        for (const char *const *isa = test_sets(); *isa; isa++) {
            bee_engine *engine = open_engine(&pairs[p].target, &pairs[p].drafter, pairs[p].threads, *isa);
            const int rounds = strcmp(*isa, "portable") ? 20 : 5;
            for (int round = 0; round < test_rounds(rounds); round++) {
                static Job job;
                random_job(&random, pairs[p].target.n_vocab, &job);
                compare_modes(engine, &job, round == 0 && test_rounds(8) == 8, &random, &totals);
            }
            bee_engine_close(engine);
        }
    check_totals(&totals);
}

/* Copies and forced tokens alone. */
static void test_without_drafter(void) {
    Random random = {54};
    Totals totals = {.masked = 0};
    bee_engine *engine = open_engine(&pairs[1].target, NULL, 2, NULL);
    static Job job;
    for (int round = 0; round < test_rounds(30); round++) {
        random_job(&random, 5, &job);
        compare_modes(engine, &job, false, &random, &totals);
    }
    if (test_rounds(8) == 8)
        CHECK(totals.refused > test_rounds(50) && totals.copied > test_rounds(20) && totals.forced > test_rounds(50) &&
              totals.masked > test_rounds(50));
    bee_engine_close(engine);
}

/* The context ends, or the output, behind any token of any cycle. */
static void test_ends(void) {
    Random random = {41};
    Totals totals = {.masked = 0};
    bee_engine *engine = open_engine(&pairs[1].target, &pairs[1].drafter, 2, NULL);
    static Job job;
    for (int round = 0; round < 3; round++) {
        random_job(&random, 5, &job);
        job.constrained = true;
        job.rules.for_ever = true;
        job.rules.run_every = 6;
        job.rules.free = round;
        job.request.n_stop_tokens = 0;
        job.request.n_prompt = 4;
        for (int end = 1; end < 25; end += test_rounds(8) == 8 ? 1 : 5) {
            const bool by_context = (end + round) % 2;
            job.n_ctx = by_context ? job.request.n_prompt + end - 1 : N_CTX;
            job.request.max_tokens = by_context ? 1000 : end;
            compare_modes(engine, &job, false, &random, &totals);
        }
    }
    if (test_rounds(8) == 8)
        CHECK(totals.finishes[BEE_FINISH_CONTEXT] > test_rounds(50) &&
              totals.finishes[BEE_FINISH_LENGTH] > test_rounds(50));
    CHECK_EQ(totals.finishes[BEE_FINISH_COMPLETE], 0);
    bee_engine_close(engine);
}

/* Sessions with and without constraints share passes, with prompts that are still being read. */
static void test_together(void) {
    enum { N = 9 };
    Random random = {42};
    Totals totals = {.masked = 0};
    for (int p = 0; p < N_PAIRS; p++) {
        bee_engine *engine = open_engine(&pairs[p].target, &pairs[p].drafter, pairs[p].threads, NULL);
        bee_engine_info info;
        bee_engine_describe(engine, &info);
        for (int round = 0; round < test_rounds(4); round++) {
            static Job jobs[N];
            static Answer alone[N];
            Job *all[N];
            bee_session *sessions[N];
            for (int i = 0; i < N; i++) {
                random_job(&random, info.n_vocab, &jobs[i]);
                random_speculation(&random, &info, &jobs[i].request);
                run_alone(engine, &jobs[i]);
                alone[i] = jobs[i].answer;
                all[i] = &jobs[i];
                sessions[i] = open_session(engine, jobs[i].n_ctx);
            }
            run_jobs(engine, sessions, all, N, true);
            for (int i = 0; i < N; i++) {
                CHECK_EQ(jobs[i].guide.abandoned, 0);
                check_same(&jobs[i], &alone[i], "together");
                add_totals(&totals, &jobs[i]);
                bee_session_close(sessions[i]);
            }
        }
        bee_engine_close(engine);
    }
    if (test_rounds(8) == 8)
        CHECK(totals.masked > test_rounds(50) && totals.full > test_rounds(50) && totals.reduced > test_rounds(50) &&
              totals.forced > test_rounds(50) && totals.cuts > test_rounds(20));
}

/* More constrained sessions than a pass has rows for drafts: nothing is forced then. */
static void test_no_room(void) {
    enum { N = BEE_MAX_PASS_ROWS };
    bee_engine *engine = open_engine(&pairs[0].target, &pairs[0].drafter, 2, NULL);
    static Job jobs[N];
    static bee_session *sessions[N];
    static bee_step steps[N];
    Random random = {43};
    random_job(&random, 97, &jobs[0]);
    jobs[0].constrained = true;
    jobs[0].n_ctx = 32;
    jobs[0].rules = (Rules){.seed = 5, .n_vocab = 97, .first_run = 30, .for_ever = true};
    jobs[0].request.n_prompt = 1;
    jobs[0].request.n_stop_tokens = 0;
    jobs[0].request.max_tokens = 6;
    jobs[0].request.speculation = BEE_SPECULATION_COPY;
    jobs[0].request.draft_length = -1;
    run_alone(engine, &jobs[0]);
    const Answer alone = jobs[0].answer;
    CHECK_EQ(alone.out.stats.cycles, 1);
    for (int i = 0; i < N; i++) {
        if (i) jobs[i] = jobs[0];
        jobs[i].request.prompt = jobs[i].prompt, jobs[i].request.biases = jobs[i].biases;
        jobs[i].request.stop_tokens = jobs[i].stops;
        begin_job(sessions[i] = open_session(engine, 32), &jobs[i]);
    }
    for (int pass = 0; pass < 6; pass++) {
        CHECK_EQ(bee_engine_step(engine, sessions, N, steps, NULL), BEE_OK);
        for (int i = 0; i < N; i++) {
            take_step(&steps[i], &jobs[i].answer.out);
            take_logprobs(sessions[i], &steps[i], &jobs[i]);
        }
    }
    int wrong = 0;
    for (int i = 0; i < N; i++) {
        wrong += !same_answer(&jobs[i].answer, &alone);
        bee_session_close(sessions[i]);
    }
    CHECK_EQ(wrong, 0);
    bee_engine_close(engine);
}

/* One session, requests of all kinds after each other: nothing of one is left in the next. */
static void test_one_after_another(void) {
    Random random = {44};
    bee_engine *engine = open_engine(&pairs[2].target, &pairs[2].drafter, 3, NULL);
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    bee_session *session = open_session(engine, N_CTX);
    static Job job;
    for (int round = 0; round < test_rounds(60); round++) {
        random_job(&random, info.n_vocab, &job);
        job.constrained = round % 2;
        job.n_ctx = N_CTX;
        random_speculation(&random, &info, &job.request);
        run_alone(engine, &job);
        const Answer fresh = job.answer;
        run_jobs(engine, &session, (Job *[]){&job}, 1, false);
        check_same(&job, &fresh, "on a used session");
    }
    bee_session_close(session);
    bee_engine_close(engine);
}

/* A request with masks begins while a cycle of the one before is under way. */
static void test_behind_a_queued_cycle(void) {
    enum { ROUNDS = 4 };
    Random random = {55};
    bee_engine *engine = open_engine(&pairs[2].target, &pairs[2].drafter, 3, NULL);
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    bee_session *session = open_session(engine, N_CTX);
    static Job job;
    int queued = 0;
    set_costs(engine, false);
    for (int round = 0; round < ROUNDS; round++) {
        random_job(&random, info.n_vocab, &job);
        job.constrained = true;
        job.n_ctx = N_CTX;
        random_speculation(&random, &info, &job.request);
        run_alone(engine, &job);
        const Answer fresh = job.answer;
        const bee_request before = {.prompt = job.prompt,
                                    .n_prompt = job.request.n_prompt,
                                    .max_tokens = 40,
                                    .speculation = BEE_SPECULATION_AUTO,
                                    .draft_length = -1,
                                    .sampling = {.temperature = 40, .top_p = 1, .seed = 3}};
        CHECK_EQ(bee_session_begin(session, &before, NULL), BEE_OK);
        bee_step step;
        for (int i = 0; i < 10 && !device_cycle_queued(session); i++)
            CHECK_EQ(bee_engine_step(engine, &session, 1, &step, NULL), BEE_OK);
        queued += device_cycle_queued(session);
        run_jobs(engine, &session, (Job *[]){&job}, 1, false);
        check_same(&job, &fresh, "behind a queued cycle");
    }
    CHECK_EQ(queued, test_on_cuda() ? ROUNDS : 0);
    bee_session_close(session);
    bee_engine_close(engine);
}

/* ---- forced tokens ------------------------------------------------------------------------------------- */

/* Where there is no choice at all, every cycle takes as many tokens as a pass may. */
static void test_forced_cycles(void) {
    enum { N = 90 };
    for (int p = 0; p < N_PAIRS; p++) {
        bee_engine *engine = open_engine(&pairs[p].target, &pairs[p].drafter, pairs[p].threads, NULL);
        static Job job;
        for (int mode = BEE_SPECULATION_OFF; mode <= BEE_SPECULATION_COPY; mode++)
            for (int length = -1; length < BEE_MAX_BLOCK; length++) {
                const bool copies = mode == BEE_SPECULATION_COPY || mode == BEE_SPECULATION_OFF;
                const int longest = copies ? BEE_MAX_BLOCK - 1 : pairs[p].drafter.block_size - 1;
                if (length > longest) continue;
                set_costs(engine, true);
                job = (Job){.constrained = true, .n_ctx = N_CTX};
                job.rules = (Rules){
                    .seed = (uint64_t)p, .n_vocab = pairs[p].target.n_vocab, .first_run = N_CTX, .for_ever = true};
                job.request = (bee_request){.prompt = job.prompt,
                                            .n_prompt = 1,
                                            .max_tokens = N,
                                            .speculation = (bee_speculation)mode,
                                            .draft_length = length,
                                            .sampling = {.temperature = 1, .top_p = 1, .seed = 9}};
                run_alone(engine, &job);
                check_by_hand(engine, &job);
                const bee_stats *s = &job.answer.out.stats;
                const int most = mode == BEE_SPECULATION_DFLASH ? longest : BEE_MAX_BLOCK - 1;
                const int drafts = mode == BEE_SPECULATION_OFF ? 0 : length < 0 ? most : length;
                const int cycles = (N + drafts) / (drafts + 1);
                CHECK_EQ(s->cycles, cycles);
                CHECK_EQ(s->masked_cycles, cycles);
                CHECK_EQ(s->forced_tokens, N - cycles);
                CHECK_EQ(s->drafted_tokens, N - cycles);
                CHECK_EQ(s->accepted_tokens, N - cycles);
                CHECK_EQ(s->copied_tokens, 0);
                CHECK_EQ(s->drafter_histogram[0], cycles); /* what is known needs no model */
            }
        bee_engine_close(engine);
    }
}

/* Runs between places with a choice: what is forced is kept, and the drafter goes on behind it. */
static void test_forced_runs(void) {
    bee_engine *engine = open_engine(&pairs[1].target, &pairs[1].drafter, 2, NULL);
    static Job job;
    int forced = 0, drafted = 0, fewer = 0, rounds = 0;
    for (uint64_t seed = 0; seed < 12; seed++) {
        job = (Job){.constrained = true, .n_ctx = N_CTX};
        job.rules = (Rules){.seed = seed, .n_vocab = 5, .run_every = 3, .longest = 4, .for_ever = true};
        job.request = (bee_request){.prompt = job.prompt,
                                    .n_prompt = 1,
                                    .max_tokens = 80,
                                    .sampling = {.temperature = 1, .top_p = 1, .seed = seed}};
        run_alone(engine, &job);
        const int plain_cycles = job.answer.out.stats.cycles;
        CHECK_EQ(plain_cycles, 80);
        job.request.speculation = BEE_SPECULATION_DFLASH;
        job.request.draft_length = 7;
        run_alone(engine, &job);
        const bee_stats *s = &job.answer.out.stats;
        CHECK(s->forced_tokens > 0 && s->accepted_tokens >= s->forced_tokens);
        CHECK(s->drafted_tokens > s->forced_tokens);
        CHECK(s->cycles <= plain_cycles - s->forced_tokens);
        CHECK_EQ(s->masked_cycles, s->cycles);
        forced += s->forced_tokens, drafted += s->drafted_tokens, rounds++;
        fewer += s->cycles < plain_cycles - s->forced_tokens; /* own drafts were kept, too */
    }
    CHECK(forced > 12 * 8 && drafted > 2 * forced);
    CHECK_EQ(fewer, rounds);
    bee_engine_close(engine);
}

/* A draft that is refused makes room for the drafter's best one that is not: where one token alone may follow, it is
 * drafted, and wherever the masks leave something that the drafter knows, no cycle becomes shorter. */
static void test_replaced_drafts(void) {
    enum { N = 90 };
    static const TinyDrafter reversed = {.block_size = 8, .n_draft_vocab = 97, .seed = 9}; /* head's rows, not ids */
    for (int p = -1; p < 3; p++) {
        const TinyTarget *target = &pairs[p < 0 ? 0 : p].target;
        const TinyDrafter *drafter = p < 0 ? &reversed : &pairs[p].drafter;
        bee_engine *engine = open_engine(target, drafter, 1 + (p + 1) % 3, NULL);
        const int length = drafter->block_size - 1, cycles = (N + length) / (length + 1);
        static Job job;
        for (int run = 0; run <= N_CTX; run += N_CTX) {
            job = (Job){.constrained = true, .n_ctx = N_CTX, .guide = {.wrong = {.silent = true}}};
            job.rules = (Rules){.seed = 6, .n_vocab = target->n_vocab, .first_run = run, .for_ever = true};
            job.request = (bee_request){.prompt = job.prompt,
                                        .n_prompt = 1,
                                        .max_tokens = N,
                                        .speculation = BEE_SPECULATION_DFLASH,
                                        .draft_length = length,
                                        .sampling = {.temperature = 1, .top_p = 1, .seed = 9}};
            run_alone(engine, &job);
            check_by_hand(engine, &job);
            const bee_stats *s = &job.answer.out.stats;
            CHECK(job.guide.refused > N / 8 && s->forced_tokens == 0);
            if (run) CHECK(s->cycles == cycles && s->accepted_tokens == N - cycles);
            int shorter = 0;
            for (int k = 0; k < length; k++) shorter += s->drafted_histogram[k];
            CHECK(shorter <= length); /* the last ones, each with as many as there is output left */
        }
        bee_engine_close(engine);
    }
}

/* What is drafted counts as said: penalties so large that what was said comes again only where nothing else may. */
static void test_penalties_over_drafts(void) {
    bee_engine *engine = open_engine(&pairs[0].target, &pairs[0].drafter, 2, NULL);
    static const int last_n[] = {-1, 1, 4, 20, 50};
    static Job job;
    for (int round = 0; round < 15; round++) {
        job = (Job){.constrained = true, .n_ctx = N_CTX};
        job.rules = (Rules){.seed = (uint64_t)round, .n_vocab = 97, .run_every = 2, .longest = 4, .for_ever = true};
        job.request = (bee_request){.prompt = job.prompt,
                                    .n_prompt = 30,
                                    .max_tokens = 60,
                                    .speculation = BEE_SPECULATION_COPY,
                                    .draft_length = 15,
                                    .sampling = {.temperature = 1, .top_p = 1, .seed = 9}};
        job.request.penalties =
            (bee_penalties){.last_n = last_n[round % 5], .repetition = 1, .presence = round % 2 ? 100 : -100};
        for (int i = 0; i < 30; i++) job.prompt[i] = 3 * i;
        run_alone(engine, &job);
        check_by_hand(engine, &job);
        CHECK(job.answer.out.stats.forced_tokens > 20);
    }
    bee_engine_close(engine);
}

/* Forced tokens are drafts like others: where they are wrong, the masks decide. */
static void test_forced_but_refused(void) {
    Random random = {53};
    for (int p = 0; p < 2; p++) {
        bee_engine *engine = open_engine(&pairs[p].target, &pairs[p].drafter, 2, NULL);
        bee_engine_info info;
        bee_engine_describe(engine, &info);
        static Job job;
        int refused = 0;
        for (int round = 0; round < test_rounds(30); round++) {
            random_job(&random, info.n_vocab, &job);
            job.constrained = true;
            job.rules.run_every = 3;
            random_speculation(&random, &info, &job.request);
            run_alone(engine, &job);
            const Answer sound = job.answer;
            job.guide.wrong.lies = true;
            run_alone(engine, &job);
            check_same(&job, &sound, "forced, but refused");
            refused += job.guide.refused;
        }
        CHECK(refused > test_rounds(50));
        bee_engine_close(engine);
    }
}

/* ---- log-probabilities --------------------------------------------------------------------------------- */

typedef struct ChooseRow {
    float *row;
    int n_vocab;
    Choice choice;
} ChooseRow;

static void choose_row(Worker *worker, void *argument) {
    ChooseRow *c = argument;
    cpu_ops()->choose(worker, c->row, 0, c->n_vocab, NULL, &c->choice, 1);
}

/* Of equally likely tokens the lower one stands first. */
static void test_equal_tops(void) {
    enum { N_VOCAB = 64 };
    Random random = {45};
    Backend *backend = bee_cpu_device.backend_new(2, NULL, NULL);
    for (int n_top = 0; n_top <= BEE_MAX_TOP_LOGPROBS; n_top++) {
        FullPath path = {.n_vocab = 0};
        const bee_request request = {.logprobs = true, .n_top_logprobs = n_top};
        const bee_sampling sampling = {.temperature = 3, .top_p = 1, .seed = (uint64_t)n_top};
        CHECK(full_path_begin(&path, &request, N_VOCAB, 10));
        for (int round = 0; round < 50; round++) {
            _Alignas(64) float row[N_VOCAB];
            for (int i = 0; i < N_VOCAB; i++) row[i] = (float)random_below(&random, 1 + round);
            ChooseRow c = {row, N_VOCAB, {.sampling = &sampling, .position = round}};
            full_path_prepare(&path, &c.choice, NULL, 0, NULL, 0);
            cpu_ops()->run(backend, choose_row, &c, NULL);
            full_path_report(&path, 1);
            CHECK_EQ(path.n_results, 1);
            check_logprobs(&request, row, N_VOCAB, c.choice.token, &path.results[0]);
        }
        full_path_end(&path);
    }
    bee_cpu_device.backend_free(backend);
}

static void refuse_logprobs(const bee_session *session, int32_t i, const char *part) {
    bee_logprobs out = {.n_top = -7};
    EXPECT(bee_session_logprobs(session, i, &out, &error), BEE_ERROR_ARGUMENT, part);
    CHECK_EQ(bee_session_logprobs(session, i, &out, NULL), BEE_ERROR_ARGUMENT);
    CHECK_EQ(out.n_top, -7);
}

static const int32_t short_prompt[] = {1, 2, 3};

static bee_request short_request(void) {
    return (bee_request){.prompt = short_prompt,
                         .n_prompt = 3,
                         .max_tokens = 10,
                         .sampling = {.temperature = 1, .top_p = 1, .seed = 3},
                         .logprobs = true,
                         .n_top_logprobs = 2};
}

static void test_logprobs_range(void) {
    bee_engine *engine = open_engine(&plain_target, NULL, 1, NULL);
    bee_session *session = open_session(engine, 256);
    bee_request request = short_request();
    bee_step step;
    bee_logprobs out;
    refuse_logprobs(session, 0, "token 0 has no log-probabilities; the last step has those of 0");
    CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
    refuse_logprobs(session, 0, "token 0 has no");
    CHECK_EQ(bee_engine_step(engine, &session, 1, &step, NULL), BEE_OK);
    CHECK_EQ(step.n_tokens, 1);
    CHECK_EQ(bee_session_logprobs(session, 0, &out, NULL), BEE_OK);
    CHECK_EQ(out.n_top, 2);
    refuse_logprobs(session, 1, "token 1 has no log-probabilities; the last step has those of 1");
    refuse_logprobs(session, -1, "token -1 has no");
    refuse_logprobs(session, INT32_MAX, "has no log-probabilities");
    refuse_logprobs(session, INT32_MIN, "has no log-probabilities");
    CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
    refuse_logprobs(session, 0, "token 0 has no"); /* those of the request before are gone */
    int32_t prompt[200];
    random_prompt(&(Random){46}, prompt, 200, 97);
    request.prompt = prompt;
    request.n_prompt = 200;
    CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
    CHECK_EQ(bee_engine_step(engine, &session, 1, &step, NULL), BEE_OK);
    CHECK(step.n_tokens == 0 && step.n_prompt_left > 0);
    refuse_logprobs(session, 0, "token 0 has no");
    request.logprobs = false; /* then the number of tops means nothing */
    CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
    do CHECK_EQ(bee_engine_step(engine, &session, 1, &step, NULL), BEE_OK);
    while (!step.n_tokens);
    refuse_logprobs(session, 0, "token 0 has no");
    bee_session_close(session);
    bee_engine_close(engine);
}

/* A step that gave no tokens has no log-probabilities, and those of the step before are not its own. */
static void test_logprobs_behind_a_step_without_tokens(void) {
    bee_engine *engine = open_engine(&plain_target, NULL, 1, NULL);
    enum { CANCELLED, NEIGHBOUR_CANCELLED, FAILED_BEFORE, FAILED_BEHIND, NOT_CHOSEN, N_WAYS };
    for (int way = 0; way < N_WAYS; way++) {
        bee_session *sessions[] = {open_session(engine, 32), open_session(engine, 32)};
        const int n = way == NEIGHBOUR_CANCELLED ? 2 : 1;
        static Job job;
        job = (Job){.constrained = true, .request = short_request()};
        job.rules = (Rules){.seed = 3, .n_vocab = 97, .for_ever = true, .nothing_at = way == NOT_CHOSEN ? 2 : 0};
        job.guide = (Guide){.wrong = {.advance = n == 2 ? 3 : 0, .cancels = sessions[1]}};
        job.guide.wrong.begin = way == FAILED_BEFORE ? 3 : 0;
        job.guide.wrong.commit = way == FAILED_BEHIND ? 3 : 0;
        job.guide.wrong.result = BEE_CONSTRAINT_FAILED;
        begin_job(sessions[0], &job);
        job.request.constraint = NULL;
        CHECK_EQ(bee_session_begin(sessions[1], &job.request, NULL), BEE_OK);
        bee_step steps[2];
        for (int i = 0; i < 2; i++) CHECK_EQ(bee_engine_step(engine, sessions, n, steps, NULL), BEE_OK);
        CHECK_EQ(steps[0].n_tokens, 1);
        if (way == CANCELLED) bee_session_cancel(sessions[0]);
        CHECK_EQ(bee_engine_step(engine, sessions, n, steps, NULL), BEE_OK);
        CHECK((steps[0].finish == BEE_FINISH_NONE) == (n == 2) && steps[0].n_tokens == 0);
        refuse_logprobs(sessions[0], 0, "the last step has those of 0");
        for (int i = 0; i < 2; i++) bee_session_close(sessions[i]);
    }
    bee_engine_close(engine);
}

/* ---- constraints that fail ----------------------------------------------------------------------------- */

/* Three sessions share passes: a free one, one whose constraint goes wrong, and a sound one. Whether it came to that.
 */
static bool check_sabotage(bee_engine *engine, Job *jobs, const Answer *sound, const Sabotage *wrong) {
    bee_session *sessions[3];
    for (int i = 0; i < 3; i++) sessions[i] = open_session(engine, N_CTX);
    jobs[1].guide.wrong = *wrong;
    run_jobs(engine, sessions, (Job *[]){&jobs[0], &jobs[1], &jobs[2]}, 3, false);
    const bool struck = jobs[1].guide.struck;
    check_same(&jobs[0], &sound[0], "a free neighbour");
    check_same(&jobs[2], &sound[2], "a constrained neighbour");
    const Output *out = &jobs[1].answer.out;
    if (struck) {
        if (!CHECK_EQ(out->finish, BEE_FINISH_CONSTRAINT))
            printf("    begin %d, advance %d, commit %d: %d\n", wrong->begin, wrong->advance, wrong->commit,
                   wrong->result);
        CHECK(out->n < sound[1].out.n || sound[1].out.finish != BEE_FINISH_CONSTRAINT);
        CHECK(out->n <= sound[1].out.n && !memcmp(out->tokens, sound[1].out.tokens, (size_t)out->n * 4));
        bee_step step;
        EXPECT(bee_engine_step(engine, &sessions[1], 1, &step, &error), BEE_ERROR_ARGUMENT, "no running request");
    } else {
        check_same(&jobs[1], &sound[1], "what did not go wrong");
    }
    jobs[1].guide.wrong = (Sabotage){.begin = 0};
    run_jobs(engine, &sessions[1], (Job *[]){&jobs[1]}, 1, false);
    check_same(&jobs[1], &sound[1], "the same session again");
    for (int i = 0; i < 3; i++) bee_session_close(sessions[i]);
    return struck;
}

/* Each of these at several calls, with drafts and without. */
static int sabotage_at_calls(bee_engine *engine, Random *random, Sabotage wrong) {
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    static Job jobs[3];
    static Answer sound[3];
    int struck = 0;
    for (int call = 1; call < 30; call += call < 4 ? 1 : 7) {
        for (int i = 0; i < 3; i++) {
            random_job(random, info.n_vocab, &jobs[i]);
            jobs[i].constrained = i > 0;
            jobs[i].n_ctx = N_CTX;
            jobs[i].rules.for_ever = true;
            if (i == 1) jobs[i].rules.free = call % 3;
            jobs[i].request.max_tokens = 30;
            jobs[i].request.n_stop_tokens = 0;
            random_speculation(random, &info, &jobs[i].request);
            if (i == 1 && call % 2) jobs[i].request.speculation = BEE_SPECULATION_OFF;
            run_alone(engine, &jobs[i]);
            sound[i] = jobs[i].answer;
        }
        const Sabotage here = {.begin = wrong.begin ? call : 0,
                               .advance = wrong.advance ? call : 0,
                               .commit = wrong.commit ? call : 0,
                               .result = wrong.result,
                               .complete = wrong.complete,
                               .for_ever = wrong.for_ever};
        struck += check_sabotage(engine, jobs, sound, &here);
    }
    return struck;
}

static void check_ways(const Sabotage *ways, int n, uint64_t seed) {
    Random random = {seed};
    for (int p = 0; p < 2; p++) {
        bee_engine *engine = open_engine(&pairs[p].target, &pairs[p].drafter, 2, NULL);
        for (int i = 0; i < n; i++) CHECK(sabotage_at_calls(engine, &random, ways[i]) >= 3);
        bee_engine_close(engine);
    }
}

static void test_failing_constraints(void) {
    static const Sabotage ways[] = {
        {.begin = 1, .result = BEE_CONSTRAINT_FAILED},
        {.begin = 1, .result = INT32_MIN},
        {.advance = 1, .result = BEE_CONSTRAINT_FAILED},
        {.commit = 1, .result = BEE_CONSTRAINT_FAILED},
        {.commit = 1, .result = -1},
        {.commit = 1, .result = INT32_MIN},
        {.commit = 1, .result = INT32_MAX}, /* one more than there are */
        {.commit = 1, .result = 0, .for_ever = true},
    };
    check_ways(ways, sizeof ways / sizeof *ways, 47);
}

/* A failure is one whatever else was said. */
static void test_failing_and_complete(void) {
    static const Sabotage ways[] = {
        {.commit = 1, .result = BEE_CONSTRAINT_FAILED, .complete = true},
        {.commit = 1, .result = INT32_MAX, .complete = true},
    };
    check_ways(ways, sizeof ways / sizeof *ways, 48);
}

/* What advance may not return is a failure, and not leave to choose any token. */
static void test_nonsense_from_advance(void) {
    static const Sabotage ways[] = {{.advance = 1, .result = 2}, {.advance = 1, .result = -3}};
    check_ways(ways, sizeof ways / sizeof *ways, 49);
}

static int32_t force_user(void *user, int32_t *forced, int32_t room) {
    if (room > 0) forced[0] = *(const int32_t *)user;
    return 1;
}

static int32_t allow_all(void *user, int32_t draft, uint32_t *mask) {
    (void)user, (void)draft;
    memset(mask, 0xff, (size_t)(plain_target.n_vocab + 31) / 32 * sizeof *mask);
    return BEE_CONSTRAINT_MASKED;
}

static int32_t keep_all(void *user, const int32_t *tokens, int32_t n, int32_t *next) {
    (void)user, (void)tokens, (void)next;
    return n;
}

/* No such token is read. */
static void test_forced_outside_vocabulary(void) {
    bee_engine *engine = open_engine(&plain_target, NULL, 1, NULL);
    static int32_t outside[] = {97, -2};
    for (int i = 0; i < 2; i++) {
        const bee_constraint constraint = {&outside[i], force_user, allow_all, keep_all, NULL};
        bee_request request = short_request();
        request.n_prompt = 1;
        request.speculation = BEE_SPECULATION_COPY;
        request.draft_length = 2;
        request.constraint = &constraint;
        const Output out = generate_fresh(engine, &request);
        CHECK(out.finish == BEE_FINISH_CONSTRAINT && out.n == 0);
    }
    bee_engine_close(engine);
}

typedef struct Watcher {
    uint32_t watched[4];
    int32_t seen[MOST];
    int n_seen, commits, begins;
} Watcher;

static int32_t begin_free(void *user, int32_t *forced, int32_t room) {
    (void)forced, (void)room;
    ((Watcher *)user)->begins++;
    return BEE_CONSTRAINT_FREE;
}

static int32_t watch(void *user, const int32_t *tokens, int32_t n, int32_t *next) {
    Watcher *w = user;
    bool of_interest = !w->commits;
    for (int i = 0; i < n; i++) {
        w->seen[w->n_seen++] = tokens[i];
        of_interest |= w->watched[tokens[i] / 32] >> tokens[i] % 32 & 1;
    }
    CHECK(of_interest);
    w->commits++;
    *next = BEE_CONSTRAINT_WATCHING;
    return n;
}

/* While nothing but some tokens matters, cycles without them are not told of, and all of those tokens are. */
static void test_watching(void) {
    Random random = {5};
    const TinyDrafter shape = {.block_size = 8, .seed = 2};
    bee_engine *engine = open_engine(&plain_target, &shape, 1, NULL);
    int unseen = 0;
    for (int round = 0; round < test_rounds(40); round++) {
        Watcher w = {.n_seen = 0};
        for (int i = 0; i < 4; i++)
            w.watched[i] = (uint32_t)(random_bits(&random) & random_bits(&random) & random_bits(&random));
        const bee_constraint constraint = {&w, begin_free, allow_all, watch, w.watched};
        bee_request request = short_request();
        request.speculation = (bee_speculation)random_below(&random, 4);
        request.draft_length = -1;
        request.sampling = random_sampling(&random);
        const Output plain = generate_fresh(engine, &request);
        request.constraint = &constraint;
        const Output out = generate_fresh(engine, &request);
        CHECK(same_output(&plain, &out) && w.begins <= 1);
        int next = 0;
        for (int i = 0; i < out.n; i++) {
            const bool found = next < w.n_seen && w.seen[next] == out.tokens[i];
            next += found;
            unseen += !found;
            if (w.watched[out.tokens[i] / 32] >> out.tokens[i] % 32 & 1) CHECK(found);
        }
        CHECK_EQ(next, w.n_seen);
    }
    CHECK(unseen > test_rounds(40));
    bee_engine_close(engine);
}

/* To keep nothing once is no failure, also where the request before ended with that. */
static void test_nothing_kept_by_each(void) {
    bee_engine *engine = open_engine(&plain_target, NULL, 1, NULL);
    bee_session *session = open_session(engine, N_CTX);
    static Job job;
    int at_once = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        job = (Job){.constrained = true, .n_ctx = N_CTX, .request = short_request()};
        job.rules = (Rules){.seed = seed, .n_vocab = 97, .free = 8, .for_ever = true};
        job.request.sampling.seed = seed;
        job.request.max_tokens = 1;
        job.guide.wrong = (Sabotage){.commit = 1, .result = 0, .for_ever = true};
        run_jobs(engine, &session, (Job *[]){&job}, 1, false);
        CHECK_EQ(job.answer.out.finish, BEE_FINISH_CONSTRAINT);
        CHECK_EQ(job.guide.commits, 2);
        job.guide.wrong = (Sabotage){.begin = 0};
        run_jobs(engine, &session, (Job *[]){&job}, 1, false);
        CHECK_EQ(job.answer.out.finish, BEE_FINISH_LENGTH);
        at_once += job.guide.nothing_kept;
    }
    CHECK(at_once > 2);
    bee_session_close(session);
    bee_engine_close(engine);
}

/* A mask that allows nothing leaves nothing to choose. */
static void test_mask_of_nothing(void) {
    bee_engine *engine = open_engine(&pairs[1].target, &pairs[1].drafter, 2, NULL);
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    Random random = {50};
    static Job job;
    for (int round = 0; round < test_rounds(40); round++) {
        const int place = 1 + round % 20;
        random_job(&random, info.n_vocab, &job);
        job.constrained = true;
        job.n_ctx = N_CTX;
        job.request.max_tokens = 30;
        job.request.n_stop_tokens = 0;
        job.rules.for_ever = true;
        job.rules.first_run = job.rules.run_every = 0;
        bee_session *session = open_session(engine, N_CTX);
        run_jobs(engine, &session, (Job *[]){&job}, 1, false);
        const Answer sound = job.answer;
        random_speculation(&random, &info, &job.request);
        job.rules.nothing_at = place;
        run_jobs(engine, &session, (Job *[]){&job}, 1, false);
        const Output *out = &job.answer.out;
        CHECK_EQ(out->finish, BEE_FINISH_NOT_FINITE);
        CHECK(out->n <= place && !memcmp(out->tokens, sound.out.tokens, (size_t)out->n * 4));
        if (job.request.speculation == BEE_SPECULATION_OFF) CHECK_EQ(out->n, place);
        job.rules.nothing_at = 0;
        run_jobs(engine, &session, (Job *[]){&job}, 1, false);
        check_same(&job, &sound, "behind a mask of nothing");
        bee_session_close(session);
    }
    bee_engine_close(engine);
}

/* ---- cancelling ---------------------------------------------------------------------------------------- */

/* A pass that a neighbour's cancellation stops counts for nobody: its cycle begins again, without a commit. */
static void test_cancelled_neighbour(void) {
    bee_engine *engine = open_engine(&pairs[0].target, &pairs[0].drafter, 2, NULL);
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    Random random = {51};
    static Job jobs[2];
    int struck = 0;
    for (int round = 0; round < test_rounds(30); round++) {
        Answer alone;
        for (int i = 0; i < 2; i++) {
            random_job(&random, 97, &jobs[i]);
            jobs[i].constrained = i == 0;
            jobs[i].n_ctx = N_CTX;
            jobs[i].request.max_tokens = i ? 50 : 40;
            jobs[i].request.n_stop_tokens = 0;
            jobs[i].rules.for_ever = true;
            jobs[i].rules.free = round % 6;
            random_speculation(&random, &info, &jobs[i].request);
        }
        jobs[1].request.speculation = BEE_SPECULATION_OFF;
        run_alone(engine, &jobs[0]);
        alone = jobs[0].answer;
        bee_session *sessions[] = {open_session(engine, N_CTX), open_session(engine, N_CTX)};
        jobs[0].guide.wrong.advance = 1 + round;
        jobs[0].guide.wrong.cancels = sessions[1];
        run_jobs(engine, sessions, (Job *[]){&jobs[0], &jobs[1]}, 2, false);
        check_same(&jobs[0], &alone, "a neighbour was cancelled");
        const bool did = jobs[0].guide.struck && jobs[1].answer.out.finish == BEE_FINISH_CANCELLED;
        CHECK_EQ(jobs[0].guide.abandoned, did);
        if (!jobs[0].guide.struck) CHECK_EQ(jobs[1].answer.out.finish, BEE_FINISH_LENGTH);
        struck += did;
        for (int i = 0; i < 2; i++) bee_session_close(sessions[i]);
    }
    CHECK(struck > test_rounds(10));
    bee_engine_close(engine);
}

/* A constrained request that is cancelled during a cycle; the session's next one starts afresh. */
static void test_cancelled_itself(void) {
    bee_engine *engine = open_engine(&pairs[0].target, &pairs[0].drafter, 2, NULL);
    Random random = {52};
    static Job job;
    for (int call = 1; call < 20; call++) {
        random_job(&random, 97, &job);
        job.constrained = true;
        job.n_ctx = N_CTX;
        job.request.n_stop_tokens = 0;
        job.request.max_tokens = 30;
        job.request.speculation = BEE_SPECULATION_DFLASH;
        job.request.draft_length = call % 2 ? -1 : 3;
        job.rules.for_ever = true;
        job.rules.free = 0;
        run_alone(engine, &job);
        const Answer alone = job.answer;
        bee_session *session = open_session(engine, N_CTX);
        job.guide.wrong.advance = call;
        job.guide.wrong.cancels = session;
        run_jobs(engine, &session, (Job *[]){&job}, 1, false);
        const Output *out = &job.answer.out;
        if (job.guide.struck) CHECK_EQ(out->finish, BEE_FINISH_CANCELLED);
        CHECK(!memcmp(out->tokens, alone.out.tokens, (size_t)out->n * sizeof *out->tokens));
        job.guide.wrong.advance = 0;
        job.guide.wrong.cancels = NULL;
        run_jobs(engine, &session, (Job *[]){&job}, 1, false);
        check_same(&job, &alone, "after a cancelled cycle");
        bee_session_close(session);
    }
    bee_engine_close(engine);
}

/* ---- refusals ------------------------------------------------------------------------------------------ */

static void refuse(bee_session *session, const bee_request *request, const char *part) {
    EXPECT(bee_session_begin(session, request, &error), BEE_ERROR_ARGUMENT, part);
    CHECK_EQ(bee_session_begin(session, request, NULL), BEE_ERROR_ARGUMENT);
}

static void refuse_bias(bee_session *session, int32_t token, float bias, const char *part) {
    const bee_logit_bias biases[] = {{3, 1}, {token, bias}};
    bee_request request = short_request();
    request.biases = biases;
    request.n_biases = 2;
    refuse(session, &request, part);
}

static void refuse_penalties(bee_session *session, bee_penalties penalties, const char *part) {
    bee_request request = short_request();
    request.penalties = penalties;
    refuse(session, &request, part);
}

static void test_bad_fields(void) {
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 1, NULL);
    bee_session *s = open_session(engine, 32);
    bee_request request = short_request();
    CHECK_EQ(bee_session_begin(s, &request, NULL), BEE_OK);

    refuse_bias(s, -1, 0, "biases[1].token is -1; the vocabulary has ids 0 to 96");
    refuse_bias(s, 97, 0, "biases[1].token is 97; the vocabulary has ids 0 to 96");
    refuse_bias(s, 4, 1000.5f, "biases[1].bias is 1000.5; it must lie between -1000 and 1000");
    refuse_bias(s, 4, -1001, "biases[1].bias is -1001");
    refuse_bias(s, 4, NAN, "biases[1].bias is nan");
    refuse_bias(s, 4, -INFINITY, "biases[1].bias is -inf");
    request.n_biases = 1;
    refuse(s, &request, "biases is missing");
    request.n_biases = -1;
    refuse(s, &request, "n_biases is -1");
    request.n_biases = 98;
    refuse(s, &request, "n_biases is 98; it must lie between 0 and 97");

    refuse_penalties(s, (bee_penalties){.last_n = -2}, "penalties.last_n is -2");
    static const float bad_repetitions[] = {0, -1, 100.5f, NAN, INFINITY};
    for (int i = 0; i < 5; i++)
        refuse_penalties(s, (bee_penalties){.last_n = 64, .repetition = bad_repetitions[i]}, "penalties.repetition is");
    static const float bad_others[] = {-100.5f, 101, NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 5; i++) {
        refuse_penalties(s, (bee_penalties){.last_n = -1, .repetition = 1, .frequency = bad_others[i]},
                         "penalties.frequency is");
        refuse_penalties(s, (bee_penalties){.last_n = 1, .repetition = 1, .presence = bad_others[i]},
                         "penalties.presence is");
    }
    request = short_request();
    request.n_top_logprobs = 21;
    refuse(s, &request, "n_top_logprobs is 21; it must lie between 0 and 20");
    request.n_top_logprobs = -1;
    refuse(s, &request, "n_top_logprobs is -1");

    Guide guide = guide_of(&(Rules){.n_vocab = 97});
    const bee_constraint lacking[] = {{&guide, NULL, guide_advance, guide_commit, NULL},
                                      {&guide, guide_begin, NULL, guide_commit, NULL},
                                      {&guide, guide_begin, guide_advance, NULL, NULL}};
    request = short_request();
    for (int i = 0; i < 3; i++) {
        request.constraint = &lacking[i];
        refuse(s, &request, "the constraint lacks one of its functions");
    }

    /* All of that left the running request as it was. */
    request = short_request();
    const Output out = finish_request(engine, s, 3), fresh = generate_fresh(engine, &request);
    CHECK(out.n == 10 && same_output(&out, &fresh));
    CHECK_EQ(out.stats.full_cycles, out.stats.cycles);
    bee_session_close(s);
    bee_engine_close(engine);
}

/* The bounds themselves are allowed, and do what they say. */
static void test_extreme_fields(void) {
    bee_engine *engine = open_engine(&plain_target, NULL, 2, NULL);
    bee_logit_bias all[97];
    for (int i = 0; i < 97; i++) all[i] = (bee_logit_bias){i, i == 41 ? 1000 : -1000};
    bee_request request = short_request();
    request.biases = all;
    request.n_biases = 97;
    request.n_top_logprobs = BEE_MAX_TOP_LOGPROBS;
    Output out = generate_fresh(engine, &request);
    CHECK_EQ(out.n, 10);
    for (int i = 0; i < out.n; i++) CHECK_EQ(out.tokens[i], 41);
    request = short_request();
    request.max_tokens = 90;
    request.penalties = (bee_penalties){.last_n = -1, .repetition = 1, .presence = 100};
    out = generate_fresh(engine, &request);
    bool seen[97] = {[1] = true, [2] = true, [3] = true};
    for (int i = 0; i < out.n; i++) { /* the prompt's tokens count */
        CHECK(!seen[out.tokens[i]]);
        seen[out.tokens[i]] = true;
    }
    CHECK_EQ(out.n, 90);
    request.logprobs = false;
    request.penalties = (bee_penalties){.last_n = 64, .repetition = 1}; /* changes nothing */
    CHECK_EQ(generate_fresh(engine, &request).stats.full_cycles, 0);
    request.penalties = (bee_penalties){.repetition = NAN, .frequency = 1000}; /* is off */
    CHECK_EQ(generate_fresh(engine, &request).stats.full_cycles, 0);
    bee_engine_close(engine);
}

int main(void) {
    test_identity();
    test_without_drafter();
    test_ends();
    test_together();
    test_no_room();
    test_one_after_another();
    test_behind_a_queued_cycle();
    if (test_rounds(8) < 8) return check_report(); /* the rest takes an emulated card half an hour */
    test_forced_cycles();
    test_forced_runs();
    test_replaced_drafts();
    test_penalties_over_drafts();
    test_forced_but_refused();
    test_equal_tops();
    test_logprobs_range();
    test_logprobs_behind_a_step_without_tokens();
    test_failing_constraints();
    test_failing_and_complete();
    test_nonsense_from_advance();
    test_forced_outside_vocabulary();
    test_watching();
    test_nothing_kept_by_each();
    test_mask_of_nothing();
    test_cancelled_neighbour();
    test_cancelled_itself();
    test_bad_fields();
    test_extreme_fields();
    return check_report();
}
