/* Tests of biases, penalties and log-probabilities on tiny random models: over drafts, of equal logits, and refused. */
#include "guided_jobs.h"

/* ---- over drafts ------------------------------------------------------------------------------------------ */

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

/* ---- log-probabilities ------------------------------------------------------------------------------------ */

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

/* ---- refusals --------------------------------------------------------------------------------------------- */

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
    test_penalties_over_drafts();
    test_equal_tops();
    test_logprobs_range();
    test_logprobs_behind_a_step_without_tokens();
    test_bad_fields();
    test_extreme_fields();
    return check_report();
}
