/* Tests of sessions on tiny random models: prefixes that stay in the cache, cancellation, several threads, refusals. */
#include "engine_exercise.h"

#include <pthread.h>
#include <stdatomic.h>

/* ---- prefixes --------------------------------------------------------------------------------------------- */

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

/* ---- cancelling ------------------------------------------------------------------------------------------- */

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

/* ---- several threads on one engine ------------------------------------------------------------------------ */

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

/* ---- refusals --------------------------------------------------------------------------------------------- */

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
    REFUSED(s, speculation, (bee_speculation)5, BEE_ERROR_ARGUMENT, "speculation is 5");
    REFUSED(s, speculation, BEE_SPECULATION_MTP, BEE_ERROR_ARGUMENT, "no block of the model's file drafts here");
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

int main(void) {
    test_prefix_reuse();
    test_cancel();
    test_users();
    test_bad_requests();
    return check_report();
}
