/* Tests of engines and sessions on tiny random models: the same tokens whatever the drafts, the company and the cache;
 * limits, cancellation, and refusals. */
#include "compiled_kernels.h"
#include "draft/dflash.h"
#include "engine/device_cycle.h"
#include "engine_exercise.h"
#include "sample_row.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

/* ---- the same tokens whatever the drafts ------------------------------------------------------------ */

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

/* ---- the same numbers whatever the pass ------------------------------------------------------------- */

static void test_passes(void) {
    enum { N = 130 };
    Random random = {22};
    int32_t tokens[N];
    random_prompt(&random, tokens, N, plain_target.n_vocab);
    const size_t n_logits = (size_t)N * 97, n_features = (size_t)N * 2 * 64;
    for (const char *const *isa = test_sets(); *isa; isa++) {
        bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 2, *isa);
        bee_session *session = bee_session_open(engine, N, true, NULL);
        float *logits = malloc(n_logits * sizeof(float)), *other = malloc(n_logits * sizeof(float));
        float *features = malloc(n_features * sizeof(float)), *other_features = malloc(n_features * sizeof(float));
        float drafted[7 * 97], other_drafted[7 * 97];
        int32_t drafts[7], other_drafts[7];
        CHECK_EQ(bee_session_evaluate(session, tokens, N, 1, logits, NULL), BEE_OK);
        CHECK_EQ(bee_session_features(session, 0, N, features, NULL), BEE_OK);
        CHECK_EQ(bee_session_draft(session, 3, 7, drafts, drafted, NULL), BEE_OK);
        int finite = 0;
        for (size_t i = 0; i < n_logits; i++) finite += isfinite(logits[i]) != 0;
        CHECK_EQ(finite, n_logits);
        static const int rows[] = {2, 7, 16, 128};
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            CHECK_EQ(bee_session_evaluate(session, tokens, N, rows[r], other, NULL), BEE_OK);
            CHECK(!memcmp(logits, other, n_logits * sizeof(float)));
            CHECK_EQ(bee_session_features(session, 0, N, other_features, NULL), BEE_OK);
            CHECK(!memcmp(features, other_features, n_features * sizeof(float)));
            CHECK_EQ(bee_session_draft(session, 3, 7, other_drafts, other_drafted, NULL), BEE_OK);
            CHECK(!memcmp(drafts, other_drafts, sizeof drafts) && !memcmp(drafted, other_drafted, sizeof drafted));
        }
        for (int i = 0; i < 7; i++) { /* greedy */
            int best = 0;
            for (int t = 1; t < 97; t++)
                if (drafted[i * 97 + t] > drafted[i * 97 + best]) best = t;
            CHECK_EQ(drafts[i], best);
        }
        const int32_t *held;
        CHECK_EQ(bee_session_tokens(session, &held), N);
        CHECK(!memcmp(held, tokens, sizeof tokens));
        free(logits);
        free(other);
        free(features);
        free(other_features);
        bee_session_close(session);
        bee_engine_close(engine);
    }
}

/* Features are the inputs of layers: tap 0 is the embedding's row, exactly, whoever asks for it. */
static void test_taps(void) {
    TinyFile file = tiny_target(&plain_target);
    bee_engine *engine = bee_engine_open(
        file.path, NULL, &(bee_engine_params){.device = test_device(), .n_threads = 1, .n_taps = 3, .taps = {0, 2, 1}},
        NULL);
    bee_engine *with_drafter = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 1, NULL);
    bee_session *a = bee_session_open(engine, 16, true, NULL), *b = bee_session_open(with_drafter, 16, true, NULL);
    const int32_t tokens[] = {5, 5, 9};
    float three[3][3][64], two[3][2][64];
    CHECK_EQ(bee_session_evaluate(a, tokens, 3, 3, NULL, NULL), BEE_OK);
    CHECK_EQ(bee_session_evaluate(b, tokens, 3, 2, NULL, NULL), BEE_OK);
    CHECK_EQ(bee_session_features(a, 0, 3, &three[0][0][0], NULL), BEE_OK);
    CHECK_EQ(bee_session_features(b, 0, 3, &two[0][0][0], NULL), BEE_OK);
    CHECK(!memcmp(three[0][0], three[1][0], sizeof three[0][0])); /* the same token */
    CHECK(memcmp(three[0][1], three[1][1], sizeof three[0][1]));  /* at another place */
    for (int i = 0; i < 3; i++) CHECK(!memcmp(three[i][0], two[i][0], 256) && !memcmp(three[i][1], two[i][1], 256));
    bee_session_close(a);
    bee_session_close(b);
    bee_engine_close(engine);
    bee_engine_close(with_drafter);
    tiny_file_close(&file);
}

/* ---- company and cache ------------------------------------------------------------------------------ */

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

static void test_prefix_reuse(void) {
    Random random = {24};
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 2, NULL);
    bee_session *session = open_session(engine, N_CTX);
    int32_t prompt[N_CTX];
    int n_prompt = 0, reused = 0;
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    for (int turn = 0; turn < test_rounds(60); turn++) {
        /* The next turn of a conversation: some of what the session holds, often all of it, and something new. */
        const int32_t *held;
        const int n_held = bee_session_tokens(session, &held);
        int keep = random_below(&random, 3) ? n_held : random_below(&random, n_held + 1);
        if (keep > 60) keep = random_below(&random, 20);
        memcpy(prompt, held, (size_t)keep * sizeof *prompt);
        n_prompt = keep + random_below(&random, 12) + (keep == 0);
        random_prompt(&random, prompt + keep, n_prompt - keep, 97);
        bee_request request = {.prompt = prompt,
                               .n_prompt = n_prompt,
                               .max_tokens = 1 + random_below(&random, 12),
                               .sampling = random_sampling(&random)};
        random_speculation(&random, &info, &request);
        const Output fresh = generate_fresh(engine, &request), again = generate(engine, session, &request);
        CHECK(same_output(&fresh, &again));
        CHECK_EQ(fresh.stats.reused_tokens, 0);
        CHECK(again.stats.reused_tokens < n_prompt);
        /* Also after a request without drafts, whose tokens the drafter has not seen. */
        const bool asks_drafter = request.speculation == BEE_SPECULATION_DFLASH;
        if (asks_drafter && request.max_tokens > 2) CHECK(again.stats.drafted_tokens > 0);
        if (request.speculation == BEE_SPECULATION_OFF && keep > 0)
            CHECK(again.stats.reused_tokens >= (keep < n_prompt ? keep : n_prompt - 1));
        reused += again.stats.reused_tokens;
    }
    CHECK(reused > test_rounds(200));
    bee_session_close(session);
    bee_engine_close(engine);
}

/* ---- where drafts come from --------------------------------------------------------------------------- */

static void test_copies(void) {
    const TinyTarget few_tokens = {.n_vocab = 5, .n_layer = 1, .n_embd = 32, .n_ctx = 256, .seed = 3, .sharpness = 1};
    bee_engine *engine = open_engine(&few_tokens, NULL, 2, NULL);
    int32_t prompt[] = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2};
    int accepted = 0;
    for (int length = 1; length < BEE_MAX_BLOCK; length++) {
        bee_request request = {.prompt = prompt,
                               .n_prompt = 10,
                               .max_tokens = 60,
                               .speculation = BEE_SPECULATION_COPY,
                               .draft_length = length,
                               .sampling = {.temperature = 0.5f, .top_p = 1, .seed = (uint64_t)length}};
        const Output copied = generate_fresh(engine, &request);
        CHECK(copied.stats.copied_tokens > 0);
        CHECK_EQ(copied.stats.copied_tokens, copied.stats.drafted_tokens);
        CHECK_EQ(copied.stats.drafter_histogram[0], copied.stats.cycles);
        accepted += copied.stats.copied_accepted;
        request.speculation = BEE_SPECULATION_AUTO; /* has nothing else to choose from */
        const Output chosen = generate_fresh(engine, &request);
        CHECK(same_output(&copied, &chosen) && chosen.stats.copied_tokens > 0);
    }
    CHECK(accepted > 100);
    bee_engine_close(engine);
}

/* Features wait while nothing is drafted, longer than there is room for, and are then what they would have been. */
static void test_waiting_features(void) {
    enum { N_PROMPT = 7, N_OUT = 150, N_DRAFTS = 7 };
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 2, NULL);
    const int32_t prompt[N_PROMPT] = {9, 8, 7, 6, 5, 4, 3};
    bee_request request = {.prompt = prompt,
                           .n_prompt = N_PROMPT,
                           .max_tokens = N_OUT,
                           .speculation = BEE_SPECULATION_AUTO,
                           .draft_length = -1,
                           .sampling = {.temperature = 40, .top_p = 1, .seed = 7}};
    bee_session *lazy = open_session(engine, 256), *eager = open_session(engine, 256);
    set_costs(engine, false);
    CHECK_EQ(bee_session_begin(lazy, &request, NULL), BEE_OK);
    lazy->chances[SOURCE_DFLASH].patience = 1000;
    int32_t tokens[N_PROMPT + N_OUT];
    memcpy(tokens, prompt, sizeof prompt);
    bee_stats stats;
    int most_waiting = 0;
    bee_step step = {.finish = BEE_FINISH_NONE};
    for (int n = N_PROMPT; !step.finish && !bee_engine_step(engine, &lazy, 1, &step, NULL); n += step.n_tokens) {
        memcpy(tokens + n, step.tokens, (size_t)step.n_tokens * sizeof *tokens);
        if (dflash_of(lazy)->n_waiting > most_waiting) most_waiting = dflash_of(lazy)->n_waiting;
        CHECK_EQ(dflash_of(lazy)->n_injected + dflash_of(lazy)->n_waiting, lazy->n_cached);
    }
    bee_session_stats(lazy, &stats);
    CHECK_EQ(stats.drafted_tokens, 0);
    if (test_on_cuda()) CHECK(lazy->n_ahead > N_OUT / 2);
    CHECK_EQ(most_waiting, BEE_MAX_PASS_ROWS);
    const int n_cached = N_PROMPT + N_OUT - 1;
    CHECK(lazy->n_cached == n_cached && dflash_of(lazy)->n_injected > 0 && dflash_of(lazy)->n_waiting > 0);

    int32_t drafts[2][N_DRAFTS];
    float logits[2][N_DRAFTS * 97];
    CHECK_EQ(bee_session_evaluate(eager, tokens, n_cached, 3, NULL, NULL), BEE_OK);
    CHECK_EQ(bee_session_draft(eager, 11, N_DRAFTS, drafts[0], logits[0], NULL), BEE_OK);
    CHECK_EQ(bee_session_draft(lazy, 11, N_DRAFTS, drafts[1], logits[1], NULL), BEE_OK);
    CHECK(dflash_of(lazy)->n_injected == n_cached && dflash_of(lazy)->n_waiting == 0);
    CHECK(!memcmp(drafts[0], drafts[1], sizeof drafts[0]) && !memcmp(logits[0], logits[1], sizeof logits[0]));

    /* As soon as it pays, the drafter goes on from there. */
    request.prompt = tokens;
    request.n_prompt = n_cached;
    request.max_tokens = 20;
    set_costs(engine, true);
    const Output on = generate(engine, lazy, &request);
    CHECK(on.stats.reused_tokens == n_cached - 1 && on.stats.drafted_tokens > on.stats.copied_tokens);
    request.speculation = BEE_SPECULATION_OFF;
    const Output off = generate(engine, eager, &request);
    CHECK(same_output(&on, &off));
    bee_session_close(lazy);
    bee_session_close(eager);
    bee_engine_close(engine);
}

/* Passes with copies make one without them due, which may run on a device as a whole: that one counts, too. */
static void test_copies_go_on(void) {
    bee_engine *engine = open_engine(&pairs[1].target, NULL, 1, NULL);
    const int32_t prompt[] = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2};
    set_costs(engine, true);
    for (uint64_t seed = 0; seed < 4; seed++) {
        const bee_request request = {.prompt = prompt,
                                     .n_prompt = 10,
                                     .max_tokens = 60,
                                     .speculation = BEE_SPECULATION_AUTO,
                                     .draft_length = -1,
                                     .sampling = {.temperature = 0.5f, .top_p = 1, .seed = seed}};
        const Output out = generate_fresh(engine, &request);
        CHECK(out.stats.drafted_histogram[0] < out.stats.cycles - 5);
        CHECK(out.stats.drafted_histogram[0] > 0);
    }
    bee_engine_close(engine);
}

/* What a session keeps for its caller is the same whether tokens were read or generated. */
static void test_kept_features(void) {
    enum { N_OUT = 60, SIZE = 2 * 64 };
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 2, NULL);
    bee_session *read = bee_session_open(engine, 256, true, NULL);
    float *features[2] = {malloc(N_OUT * SIZE * sizeof(float)), malloc(N_OUT * SIZE * sizeof(float))};
    const int32_t prompt[] = {9, 8, 7};
    for (int mode = BEE_SPECULATION_OFF; mode <= BEE_SPECULATION_COPY; mode++) {
        bee_session *session = bee_session_open(engine, 256, true, NULL);
        const bee_request request = {.prompt = prompt,
                                     .n_prompt = 3,
                                     .max_tokens = N_OUT,
                                     .speculation = (bee_speculation)mode,
                                     .draft_length = mode == BEE_SPECULATION_DFLASH ? 5 : -1,
                                     .sampling = {.top_p = 1}};
        generate(engine, session, &request);
        const int32_t *tokens;
        CHECK(bee_session_tokens(session, &tokens) >= N_OUT);
        CHECK_EQ(bee_session_features(session, 0, N_OUT, features[0], NULL), BEE_OK);
        CHECK_EQ(bee_session_evaluate(read, tokens, N_OUT, 16, NULL, NULL), BEE_OK);
        CHECK_EQ(bee_session_features(read, 0, N_OUT, features[1], NULL), BEE_OK);
        CHECK(!memcmp(features[0], features[1], N_OUT * SIZE * sizeof(float)));
        bee_session_close(session);
    }
    for (int i = 0; i < 2; i++) free(features[i]);
    bee_session_close(read);
    bee_engine_close(engine);
}

/* ---- cycles that are queued before those before them are known -------------------------------------------- */

static bee_request auto_request(const int32_t *prompt, int n_prompt, int max_tokens, uint64_t seed) {
    return (bee_request){.prompt = prompt,
                         .n_prompt = n_prompt,
                         .max_tokens = max_tokens,
                         .speculation = BEE_SPECULATION_AUTO,
                         .draft_length = -1,
                         .sampling = {.temperature = 40, .top_p = 1, .seed = seed}};
}

static Output generate_off(bee_engine *engine, bee_request request, int n_ctx) {
    bee_session *session = open_session(engine, n_ctx);
    request.speculation = BEE_SPECULATION_OFF;
    const Output out = generate(engine, session, &request);
    bee_session_close(session);
    return out;
}

/* A step of a session that believes in its drafter, whatever that has shown. */
static void step_hopefully(bee_session *session, Output *out) {
    for (int i = 0; i < BEE_MAX_BLOCK; i++) session->chances[SOURCE_DFLASH].kept[i] = 0.9;
    bee_step step = {.finish = BEE_FINISH_CONSTRAINT}; /* in case of an error */
    CHECK_EQ(bee_engine_step(session->engine, &session, 1, &step, NULL), BEE_OK);
    take_step(&step, out);
}

/* Steps until the session has a cycle under way; false where none came, as on the CPU. */
static bool step_until_queued(bee_session *session, Output *out) {
    for (int i = 0; i < 8 && !out->finish && !device_cycle_queued(session); i++) step_hopefully(session, out);
    return device_cycle_queued(session);
}

static void test_ahead_with_auto(bee_engine *engine) {
    const int32_t prompt[] = {4, 8, 15};
    for (int cheap = 0; cheap < 2; cheap++) {
        bee_session *session = open_session(engine, 256);
        const bee_request request = auto_request(prompt, 3, 100, 7);
        set_costs(engine, cheap);
        const Output off = generate_off(engine, request, 256);
        CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
        Output on = {.n = 0};
        while (!on.finish) step_hopefully(session, &on);
        CHECK(same_output(&on, &off));
        const bee_stats *s = &session->stats;
        CHECK(cheap ? s->drafter_histogram[0] < s->cycles / 2 : s->drafter_histogram[0] > s->cycles * 9 / 10);
        if (test_on_cuda()) CHECK(session->n_ahead > s->cycles / (cheap ? 4 : 2));
        if (!test_on_cuda()) CHECK_EQ(session->n_ahead, 0);
        engine->short_cycle = 0;
        const Output slow = generate(engine, session, &request);
        CHECK(same_output(&slow, &off));
        CHECK_EQ(slow.n_ahead, 0);
        engine->short_cycle = INFINITY;
        bee_session_close(session);
    }
}

/* Drafting begins to pay, or ceases to, while something is under way: that runs as it was queued. */
static void test_ahead_and_changed(bee_engine *engine) {
    const int32_t prompt[] = {4, 8, 15};
    const bee_request request = auto_request(prompt, 3, 120, 8);
    const Output off = generate_off(engine, request, 256);
    bee_session *session = open_session(engine, 256);
    Output on = {.n = 0};
    bool cheap = true;
    int changes[2] = {0, 0};
    set_costs(engine, cheap);
    CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
    while (!on.finish) {
        const bool queued = device_cycle_queued(session), drafts = session->last_source == &dflash_source;
        const bool change = queued && drafts == cheap;
        const int before = session->stats.drafter_histogram[0];
        changes[cheap] += change;
        if (change) set_costs(engine, cheap = !cheap);
        step_hopefully(session, &on);
        if (change) CHECK_EQ(session->stats.drafter_histogram[0], before + !drafts);
        if (change) CHECK(!device_cycle_queued(session));
        CHECK_EQ(dflash_of(session)->n_injected + dflash_of(session)->n_waiting, session->n_cached);
    }
    CHECK(same_output(&on, &off));
    if (test_on_cuda()) CHECK(changes[0] > 1 && changes[1] > 1);
    bee_session_close(session);
}

/* Whatever ends a request while something is under way, the session goes on from what was given. */
static void test_ahead_and_ended(bee_engine *engine) {
    Random random = {27};
    int32_t prompt[256];
    int left = 0; /* requests that ended with something under way */
    bee_session *session = open_session(engine, 120);
    for (int round = 0; round < 12; round++) {
        const int32_t *held;
        const int n_held = bee_session_tokens(session, &held), keep = n_held > 40 ? 40 : n_held;
        memcpy(prompt, held, (size_t)keep * sizeof *prompt);
        random_prompt(&random, prompt + keep, 3, 97);
        bee_request request = auto_request(prompt, keep + 3, 1 + random_below(&random, 110), random_bits(&random));
        int32_t stop = random_below(&random, 97);
        request.stop_tokens = &stop;
        request.n_stop_tokens = round % 3 == 0;
        set_costs(engine, round % 2);
        const Output off = generate_off(engine, request, 120);
        CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
        Output on = {.n = 0};
        if (round % 4 == 3) {
            CHECK_EQ(step_until_queued(session, &on), test_on_cuda());
            if (on.finish) continue;
            bee_session_cancel(session);
            bee_step step;
            CHECK_EQ(bee_engine_step(engine, &session, 1, &step, NULL), BEE_OK);
            CHECK(step.finish == BEE_FINISH_CANCELLED && step.n_tokens == 0);
            CHECK(on.n <= off.n && !memcmp(on.tokens, off.tokens, (size_t)on.n * sizeof *on.tokens));
        } else {
            on = finish_request(engine, session, request.n_prompt);
            CHECK(same_output(&on, &off));
        }
        left += test_on_cuda() && engine->ops->device->cycle_queued(session->cycle);
    }
    if (test_on_cuda()) CHECK(left > 3);
    bee_session_close(session);
}

/* In company nothing is queued ahead, so that sessions share their passes from the second step on. */
static void test_ahead_and_joined(bee_engine *engine) {
    const int32_t prompt[] = {4, 8, 15};
    for (int mode = BEE_SPECULATION_OFF; mode <= BEE_SPECULATION_DFLASH; mode++) {
        bee_session *pair[] = {open_session(engine, 256), open_session(engine, 256)};
        bee_request request = auto_request(prompt, 3, 70, 9);
        request.speculation = (bee_speculation)mode;
        request.draft_length = mode == BEE_SPECULATION_DFLASH ? 3 : -1;
        set_costs(engine, true);
        const Output off = generate_off(engine, request, 256);
        Output out[2] = {{.n = 0}, {.n = 0}};
        for (int i = 0; i < 2; i++) {
            CHECK_EQ(bee_session_begin(pair[i], &request, NULL), BEE_OK);
            CHECK_EQ(step_until_queued(pair[i], &out[i]), test_on_cuda());
        }
        for (int pass = 0; pass < 3; pass++) {
            bee_step steps[2];
            CHECK_EQ(bee_engine_step(engine, pair, 2, steps, NULL), BEE_OK);
            for (int i = 0; i < 2; i++) {
                take_step(&steps[i], &out[i]);
                CHECK(steps[i].n_tokens > 0 && !device_cycle_queued(pair[i]));
            }
        }
        for (int i = 0; i < 2; i++) {
            bee_step step;
            while (!out[i].finish && !bee_engine_step(engine, &pair[i], 1, &step, NULL)) take_step(&step, &out[i]);
            CHECK(same_output(&out[i], &off));
            bee_session_close(pair[i]);
        }
    }
}

/* A token behind which no logits are finite makes what was queued behind it void. */
static void test_ahead_and_void(void) {
    TinyTarget broken = pairs[3].target;
    broken.broken_token = 30;
    bee_engine *engine = open_engine(&broken, &pairs[3].drafter, 1, NULL);
    const int32_t prompt[] = {1, 2, 3, 1, 2};
    int ended = 0, ahead = 0;
    set_costs(engine, true);
    for (uint64_t seed = 0; seed < 8; seed++) {
        const bee_request request = auto_request(prompt, 5, 80, seed);
        bee_session *session = open_session(engine, 256);
        const Output off = generate_off(engine, request, 256), on = generate(engine, session, &request);
        CHECK(same_output(&on, &off));
        ended += on.finish == BEE_FINISH_NOT_FINITE;
        ahead += on.n_ahead;
        bee_session_close(session);
    }
    CHECK(ended > 2);
    if (test_on_cuda()) CHECK(ahead > 0);
    bee_engine_close(engine);
}

static void test_ahead(void) {
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 2, NULL);
    test_ahead_with_auto(engine);
    test_ahead_and_changed(engine);
    test_ahead_and_ended(engine);
    test_ahead_and_joined(engine);
    bee_engine_close(engine);
    test_ahead_and_void();
}

/* ---- how requests end ------------------------------------------------------------------------------- */

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

/* ---- cancelling ------------------------------------------------------------------------------------- */

typedef struct Canceller {
    bee_session *session;
    atomic_int tokens; /* that the request has given so far */
    int after;
} Canceller;

static void *cancel_after(void *argument) {
    Canceller *c = argument;
    while (atomic_load(&c->tokens) < c->after) sched_yield();
    bee_session_cancel(c->session);
    return NULL;
}

static void test_cancel_from_a_thread(bee_engine *engine) {
    Random random = {26};
    int32_t prompt[200];
    random_prompt(&random, prompt, 200, 97);
    for (int round = 0; round < 12; round++) {
        bee_session *session = open_session(engine, 256);
        bee_request request = {.prompt = prompt,
                               .n_prompt = round % 2 ? 200 : 5,
                               .max_tokens = 40,
                               .speculation = round % 3 ? BEE_SPECULATION_DFLASH : BEE_SPECULATION_OFF,
                               .draft_length = 5,
                               .sampling = {.temperature = 8, .top_p = 1, .seed = 4}};
        const Output whole = generate(engine, session, &request);
        bee_session_close(session);
        session = open_session(engine, 256);
        Canceller canceller = {.session = session, .after = round % 4 * 3};
        CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
        pthread_t thread;
        pthread_create(&thread, NULL, cancel_after, &canceller);
        Output out = {.n = 0};
        for (int i = 0; i < 1000 && !out.finish; i++) {
            bee_step step;
            CHECK_EQ(bee_engine_step(engine, &session, 1, &step, NULL), BEE_OK);
            take_step(&step, &out);
            atomic_store(&canceller.tokens, out.n);
        }
        CHECK(out.finish == BEE_FINISH_CANCELLED || out.finish == BEE_FINISH_LENGTH);
        CHECK(!memcmp(out.tokens, whole.tokens, (size_t)out.n * sizeof *out.tokens));
        pthread_join(thread, NULL);
        const Output again = generate(engine, session, &request); /* on whatever the cancelled request left */
        CHECK(same_output(&again, &whole));
        bee_session_close(session);
    }
}

static void test_cancel(void) {
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 2, NULL);
    const int32_t prompt[] = {4, 8, 15};
    const bee_request request = {.prompt = prompt,
                                 .n_prompt = 3,
                                 .max_tokens = 20,
                                 .speculation = BEE_SPECULATION_DFLASH,
                                 .draft_length = 3,
                                 .sampling = {.temperature = 8, .top_p = 1, .seed = 1}};
    const Output alone = generate_fresh(engine, &request);
    bee_session *pair[] = {open_session(engine, N_CTX), open_session(engine, N_CTX)};
    bee_step steps[2];
    bee_error error;
    for (int i = 0; i < 2; i++) CHECK_EQ(bee_session_begin(pair[i], &request, NULL), BEE_OK);
    Output out = {.n = 0};
    CHECK_EQ(bee_engine_step(engine, pair, 2, steps, NULL), BEE_OK);
    take_step(&steps[1], &out);
    bee_session_cancel(pair[0]);
    CHECK_EQ(bee_engine_step(engine, pair, 2, steps, NULL), BEE_OK);
    CHECK_EQ(steps[0].finish, BEE_FINISH_CANCELLED);
    CHECK_EQ(steps[0].n_tokens, 0);
    take_step(&steps[1], &out); /* the other goes on, within the same step */
    CHECK(out.n >= 2);
    CHECK_EQ(bee_engine_step(engine, pair, 2, steps, &error), BEE_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "session 0 has no running request");
    while (!out.finish && !bee_engine_step(engine, &pair[1], 1, steps, NULL)) take_step(steps, &out);
    CHECK(same_output(&out, &alone));
    bee_session_cancel(pair[0]); /* without a request: cleared by the next one */
    const Output again = generate(engine, pair[0], &request);
    CHECK(same_output(&again, &alone));
    for (int i = 0; i < 2; i++) bee_session_close(pair[i]);
    test_cancel_from_a_thread(engine);
    bee_engine_close(engine);
}

/* ---- several threads on one engine ------------------------------------------------------------------ */

typedef struct User {
    bee_engine *engine;
    bee_session *session;
    bee_request request;
    Output out;
} User;

static void *use_engine(void *argument) { /* no checks here: they are counted without locks */
    User *user = argument;
    if (bee_session_begin(user->session, &user->request, NULL)) return NULL;
    bee_step step = {.finish = BEE_FINISH_NONE};
    while (!step.finish && !bee_engine_step(user->engine, &user->session, 1, &step, NULL)) {
        for (int i = 0; i < step.n_tokens; i++) user->out.tokens[user->out.n++] = step.tokens[i];
        bee_session_stats(user->session, &user->out.stats);
    }
    user->out.finish = step.finish;
    return NULL;
}

static void test_users(void) {
    enum { N = 4 };
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 2, NULL);
    const int32_t prompt[] = {1, 2, 3, 4, 5};
    User users[N] = {{.engine = engine}};
    Output alone[N];
    pthread_t threads[N];
    for (int i = 0; i < N; i++) {
        users[i] = (User){.engine = engine, .session = open_session(engine, N_CTX)};
        users[i].request = (bee_request){.prompt = prompt,
                                         .n_prompt = 5 - i,
                                         .max_tokens = 20,
                                         .speculation = (bee_speculation)i,
                                         .draft_length = 2 * i - 1,
                                         .sampling = {.temperature = 8, .top_p = 1, .seed = (uint64_t)i}};
        alone[i] = generate_fresh(engine, &users[i].request);
    }
    for (int i = 0; i < N; i++) pthread_create(&threads[i], NULL, use_engine, &users[i]);
    for (int i = 0; i < N; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < N; i++) {
        CHECK(same_output(&users[i].out, &alone[i]));
        bee_session_close(users[i].session);
    }
    bee_engine_close(engine);
}

/* ---- refusals --------------------------------------------------------------------------------------- */

static void test_bad_requests(void) {
    bee_engine *engine = open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .seed = 2}, 2, NULL);
    bee_engine *undrafted = open_engine(&plain_target, NULL, 1, NULL);
    bee_session *s = open_session(engine, 32), *plain = open_session(undrafted, 32);
    int32_t prompt[40] = {1, 2, 3}, bad[] = {1, 97}, negative[] = {-1};
    const bee_request good = {.prompt = prompt, .n_prompt = 3, .max_tokens = 5, .sampling = {.top_p = 1}};
#define REFUSED(session, field, value, expected, part)                              \
    do {                                                                            \
        bee_request request = good;                                                 \
        request.field = (value);                                                    \
        EXPECT(bee_session_begin((session), &request, &error), (expected), (part)); \
        CHECK_EQ(bee_session_begin((session), &request, NULL), (expected));         \
    } while (0)
    REFUSED(s, n_prompt, 0, BEE_ERROR_ARGUMENT, "prompt is empty");
    REFUSED(s, n_prompt, -1, BEE_ERROR_ARGUMENT, "prompt is empty");
    REFUSED(s, prompt, NULL, BEE_ERROR_ARGUMENT, "prompt is empty");
    REFUSED(s, n_prompt, 33, BEE_ERROR_CONTEXT, "33 tokens, but the context holds 32");
    REFUSED(s, max_tokens, 0, BEE_ERROR_ARGUMENT, "max_tokens is 0; it must be at least 1");
    REFUSED(s, speculation, (bee_speculation)4, BEE_ERROR_ARGUMENT, "speculation is 4");
    REFUSED(plain, speculation, BEE_SPECULATION_DFLASH, BEE_ERROR_ARGUMENT, "the engine has no drafter");
    bee_request request = good;
    const struct {
        bee_session *session;
        bee_speculation speculation;
        int32_t draft_length;
        const char *part;
    } lengths[] = {
        {s, BEE_SPECULATION_DFLASH, 8,
         "draft_length is 8; it must lie between -1 (automatic) and 7, the drafter's block"},
        {s, BEE_SPECULATION_AUTO, 8, "between -1 (automatic) and 7, the drafter's block"},
        {s, BEE_SPECULATION_COPY, 16, "draft_length is 16; it must lie between -1 (automatic) and 15"},
        {plain, BEE_SPECULATION_AUTO, 16, "draft_length is 16; it must lie between -1 (automatic) and 15"},
        {s, BEE_SPECULATION_DFLASH, -2, "draft_length is -2"},
    };
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        request.speculation = lengths[i].speculation;
        request.draft_length = lengths[i].draft_length;
        EXPECT(bee_session_begin(lengths[i].session, &request, &error), BEE_ERROR_ARGUMENT, lengths[i].part);
    }
    REFUSED(s, n_stop_tokens, 33, BEE_ERROR_ARGUMENT, "n_stop_tokens is 33; it must lie between 0 and 32");
    REFUSED(s, n_stop_tokens, -1, BEE_ERROR_ARGUMENT, "n_stop_tokens is -1");
    REFUSED(s, n_stop_tokens, 2, BEE_ERROR_ARGUMENT, "stop_tokens is missing");
    REFUSED(s, sampling.temperature, -1, BEE_ERROR_ARGUMENT, "temperature is -1");
    REFUSED(s, sampling.top_p, 0, BEE_ERROR_ARGUMENT, "top_p is 0");
    request = good;
    request.prompt = bad;
    request.n_prompt = 2;
    EXPECT(bee_session_begin(s, &request, &error), BEE_ERROR_ARGUMENT,
           "prompt token 1 is 97; the vocabulary has ids 0 to 96");
    request.prompt = negative;
    request.n_prompt = 1;
    EXPECT(bee_session_begin(s, &request, &error), BEE_ERROR_ARGUMENT, "prompt token 0 is -1");

    bee_step steps[2];
    bee_session *sessions[] = {s, s, plain, NULL};
    EXPECT(bee_engine_step(engine, sessions, 0, steps, &error), BEE_ERROR_ARGUMENT, "n_sessions is 0");
    EXPECT(bee_engine_step(engine, sessions, 129, steps, &error), BEE_ERROR_ARGUMENT, "n_sessions is 129");
    EXPECT(bee_engine_step(engine, sessions, 1, steps, &error), BEE_ERROR_ARGUMENT, "session 0 has no running request");
    EXPECT(bee_engine_step(engine, sessions + 3, 1, steps, &error), BEE_ERROR_ARGUMENT,
           "session 0 has no running request");
    CHECK_EQ(bee_session_begin(s, &good, NULL), BEE_OK);
    CHECK_EQ(bee_session_begin(plain, &good, NULL), BEE_OK);
    EXPECT(bee_engine_step(engine, sessions, 2, steps, &error), BEE_ERROR_ARGUMENT, "session 1 is given twice");
    EXPECT(bee_engine_step(engine, sessions + 1, 2, steps, &error), BEE_ERROR_ARGUMENT,
           "session 1 has no running request on this engine");
    CHECK_EQ(finish_request(engine, s, 3).n, 5); /* refusals leave the request as it was */
    EXPECT(bee_engine_step(engine, sessions, 1, steps, &error), BEE_ERROR_ARGUMENT,
           "no running request"); /* it has ended */

    float out[64 * 2];
    int32_t drafts[16];
    double pass, draft;
    EXPECT(bee_session_evaluate(s, prompt, 33, 1, NULL, &error), BEE_ERROR_CONTEXT,
           "n is 33; the context holds 1 to 32");
    EXPECT(bee_session_evaluate(s, prompt, 3, 0, NULL, &error), BEE_ERROR_ARGUMENT, "rows_per_pass is 0");
    EXPECT(bee_session_evaluate(s, prompt, 3, 129, NULL, &error), BEE_ERROR_ARGUMENT, "rows_per_pass is 129");
    EXPECT(bee_session_evaluate(s, bad, 2, 1, NULL, &error), BEE_ERROR_ARGUMENT, "token 1 is 97");
    EXPECT(bee_session_features(s, 0, 1, out, &error), BEE_ERROR_ARGUMENT, "keeps no features");
    EXPECT(bee_session_draft(s, 1, 8, drafts, NULL, &error), BEE_ERROR_ARGUMENT, "n is 8; the drafter drafts 1 to 7");
    EXPECT(bee_session_draft(s, 97, 2, drafts, NULL, &error), BEE_ERROR_ARGUMENT, "last_token is 97");
    EXPECT(bee_session_draft(s, 1, 2, drafts, NULL, &error), BEE_ERROR_ARGUMENT, "ran without speculation");
    EXPECT(bee_session_draft(plain, 1, 2, drafts, NULL, &error), BEE_ERROR_ARGUMENT, "no drafter");
    EXPECT(bee_engine_measure(engine, 0, 0, 1, &pass, &draft, &error), BEE_ERROR_ARGUMENT,
           "n_rows must lie between 1 and 128");
    EXPECT(bee_engine_measure(engine, 1, INT32_MAX, 1, &pass, &draft, &error), BEE_ERROR_ARGUMENT,
           "the model's context holds 256");
    CHECK_EQ(bee_engine_measure(engine, 8, 200, 3, &pass, &draft, NULL), BEE_OK);
    CHECK(pass > 0 && draft > 0);
    bee_session *keeping = bee_session_open(engine, 8, true, NULL);
    CHECK_EQ(bee_session_evaluate(keeping, prompt, 4, 4, NULL, NULL), BEE_OK);
    EXPECT(bee_session_features(keeping, 3, 2, out, &error), BEE_ERROR_ARGUMENT, "not all in the cache, which holds 4");
    EXPECT(bee_session_features(keeping, 1, INT32_MAX, out, &error), BEE_ERROR_ARGUMENT, "not all in the cache");
    EXPECT(bee_session_features(keeping, -1, 1, out, &error), BEE_ERROR_ARGUMENT, "not all in the cache");
    CHECK_EQ(bee_session_features(keeping, 3, 1, out, NULL), BEE_OK);
    bee_error error = {BEE_OK, ""};
    CHECK(!bee_session_open(engine, 0, false, &error) && error.status == BEE_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "n_ctx is 0; it must lie between 1 and the model's context length, 256");
    CHECK(!bee_session_open(engine, 257, false, NULL));
    bee_session_close(keeping);
    bee_session_close(s);
    bee_session_close(plain);
    bee_session_close(NULL);
    bee_engine_close(engine);
    bee_engine_close(undrafted);
    bee_engine_close(NULL);
}

static void refuse_engine(const char *model, const char *drafter, const bee_engine_params *params, bee_status status,
                          const char *part) {
    bee_error error = {BEE_OK, ""};
    CHECK(!bee_engine_open(model, drafter, params, &error));
    CHECK_EQ(error.status, status);
    CHECK_CONTAINS(error.message, part);
    CHECK(!bee_engine_open(model, drafter, params, NULL));
}

static void test_bad_engines(void) {
    TinyTarget other = plain_target, wider = plain_target, shallow = plain_target;
    other.other_words = true;
    wider.n_embd = 96;
    shallow.n_layer = 1;
    const TinyDrafter shape = {.block_size = 8, .seed = 2};
    TinyFile target = tiny_target(&plain_target), drafter = tiny_drafter(&plain_target, &shape);
    TinyFile other_drafter = tiny_drafter(&other, &shape), wider_drafter = tiny_drafter(&wider, &shape);
    TinyFile shallow_target = tiny_target(&shallow);
    refuse_engine(NULL, NULL, NULL, BEE_ERROR_ARGUMENT, "model_path is missing");
    refuse_engine("/nonexistent.gguf", NULL, NULL, BEE_ERROR_FILE, "nonexistent.gguf");
    refuse_engine(target.path, "/nonexistent.gguf", NULL, BEE_ERROR_FILE, "nonexistent.gguf");
    refuse_engine(drafter.path, NULL, NULL, BEE_ERROR_UNSUPPORTED, "DFlash drafter, not a model");
    refuse_engine(target.path, target.path, NULL, BEE_ERROR_MISMATCH, "is not a DFlash drafter");
    refuse_engine(target.path, other_drafter.path, NULL, BEE_ERROR_MISMATCH, "same size but other tokens");
    refuse_engine(target.path, wider_drafter.path, NULL, BEE_ERROR_MISMATCH,
                  "embedding_length is 96, the target's is 64");
    refuse_engine(shallow_target.path, drafter.path, NULL, BEE_ERROR_MISMATCH, "target_layers[1] is 2");
    refuse_engine(target.path, NULL, &(bee_engine_params){.n_threads = 65}, BEE_ERROR_ARGUMENT, "n_threads is 65");
    refuse_engine(target.path, NULL, &(bee_engine_params){.n_threads = -1}, BEE_ERROR_ARGUMENT, "n_threads is -1");
    refuse_engine(target.path, NULL, &(bee_engine_params){.instruction_set = "mmx"}, BEE_ERROR_ARGUMENT,
                  "'mmx' is not available; this machine has: ");
    refuse_engine(target.path, NULL, &(bee_engine_params){.n_taps = 17}, BEE_ERROR_ARGUMENT, "n_taps is 17");
    refuse_engine(target.path, NULL, &(bee_engine_params){.n_taps = 1, .taps = {3}}, BEE_ERROR_ARGUMENT,
                  "taps[0] is 3");
    refuse_engine(target.path, drafter.path, &(bee_engine_params){.n_taps = 1}, BEE_ERROR_ARGUMENT, "give either");
    refuse_engine(target.path, NULL, &(bee_engine_params){.costs = &(bee_costs){.pass = {0}}}, BEE_ERROR_ARGUMENT,
                  "costs.pass[0] is 0");
    refuse_engine(target.path, NULL, &(bee_engine_params){.costs = &(bee_costs){.pass = {1}, .draft = {[3] = NAN}}},
                  BEE_ERROR_ARGUMENT, "costs.draft[3] is nan");
    TinyFile *files[] = {&target, &drafter, &other_drafter, &wider_drafter, &shallow_target};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) tiny_file_close(files[i]);
}

/* Known costs are taken as they are; what is not known is filled in, and more rows never cost less. */
static void test_known_costs(void) {
    const TinyDrafter shape = {.block_size = 8, .seed = 2};
    TinyFile target = tiny_target(&plain_target), drafter = tiny_drafter(&plain_target, &shape);
    const bee_costs known = {.pass = {1, 2, 0, 4}, .draft = {[1] = 0.5, [7] = 2}};
    bee_costs costs;
    bee_engine *engine =
        bee_engine_open(target.path, drafter.path,
                        &(bee_engine_params){.device = test_device(), .n_threads = 1, .costs = &known}, NULL);
    bee_engine_costs(engine, &costs);
    CHECK(costs.pass[0] == 1 && costs.pass[1] == 2 && costs.pass[3] == 4);
    CHECK(costs.draft[1] == 0.5 && costs.draft[7] == 2 && costs.draft[4] == 1.25);
    for (int i = 1; i < 11; i++) CHECK(costs.pass[i] >= costs.pass[i - 1]);
    bee_engine_close(engine);
    engine =
        bee_engine_open(target.path, drafter.path, &(bee_engine_params){.device = test_device(), .n_threads = 1}, NULL);
    bee_engine_costs(engine, &costs);
    for (int i = 0; i < 11; i++) CHECK(costs.pass[i] > 0);
    for (int k = 1; k < 8; k++) CHECK(costs.draft[k] > 0);
    bee_engine_close(engine);
    tiny_file_close(&target);
    tiny_file_close(&drafter);
}

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

static void test_description(void) {
    bee_engine *engine =
        open_engine(&plain_target, &(TinyDrafter){.block_size = 8, .n_draft_vocab = 10, .seed = 2}, 3, "portable");
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    CHECK(info.n_vocab == 97 && info.n_ctx_train == 256 && info.n_layer == 2 && info.n_embd == 64);
    CHECK(info.n_threads == (test_on_cuda() ? 1 : 3) && info.has_drafter && info.block_size == 8 &&
          info.n_draft_vocab == 10);
    CHECK(info.mask_token == 2 && info.n_taps == 2 && info.taps[0] == 0 && info.taps[1] == 2 && info.weight_bytes > 0);
    CHECK_TEXT(info.instruction_set, test_on_cuda() ? "cuda" : "portable");
    CHECK_EQ(info.device, test_device());
    CHECK(*info.device_info.name && !*info.device_note);
    bee_engine_close(engine);
}

int main(void) {
    test_description();
    test_on_off();
    test_threads();
    test_passes();
    test_taps();
    test_sessions_together();
    test_full_pass();
    test_prefix_reuse();
    test_copies();
    test_copies_go_on();
    test_waiting_features();
    test_kept_features();
    test_ahead();
    test_context_full();
    test_limits();
    test_cancel();
    test_users();
    test_bad_requests();
    test_bad_engines();
    test_known_costs();
    test_broken_weights();
    test_broken_neighbour();
    return check_report();
}
