/* Tests of the cycle on tiny random models: the same tokens whatever the drafts, the threads and the company; how
 * requests end. */
#include "compiled_kernels.h"
#include "engine_exercise.h"
#include "sample_row.h"

/* ---- the same tokens whatever the drafts ------------------------------------------------------------------ */

/* Prefix by prefix: logits of the last token, and the sampler on them. No session, cache or cycle has a part in it. */
static void check_against_logits(bee_engine *engine, const Kernels *kernels, const bee_request *request,
                                 const Output *out) {
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    bee_session *session = open_session(engine, N_CTX);
    int32_t tokens[N_CTX];
    float *logits = malloc((size_t)(N_CTX * info.n_vocab) * sizeof *logits);
    memcpy(tokens, request->prompt, (size_t)request->n_prompt * sizeof *tokens);
    memcpy(tokens + request->n_prompt, out->tokens, (size_t)(out->n - 1) * sizeof *tokens);
    const int n = request->n_prompt + out->n - 1;
    CHECK_EQ(bee_session_evaluate(session, tokens, n, 16, logits, NULL), BEE_OK);
    const Reductions reductions = {kernels->largest, kernels->sum_exp, kernels->may_win};
    for (int i = 0; i < out->n; i++) {
        const int position = request->n_prompt + i;
        CHECK_EQ(sample_row(logits + (size_t)(position - 1) * (size_t)info.n_vocab, info.n_vocab, NULL,
                            &request->sampling, position, &reductions),
                 out->tokens[i]);
    }
    free(logits);
    bee_session_close(session);
}

typedef struct Totals {
    int generations, drafted, accepted, copied, copied_accepted, ahead;
} Totals;

/* Random prompts, seeds, temperatures, sources and draft lengths: on equals off. */
static void compare_on_off(bee_engine *engine, int rounds, Random *random, Totals *totals) {
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    for (int round = 0; round < test_rounds(rounds); round++) {
        int32_t prompt[40];
        bee_request request = {.prompt = prompt,
                               .n_prompt = 1 + random_below(random, 40),
                               .max_tokens = 1 + random_below(random, 40),
                               .sampling = random_sampling(random)};
        random_prompt(random, prompt, request.n_prompt, info.n_vocab);
        const Output off = generate_fresh(engine, &request);
        CHECK_EQ(off.stats.drafted_tokens, 0);
        if (round % 3 == 0) check_against_logits(engine, kernels_named(info.instruction_set), &request, &off);
        for (int i = 0; i < 6; i++) {
            random_speculation(random, &info, &request);
            const Output on = generate_fresh(engine, &request);
            if (!CHECK(same_output(&on, &off)))
                printf("    %s, %d threads, speculation %d, draft length %d, temperature %g, seed %llu\n",
                       info.instruction_set, info.n_threads, (int)request.speculation, request.draft_length,
                       (double)request.sampling.temperature, (unsigned long long)request.sampling.seed);
            totals->generations++;
            totals->drafted += on.stats.drafted_tokens;
            totals->accepted += on.stats.accepted_tokens;
            totals->copied += on.stats.copied_tokens;
            totals->copied_accepted += on.stats.copied_accepted;
            totals->ahead += request.speculation == BEE_SPECULATION_AUTO ? on.n_ahead : 0;
        }
    }
}

static void test_on_off(void) {
    Random random = {20};
    int copied_accepted = 0, ahead = 0;
    for (size_t i = 0; i < N_PAIRS; i++) {
        Totals totals = {0};
        for (const char *const *isa = test_sets(); *isa; isa++) {
            bee_engine *engine = open_engine(&pairs[i].target, &pairs[i].drafter, pairs[i].threads, *isa);
            compare_on_off(engine, strcmp(*isa, "portable") ? 6 : 2, &random, &totals);
            bee_engine_close(engine);
        }
        /* Both ways of a draft were tried, from both sources. */
        const int kept = totals.accepted - totals.copied_accepted, refused = totals.drafted - totals.copied - kept;
        if (test_rounds(2) == 2) CHECK(kept > totals.generations / 8 && refused > totals.generations / 4);
        if (test_rounds(2) == 2) CHECK(totals.copied > totals.copied_accepted);
        copied_accepted += totals.copied_accepted;
        ahead += totals.ahead;
    }
    CHECK_EQ(ahead > 0, test_on_cuda());
    CHECK(copied_accepted > test_rounds(test_on_cuda() ? 25 : 100)); /* mostly where there are few tokens */
}

/* The number of threads changes no bit either. */
static void test_threads(void) {
    int32_t prompt[33];
    Random random = {21};
    random_prompt(&random, prompt, 33, plain_target.n_vocab);
    float *first = NULL;
    for (int threads = 1; threads <= 7; threads += 2) {
        bee_engine *engine = open_engine(&plain_target, NULL, threads, NULL);
        bee_session *session = open_session(engine, N_CTX);
        float *logits = malloc(33 * 97 * sizeof *logits);
        CHECK_EQ(bee_session_evaluate(session, prompt, 33, 33, logits, NULL), BEE_OK);
        if (first) CHECK(!memcmp(first, logits, 33 * 97 * sizeof *logits));
        if (first)
            free(logits);
        else
            first = logits;
        bee_session_close(session);
        bee_engine_close(engine);
    }
    free(first);
}

/* ---- company ---------------------------------------------------------------------------------------------- */

/* Sessions that read prompts, draft and do not draft share their passes; each gets what it gets alone. */
static void test_sessions_together(void) {
    enum { N = 9 };
    Random random = {23};
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 16, .seed = 2}, 2, NULL);
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    for (int round = 0; round < test_rounds(4); round++) {
        int32_t prompts[N][50];
        bee_request requests[N];
        Output alone[N], together[N] = {{.n = 0}};
        bee_session *sessions[N];
        for (int i = 0; i < N; i++) {
            requests[i] = (bee_request){.prompt = prompts[i],
                                        .n_prompt = 1 + random_below(&random, 50),
                                        .max_tokens = 1 + random_below(&random, 30),
                                        .sampling = random_sampling(&random)};
            random_speculation(&random, &info, &requests[i]);
            random_prompt(&random, prompts[i], requests[i].n_prompt, i % 2 ? 97 : 3); /* or repeat themselves */
            alone[i] = generate_fresh(engine, &requests[i]);
            sessions[i] = open_session(engine, N_CTX);
            CHECK_EQ(bee_session_begin(sessions[i], &requests[i], NULL), BEE_OK);
        }
        for (int pass = 0, running = N; running && pass < 500; pass++) {
            bee_session *active[N];
            bee_step steps[N];
            int index[N], n = 0;
            for (int i = 0; i < N; i++) /* some wait, as in a queue */
                if (!together[i].finish && (pass + i) % 4) active[n] = sessions[i], index[n++] = i;
            if (!n) continue;
            CHECK_EQ(bee_engine_step(engine, active, n, steps, NULL), BEE_OK);
            for (int i = 0; i < n; i++) {
                take_step(&steps[i], &together[index[i]]);
                running -= steps[i].finish != BEE_FINISH_NONE;
            }
        }
        for (int i = 0; i < N; i++) {
            CHECK(same_output(&alone[i], &together[i]));
            bee_session_close(sessions[i]);
        }
    }
    bee_engine_close(engine);
}

/* More sessions than a pass could give drafts to. */
static void test_full_pass(void) {
    enum { N = BEE_MAX_PASS_ROWS };
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 16, .seed = 2}, 2, NULL);
    static bee_session *sessions[N];
    static bee_step steps[N];
    int32_t prompt[3] = {1, 2, 3};
    bee_request request = {.prompt = prompt,
                           .n_prompt = 3,
                           .max_tokens = 4,
                           .speculation = BEE_SPECULATION_DFLASH,
                           .draft_length = 3,
                           .sampling = {.temperature = 8, .top_p = 1, .seed = 5}};
    const Output alone = generate_fresh(engine, &request);
    for (int i = 0; i < N; i++) {
        sessions[i] = open_session(engine, 16);
        CHECK_EQ(bee_session_begin(sessions[i], &request, NULL), BEE_OK);
    }
    int wrong = 0, most = 0;
    static Output outputs[N];
    for (int n = N, pass = 0; n == N && pass < 20; pass++) { /* equal sessions end together */
        CHECK_EQ(bee_engine_step(engine, sessions, N, steps, NULL), BEE_OK);
        for (int i = 0; i < N; i++) {
            take_step(&steps[i], &outputs[i]);
            if (steps[i].finish) n = 0;
            if (steps[i].n_tokens > most) most = steps[i].n_tokens;
        }
    }
    for (int i = 0; i < N; i++) {
        wrong += !same_output(&outputs[i], &alone);
        bee_session_close(sessions[i]);
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(most, 1); /* every row was a session's own */
    bee_engine_close(engine);
}

/* ---- how requests end ------------------------------------------------------------------------------------- */

static void test_context_full(void) {
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 16, .seed = 2}, 2, NULL);
    Random random = {25};
    int32_t prompt[32];
    random_prompt(&random, prompt, 32, 97);
    for (int n_ctx = 17; n_ctx <= 32; n_ctx += 5)
        for (int n_prompt = n_ctx - 6; n_prompt <= n_ctx; n_prompt++)
            for (int draft_length = 0; draft_length < 16; draft_length += 5) {
                bee_session *session = open_session(engine, n_ctx);
                const bee_request request = {.prompt = prompt,
                                             .n_prompt = n_prompt,
                                             .max_tokens = 1000,
                                             .speculation = n_ctx % 2 ? BEE_SPECULATION_DFLASH : BEE_SPECULATION_COPY,
                                             .draft_length = draft_length,
                                             .sampling = {.temperature = 40, .top_p = 1, .seed = 3}};
                const Output out = generate(engine, session, &request);
                CHECK_EQ(out.finish, BEE_FINISH_CONTEXT);
                /* The last token of a full context is still given; after a prompt that fills it, one. */
                CHECK_EQ(out.n, n_prompt == n_ctx ? 1 : n_ctx - n_prompt);
                bee_session_close(session);
            }
    bee_engine_close(engine);
}

static void test_limits(void) {
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 16, .seed = 2}, 2, NULL);
    const int32_t prompt[] = {4, 8, 15};
    bee_request request = {
        .prompt = prompt, .n_prompt = 3, .max_tokens = 40, .sampling = {.temperature = 40, .top_p = 1, .seed = 1}};
    const Output whole = generate_fresh(engine, &request);
    request.speculation = BEE_SPECULATION_DFLASH;
    CHECK_EQ(whole.n, 40);
    CHECK_EQ(whole.finish, BEE_FINISH_LENGTH);
    for (int draft_length = 0; draft_length < 16; draft_length += 5) {
        request.draft_length = draft_length;
        for (int limit = 1; limit < 40; limit += limit < 8 ? 1 : 9) {
            request.max_tokens = limit;
            const Output out = generate_fresh(engine, &request);
            CHECK_EQ(out.n, limit);
            CHECK_EQ(out.finish, BEE_FINISH_LENGTH);
            CHECK(!memcmp(out.tokens, whole.tokens, (size_t)limit * sizeof *out.tokens));
        }
        request.max_tokens = 40;
        for (int i = 0; i < 40; i += 7) {
            int first = 0;
            while (whole.tokens[first] != whole.tokens[i]) first++;
            const int32_t stops[] = {whole.tokens[i], -5, 1000000}; /* no such tokens, no harm */
            request.stop_tokens = stops;
            request.n_stop_tokens = 3;
            const Output out = generate_fresh(engine, &request);
            CHECK_EQ(out.finish, BEE_FINISH_STOP);
            CHECK_EQ(out.n, first + 1); /* the stop token is the last one */
            CHECK(!memcmp(out.tokens, whole.tokens, (size_t)out.n * sizeof *out.tokens));
        }
        request.n_stop_tokens = 0;
    }
    bee_engine_close(engine);
}

/* ---- broken weights --------------------------------------------------------------------------------------- */

/* One NaN among the weights is enough for every logit; that ends the request, and the engine outlives it. */
static void test_broken_weights(void) {
    TinyTarget broken = plain_target;
    broken.not_finite = true;
    for (const char *const *isa = test_sets(); *isa; isa++) {
        bee_engine *engine = open_engine(&broken, NULL, 2, *isa);
        bee_session *session = open_session(engine, 32);
        const int32_t prompt[] = {1, 2};
        const bee_request request = {
            .prompt = prompt, .n_prompt = 2, .max_tokens = 5, .sampling = {.temperature = 1, .top_p = 1}};
        bee_step step;
        for (int i = 0; i < 2; i++) {
            CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
            CHECK_EQ(bee_engine_step(engine, &session, 1, &step, NULL), BEE_OK);
            CHECK(step.finish == BEE_FINISH_NOT_FINITE && step.n_tokens == 0);
            EXPECT(bee_engine_step(engine, &session, 1, &step, &error), BEE_ERROR_ARGUMENT, "no running request");
        }
        bee_session_close(session);
        bee_engine_close(engine);
    }
}

/* Where one token is broken, the sessions that read it end, and those that share their passes do not notice. */
static void test_broken_neighbour(void) {
    TinyTarget broken = plain_target;
    broken.broken_token = 60;
    for (const char *const *isa = test_sets(); *isa; isa++) {
        bee_engine *engine = open_engine(&broken, &(TinyDrafter){.block_size = 8, .seed = 2}, 2, *isa);
        const int32_t sound_prompt[] = {1, 2, 3}, broken_prompt[] = {1, 60, 3};
        bee_request request = {.prompt = sound_prompt,
                               .n_prompt = 3,
                               .max_tokens = 12,
                               .speculation = BEE_SPECULATION_DFLASH,
                               .draft_length = -1,
                               .sampling = {.top_p = 1}};
        const Output alone = generate_fresh(engine, &request);
        CHECK_EQ(alone.finish, BEE_FINISH_LENGTH);
        bee_session *pair[] = {open_session(engine, N_CTX), open_session(engine, N_CTX)};
        CHECK_EQ(bee_session_begin(pair[0], &request, NULL), BEE_OK);
        request.prompt = broken_prompt;
        CHECK_EQ(bee_session_begin(pair[1], &request, NULL), BEE_OK);
        bee_step steps[2];
        Output out = {.n = 0};
        CHECK_EQ(bee_engine_step(engine, pair, 2, steps, NULL), BEE_OK);
        CHECK(steps[1].finish == BEE_FINISH_NOT_FINITE && steps[1].n_tokens == 0);
        take_step(steps, &out);
        while (!out.finish && !bee_engine_step(engine, pair, 1, steps, NULL)) take_step(steps, &out);
        CHECK(same_output(&out, &alone));
        request.prompt = sound_prompt; /* nothing of the broken request is left */
        const Output after = generate(engine, pair[1], &request);
        CHECK(same_output(&after, &alone));
        for (int i = 0; i < 2; i++) bee_session_close(pair[i]);
        bee_engine_close(engine);
    }
}

int main(void) {
    test_on_off();
    test_threads();
    test_sessions_together();
    test_full_pass();
    test_context_full();
    test_limits();
    test_broken_weights();
    test_broken_neighbour();
    return check_report();
}
