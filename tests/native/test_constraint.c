/* Tests of constraints, together with biases, penalties and log-probabilities: the same tokens whatever the drafts and
 * the company, and the same as choosing by hand; forced tokens; constraints that fail. */
#include "engine/device_cycle.h"
#include "guided_jobs.h"

/* ---- the same whatever the drafts ------------------------------------------------------------------------- */

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

/* ---- forced tokens ---------------------------------------------------------------------------------------- */

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

/* ---- constraints that fail -------------------------------------------------------------------------------- */

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

/* ---- cancelling ------------------------------------------------------------------------------------------- */

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
    test_forced_but_refused();
    test_failing_constraints();
    test_failing_and_complete();
    test_nonsense_from_advance();
    test_forced_outside_vocabulary();
    test_watching();
    test_nothing_kept_by_each();
    test_mask_of_nothing();
    test_cancelled_neighbour();
    test_cancelled_itself();
    return check_report();
}
