/* Requests with constraints, biases, penalties and log-probabilities, run on tiny random models; and the same choices
 * made by hand, from logits alone. */
#ifndef BEE_TESTS_GUIDED_JOBS_H
#define BEE_TESTS_GUIDED_JOBS_H

#include "compiled_kernels.h"
#include "engine_exercise.h"
#include "sample_row.h"

#include <math.h>
#include <pthread.h>

/* ---- rules: what may follow, as a function of the tokens alone -------------------------------------------- */

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

static inline uint64_t roll(uint64_t hash, uint64_t purpose) { return mix_bits(hash + purpose * 0x9e3779b97f4a7c15); }

static inline Place first_place(const Rules *r) { return (Place){roll(r->seed, 1), 0, r->first_run}; }

static inline Place follow(const Rules *r, Place at, int32_t token) {
    Place next = {roll(at.hash, 100 + (uint64_t)token), at.n + 1, at.run - (at.run > 0)};
    if (!at.run && r->run_every && roll(next.hash, 2) % (uint64_t)r->run_every == 0)
        next.run = 1 + (int)(roll(next.hash, 3) % (uint64_t)r->longest);
    return next;
}

static inline Kind kind_of(const Rules *r, Place at) {
    if (r->nothing_at && at.n == r->nothing_at) return NOTHING;
    if (at.run) return RUN;
    if (roll(at.hash, 4) % 8 < (uint64_t)r->free) return FREE;
    return (Kind)(SINGLE + roll(at.hash, 5) % 4);
}

/* A token that is always allowed. */
static inline int32_t certain_token(const Rules *r, Place at) {
    return (int32_t)(roll(at.hash, 6) % (uint64_t)r->n_vocab);
}

/* At a free place: whether the token is left as it is; one of 6 is void, and chosen anew among those that are not. */
static inline bool allows(const Rules *r, Place at, int32_t token) {
    static const uint64_t one_of[] = {[FEW] = 16, [HALF] = 2};
    const Kind kind = kind_of(r, at);
    if (kind == NOTHING) return false;
    if (token == certain_token(r, at)) return true;
    if (kind == RUN || kind == SINGLE) return false;
    const uint64_t hash = roll(at.hash, 1000 + (uint64_t)token);
    return kind == FREE ? hash % 6 != 0 : kind == NEARLY_ALL ? hash % 32 != 0 : hash % one_of[kind] == 0;
}

static inline bool is_complete(const Rules *r, Place at) {
    return !r->for_ever && !at.run && at.n >= r->shortest && roll(at.hash, 7) % 5 == 0;
}

static inline void write_mask(const Rules *r, Place at, uint32_t *mask) {
    memset(mask, 0, (size_t)(r->n_vocab + 31) / 32 * sizeof *mask);
    for (int32_t token = 0; token < r->n_vocab; token++)
        mask[token / 32] |= (uint32_t)allows(r, at, token) << token % 32;
    if (r->n_vocab % 32) mask[r->n_vocab / 32] |= (uint32_t)roll(at.hash, 8) << r->n_vocab % 32; /* means nothing */
}

/* ---- a constraint that follows rules, and checks how it is called ----------------------------------------- */

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

static inline Guide guide_of(const Rules *rules) {
    return (Guide){.rules = *rules, .at = first_place(rules), .thread = pthread_self()};
}

/* Whether this is the call that goes wrong. */
static inline bool strikes(Guide *g, int call, int bad) {
    const bool now = bad && (call == bad || (g->wrong.for_ever && call > bad));
    g->struck |= now;
    return now;
}

static inline bool is_free(const Guide *g, Place at) {
    return kind_of(&g->rules, at) == FREE && !(g->narrow && at.n == g->at.n);
}

static inline int32_t guide_begin(void *user, int32_t *forced, int32_t room) {
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

static inline int32_t describe(const Guide *g, Place at, uint32_t *mask) {
    if (is_free(g, at)) return BEE_CONSTRAINT_FREE;
    write_mask(&g->rules, at, mask);
    return BEE_CONSTRAINT_MASKED;
}

static inline int32_t advance_over(Guide *g, int32_t draft, uint32_t *mask) {
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

static inline int32_t guide_advance(void *user, int32_t draft, uint32_t *mask) {
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
static inline bool take_token(Guide *g, int i, int32_t token) {
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

static inline int32_t guide_commit(void *user, const int32_t *tokens, int32_t n, int32_t *next) {
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

/* ---- requests --------------------------------------------------------------------------------------------- */

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

static const int32_t short_prompt[] = {1, 2, 3};

static inline bee_request short_request(void) {
    return (bee_request){.prompt = short_prompt,
                         .n_prompt = 3,
                         .max_tokens = 10,
                         .sampling = {.temperature = 1, .top_p = 1, .seed = 3},
                         .logprobs = true,
                         .n_top_logprobs = 2};
}

static inline void random_rules(Random *random, int n_vocab, Rules *r) {
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

static inline void random_full_path(Random *random, int n_vocab, Job *job) {
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

static inline void random_job(Random *random, int n_vocab, Job *job) {
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

static inline bool job_is_full(const Job *job) {
    const bee_request *r = &job->request;
    const bee_penalties *p = &r->penalties;
    return r->n_biases || r->logprobs || (p->last_n && (p->repetition != 1 || p->frequency != 0 || p->presence != 0));
}

static inline void begin_job(bee_session *session, Job *job) {
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

static inline void take_logprobs(bee_session *session, const bee_step *step, Job *job) {
    const int n = job->request.logprobs ? step->n_tokens : 0, before = job->answer.out.n - step->n_tokens;
    for (int i = 0; i < n; i++) CHECK_EQ(bee_session_logprobs(session, i, &job->answer.logprobs[before + i], NULL), 0);
    bee_logprobs none;
    CHECK_EQ(bee_session_logprobs(session, n, &none, NULL), BEE_ERROR_ARGUMENT);
}

/* The counts of a request that has ended. */
static inline void check_job(bee_session *session, Job *job) {
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
static inline void run_jobs(bee_engine *engine, bee_session *const *sessions, Job *const *jobs, int n_jobs,
                            bool waits) {
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

static inline void run_alone(bee_engine *engine, Job *job) {
    bee_session *session = open_session(engine, job->n_ctx);
    run_jobs(engine, &session, &job, 1, false);
    bee_session_close(session);
}

static inline bool same_logprobs(const bee_logprobs *a, const bee_logprobs *b) {
    const size_t n = (size_t)a->n_top;
    return !memcmp(&a->logprob, &b->logprob, sizeof a->logprob) && a->n_top == b->n_top &&
           !memcmp(a->top_tokens, b->top_tokens, n * sizeof *a->top_tokens) &&
           !memcmp(a->top_logprobs, b->top_logprobs, n * sizeof *a->top_logprobs);
}

static inline bool same_answer(const Answer *a, const Answer *b) {
    bool same = same_output(&a->out, &b->out);
    for (int i = 0; same && i < a->out.n; i++) same = same_logprobs(&a->logprobs[i], &b->logprobs[i]);
    return same;
}

static inline bool check_same(const Job *job, const Answer *expected, const char *what) {
    const bee_request *r = &job->request;
    const Output *a = &job->answer.out, *b = &expected->out;
    if (CHECK(same_answer(&job->answer, expected))) return true;
    printf("    %s: speculation %d, draft length %d, temperature %g; %d tokens and finish %d, expected %d and %d\n",
           what, (int)r->speculation, r->draft_length, (double)r->sampling.temperature, a->n, (int)a->finish, b->n,
           (int)b->finish);
    return false;
}

/* ---- by hand ---------------------------------------------------------------------------------------------- */

/* Biases and penalties, as bee.h and llama.cpp say. */
static inline void edit_by_hand(const bee_request *r, const int32_t *tokens, int n_tokens, float *row, int n_vocab) {
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

static inline void mask_by_hand(const Rules *r, Place at, float *row) {
    for (int token = 0; token < r->n_vocab; token++)
        if (!allows(r, at, token)) row[token] = -INFINITY;
}

/* The sum's terms are exponentials of rounded differences to a largest logit, with a relative error of 2e-7, which
 * kernels.c promises; their sum adds n / 16 roundings in each lane and four across lanes, and the result is rounded. */
static inline double logprob_bound(const float *row, int n, double logprob) {
    float largest = row[0], smallest = row[0];
    for (int i = 1; i < n; i++) {
        if (row[i] > largest) largest = row[i];
        if (row[i] < smallest) smallest = row[i];
    }
    const double u = 0x1p-24;
    return 1.001 * (2e-7 + u * (double)(largest - smallest) + u * (n / 16 + 5)) + u * fabs(logprob);
}

static inline void check_logprobs(const bee_request *r, const float *row, int n, int32_t token,
                                  const bee_logprobs *got) {
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

static inline int32_t choose_by_hand(const Job *job, Place at, float *row, int n_vocab, int position,
                                     const Reductions *with) {
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
static inline bee_finish finish_by_hand(const Job *job, int32_t token, int n, Place behind) {
    const bee_request *r = &job->request;
    for (int i = 0; i < r->n_stop_tokens; i++)
        if (r->stop_tokens[i] == token) return BEE_FINISH_STOP;
    if (job->constrained && is_complete(&job->rules, behind)) return BEE_FINISH_COMPLETE;
    if (n >= r->max_tokens) return BEE_FINISH_LENGTH;
    return r->n_prompt + n >= job->n_ctx ? BEE_FINISH_CONTEXT : BEE_FINISH_NONE;
}

static inline void check_by_hand(bee_engine *engine, const Job *job) {
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

#endif
