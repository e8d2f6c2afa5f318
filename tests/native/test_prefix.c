/* Tests of beginnings that sessions share, on tiny random models: what a request gets is what it gets alone, whoever
 * read its prompt, whatever becomes of the others; and no more is read and kept than there is. */
#include "cpu/cache_chunks.h"
#include "draft/dflash.h"
#include "engine_exercise.h"

#include <sys/resource.h>
#include <unistd.h>

enum { CONTEXT = 448, N_VOCAB = 97, MOST_OUTPUT = 24 };

static const TinyTarget attending = {
    .n_vocab = N_VOCAB, .n_layer = 1, .n_embd = 32, .n_ctx = CONTEXT, .seed = 1, .sharpness = 3};
static const TinyTarget remembering = {
    .n_vocab = N_VOCAB, .n_layer = 2, .n_embd = 32, .n_ctx = CONTEXT, .seed = 1, .sharpness = 3, .remembers = true};
static const TinyDrafter drafter = {.block_size = 8, .seed = 2};

/* A request, and what came of it. */
typedef struct Answer {
    int32_t prompt[CONTEXT];
    bee_request request;
    bee_session *session; /* NULL: none runs */
    int32_t tokens[MOST_OUTPUT];
    float logprobs[MOST_OUTPUT];
    int n;
    bee_finish finish;
    bee_stats stats;
} Answer;

static void begin(Answer *a, bee_session *session) {
    bee_error error = {BEE_OK, ""};
    a->session = session;
    a->n = 0;
    a->finish = BEE_FINISH_NONE;
    a->request.prompt = a->prompt;
    if (!CHECK_EQ(bee_session_begin(session, &a->request, &error), BEE_OK)) printf("    %s\n", error.message);
}

static void take(Answer *a, const bee_step *step) {
    CHECK(a->n + step->n_tokens <= MOST_OUTPUT);
    for (int i = 0; i < step->n_tokens; i++) {
        bee_logprobs report = {0};
        if (a->request.logprobs) CHECK_EQ(bee_session_logprobs(a->session, i, &report, NULL), BEE_OK);
        a->logprobs[a->n] = report.logprob;
        a->tokens[a->n++] = step->tokens[i];
    }
    a->finish = step->finish;
    if (!a->finish) return;
    bee_session_stats(a->session, &a->stats);
    a->session = NULL;
}

/* A step of those that have not ended; every session whose bit is set in `left_out` is not given to it. */
static int step_together(bee_engine *engine, Answer *answers, int n, unsigned left_out) {
    bee_session *sessions[BEE_MAX_BLOCK];
    bee_step steps[BEE_MAX_BLOCK];
    Answer *running[BEE_MAX_BLOCK];
    int n_running = 0, n_left = 0;
    for (int i = 0; i < n; i++) {
        n_left += answers[i].session != NULL;
        if (!answers[i].session || left_out >> i & 1) continue;
        sessions[n_running] = answers[i].session;
        running[n_running++] = &answers[i];
    }
    if (!n_running) return n_left;
    CHECK_EQ(bee_engine_step(engine, sessions, n_running, steps, NULL), BEE_OK);
    for (int i = 0; i < n_running; i++) {
        take(running[i], &steps[i]);
        n_left -= !running[i]->session;
    }
    return n_left;
}

/* Steps until all have ended; how many. */
static int finish_all(bee_engine *engine, Answer *answers, int n) {
    int steps = 1;
    while (step_together(engine, answers, n, 0) && CHECK(steps < 1000)) steps++;
    return steps;
}

static Answer alone(bee_engine *engine, const Answer *a) {
    Answer out = *a;
    engine->unshared = true;
    bee_session *session = open_session(engine, CONTEXT);
    begin(&out, session);
    finish_all(engine, &out, 1);
    CHECK_EQ(out.stats.reused_tokens, 0);
    bee_session_close(session);
    engine->unshared = false;
    return out;
}

/* Cancelled ones got the beginning of it. */
static void check_same(bee_engine *engine, const Answer *a) {
    const Answer expected = alone(engine, a);
    const bool cancelled = a->finish == BEE_FINISH_CANCELLED;
    CHECK(cancelled ? a->n <= expected.n : a->n == expected.n && a->finish == expected.finish);
    CHECK(!memcmp(a->tokens, expected.tokens, (size_t)a->n * sizeof *a->tokens));
    CHECK(!memcmp(a->logprobs, expected.logprobs, (size_t)a->n * sizeof *a->logprobs));
}

static Answer plain_answer(Random *random, int n_prompt, int max_tokens) {
    Answer a = {.request = {.n_prompt = n_prompt,
                            .max_tokens = max_tokens,
                            .draft_length = -1,
                            .sampling = {.temperature = 8, .top_p = 1, .seed = random_bits(random)}}};
    random_prompt(random, a.prompt, n_prompt, N_VOCAB);
    return a;
}

/* The other's prompt up to `common`, and something else behind it, which two branches do not share. */
static Answer branch_of(Random *random, const Answer *other, int branch, int common, int n_prompt) {
    Answer a = plain_answer(random, n_prompt, other->request.max_tokens);
    a.request.speculation = other->request.speculation;
    memcpy(a.prompt, other->prompt, (size_t)common * sizeof *a.prompt);
    a.prompt[common] = (other->prompt[common] + 1 + branch) % N_VOCAB;
    return a;
}

static bool holds_same(const bee_session *a, const bee_session *b, int chunk) {
    return test_on_cuda() || a->cache->chunks[0][chunk] == b->cache->chunks[0][chunk];
}

/* ---- one after the other ----------------------------------------------------------------------------------- */

/* Whole chunks are the same memory, the rest is a copy; who goes back writes his own; who closes takes nothing away. */
static void test_chunks(void) {
    Random random = {31};
    bee_engine *engine = open_engine(&attending, NULL, 2, NULL);
    bee_session *first = open_session(engine, CONTEXT), *second = open_session(engine, CONTEXT);
    bee_session *third = open_session(engine, CONTEXT);
    Answer a = plain_answer(&random, 300, 10), b = branch_of(&random, &a, 0, 270, 290),
           c = branch_of(&random, &b, 1, 40, 60);
    Answer d = branch_of(&random, &a, 2, 300, 310);
    begin(&a, first);
    finish_all(engine, &a, 1);
    begin(&b, second);
    CHECK(holds_same(first, second, 0) && holds_same(first, second, 1));
    CHECK(test_on_cuda() || !holds_same(first, second, 2));
    CHECK(test_on_cuda() || cache_chunk(first->cache, 0, 0)->n_holders == 2);
    finish_all(engine, &b, 1);
    CHECK_EQ(a.stats.shared_tokens, 0);
    CHECK_EQ(b.stats.shared_tokens, 270);
    CHECK_EQ(b.stats.reused_tokens, 270);
    begin(&c, first); /* goes back behind what it shares */
    CHECK(test_on_cuda() || !holds_same(first, second, 0));
    finish_all(engine, &c, 1);
    CHECK(c.stats.reused_tokens == 40 && c.stats.shared_tokens == 0);
    begin(&d, third); /* what is left of it lies in the second session */
    finish_all(engine, &d, 1);
    CHECK_EQ(d.stats.shared_tokens, 270);
    bee_session_close(second);
    CHECK(test_on_cuda() || cache_chunk(third->cache, 0, 0)->n_holders == 1);
    Answer again = d;
    begin(&again, third);
    finish_all(engine, &again, 1);
    CHECK(again.stats.reused_tokens == 309 && again.stats.shared_tokens == 0);
    const Answer *all[] = {&a, &b, &c, &d, &again};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) check_same(engine, all[i]);
    bee_session_close(third);
    bee_session_close(first);
    bee_engine_close(engine);
}

/* Too little to be worth it, a prompt that another one holds to its end, another length of context, features that
 * somebody wants to read, an engine that was told not to. */
static void test_limits(void) {
    Random random = {32};
    bee_engine *engine = open_engine(&attending, &drafter, 1, NULL);
    bee_session *first = open_session(engine, CONTEXT), *second = open_session(engine, CONTEXT);
    bee_session *other = open_session(engine, CONTEXT - 1);
    bee_session *keeping = bee_session_open(engine, CONTEXT, true, NULL);
    Answer a = plain_answer(&random, 256, 4);
    begin(&a, first);
    finish_all(engine, &a, 1);
    const struct {
        bee_session *session;
        int common, n_prompt, expected;
    } cases[] = {{second, 31, 60, 0},  {second, 32, 60, 32},   {second, 128, 200, 128}, {second, 256, 256, 255},
                 {other, 200, 220, 0}, {keeping, 200, 220, 0}, {second, 100, 100, 99},  {second, 256, 400, 256}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Answer nothing = plain_answer(&random, 5, 2),
               b = branch_of(&random, &a, (int)i, cases[i].common, cases[i].n_prompt);
        begin(&nothing, cases[i].session); /* so that it has nothing of its own */
        finish_all(engine, &nothing, 1);
        begin(&b, cases[i].session);
        finish_all(engine, &b, 1);
        CHECK_EQ(b.stats.shared_tokens, cases[i].expected);
        if (cases[i].session == second) check_same(engine, &b);
    }
    /* The drafter would lack what it must know: the first session ran without it. */
    Answer drafting = branch_of(&random, &a, 20, 200, 220), nothing = plain_answer(&random, 5, 2);
    drafting.request.speculation = BEE_SPECULATION_DFLASH;
    bee_session_close(other);
    begin(&nothing, second);
    finish_all(engine, &nothing, 1);
    begin(&drafting, second);
    finish_all(engine, &drafting, 1);
    CHECK_EQ(drafting.stats.shared_tokens, 0);
    CHECK(drafting.stats.drafted_tokens > 0);
    check_same(engine, &drafting);
    bee_session_close(keeping);
    bee_session_close(second);
    bee_session_close(first);
    bee_engine_close(engine);
}

/* The drafter's context comes along, be it projected or waiting: drafts go on, and are those of a session alone. */
static void test_drafters_context(void) {
    Random random = {33};
    for (int causal = 0; causal < 2; causal++) {
        bee_engine *engine = open_engine(&attending, &(TinyDrafter){8, .causal = causal, .seed = 2}, 1, NULL);
        for (int common = 40; common < 400; common += 113) {
            bee_session *first = open_session(engine, CONTEXT), *second = open_session(engine, CONTEXT);
            Answer a = plain_answer(&random, 400, 12);
            a.request.speculation = BEE_SPECULATION_DFLASH;
            Answer b = branch_of(&random, &a, 0, common, common + 20);
            begin(&a, first);
            while (first->n_cached < common) step_together(engine, &a, 1, 0);
            begin(&b, second);
            CHECK_EQ(b.session->n_cached, common);
            CHECK(drafter_is_ready(second));
            finish_all(engine, &b, 1);
            finish_all(engine, &a, 1);
            CHECK_EQ(b.stats.shared_tokens, common);
            const Answer expected = alone(engine, &b);
            CHECK_EQ(b.stats.drafted_tokens, expected.stats.drafted_tokens);
            CHECK_EQ(b.stats.accepted_tokens, expected.stats.accepted_tokens);
            check_same(engine, &a);
            check_same(engine, &b);
            bee_session_close(second);
            bee_session_close(first);
        }
        bee_engine_close(engine);
    }
}

/* Where there is no memory for a chunk of its own, a session that goes back is refused its request, and all go on. */
static void test_without_memory(void) {
#if defined(__linux__) && !defined(BEE_SANITIZED)
    Random random = {39};
    bee_engine *engine = open_engine(&attending, NULL, 1, NULL);
    bee_session *first = open_session(engine, CONTEXT), *second = open_session(engine, CONTEXT);
    Answer a = plain_answer(&random, 300, 4), b = branch_of(&random, &a, 0, 290, 320);
    Answer c = branch_of(&random, &a, 1, 40, 60);
    begin(&a, first);
    finish_all(engine, &a, 1);
    begin(&b, second);
    struct rlimit before, now;
    unsigned long pages = 0;
    FILE *status = fopen("/proc/self/statm", "r");
    CHECK(status && fscanf(status, "%lu", &pages) == 1 && !getrlimit(RLIMIT_AS, &before));
    fclose(status);
    now = (struct rlimit){pages * (unsigned long)sysconf(_SC_PAGESIZE), before.rlim_max};
    CHECK(!setrlimit(RLIMIT_AS, &now));
    c.request.prompt = c.prompt;
    EXPECT(bee_session_begin(first, &c.request, &error), BEE_ERROR_MEMORY, "that it no longer shares");
    CHECK(!setrlimit(RLIMIT_AS, &before));
    finish_all(engine, &b, 1);
    begin(&c, first);
    finish_all(engine, &c, 1);
    CHECK_EQ(c.stats.reused_tokens, 40);
    check_same(engine, &b);
    check_same(engine, &c);
    bee_session_close(first);
    bee_session_close(second);
    bee_engine_close(engine);
#endif
}

/* ---- at once ----------------------------------------------------------------------------------------------- */

/* Of several prompts that begin alike, one is read, and of the others the rest, in as few passes as that takes. */
static void test_one_reads(const TinyTarget *target, bee_speculation speculation) {
    enum { N = 6, COMMON = 300, PROMPT = 340 };
    Random random = {34};
    bee_engine *engine = open_engine(target, speculation ? &drafter : NULL, 2, NULL);
    bee_session *sessions[N];
    Answer answers[N];
    int reused = 0, steps = 0;
    for (int i = 0; i < N; i++) {
        answers[i] = i ? branch_of(&random, &answers[0], i, COMMON, PROMPT) : plain_answer(&random, PROMPT, 12);
        answers[i].request.speculation = speculation;
        sessions[i] = open_session(engine, CONTEXT);
        begin(&answers[i], sessions[i]);
    }
    while (!answers[0].n && step_together(engine, answers, N, 0)) steps++;
    CHECK(steps <= 5); /* three for what all have, two for what is left of each: 240 rows */
    for (int i = 1; i < N; i++)
        CHECK(holds_same(sessions[0], sessions[i], 0) && holds_same(sessions[0], sessions[i], 1));
    finish_all(engine, answers, N);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(answers[i].stats.shared_tokens, i ? COMMON : 0);
        reused += answers[i].stats.reused_tokens;
        check_same(engine, &answers[i]);
        bee_session_close(sessions[i]);
    }
    CHECK_EQ(reused, (N - 1) * COMMON);
    bee_engine_close(engine);
}

/* The one that reads is cancelled, closed, or not given to the step any more: the others go on from what is there. */
static void test_reader_leaves(void) {
    enum { N = 4, COMMON = 300 };
    Random random = {35};
    bee_engine *engine = open_engine(&attending, &drafter, 2, NULL);
    for (int way = 0; way < 3; way++) {
        bee_session *sessions[N];
        Answer answers[N];
        for (int i = 0; i < N; i++) {
            answers[i] = i ? branch_of(&random, &answers[0], i, COMMON, COMMON + 20) : plain_answer(&random, 400, 8);
            sessions[i] = open_session(engine, CONTEXT);
            begin(&answers[i], sessions[i]);
        }
        step_together(engine, answers, N, 0);
        CHECK(sessions[0]->n_cached == BEE_MAX_PASS_ROWS && !sessions[1]->n_cached);
        if (way < 2) {
            bee_session_cancel(sessions[0]);
            step_together(engine, answers, 1, 0);
            CHECK_EQ(answers[0].finish, BEE_FINISH_CANCELLED);
        }
        if (way == 1) {
            bee_session_close(sessions[0]);
            sessions[0] = NULL;
        }
        for (int i = 0; i < 4; i++) step_together(engine, answers, N, 1);
        CHECK_EQ(sessions[3]->stats.shared_tokens, COMMON);
        CHECK_EQ(sessions[1]->stats.shared_tokens, way == 1 ? 0 : BEE_MAX_PASS_ROWS);
        finish_all(engine, answers, N);
        for (int i = 0; i < N; i++) {
            check_same(engine, &answers[i]);
            bee_session_close(sessions[i]);
        }
    }
    bee_engine_close(engine);
}

/* ---- trees of prompts -------------------------------------------------------------------------------------- */

enum { N_SLOTS = 5, N_KNOWN = 24 };

/* A prompt that begins as one before it did, for long or not, often as far as a chunk's end. */
static Answer random_branch(Random *random, const Answer *known, int n_known, const bee_engine_info *info) {
    const int n_prompt = 1 + random_below(random, CONTEXT - MOST_OUTPUT);
    Answer a = plain_answer(random, n_prompt, 1 + random_below(random, MOST_OUTPUT - 1));
    if (n_known) {
        const Answer *other = &known[random_below(random, n_known)];
        int common = random_below(random, other->request.n_prompt + 1);
        if (random_below(random, 2)) common = common / CACHE_CHUNK * CACHE_CHUNK;
        if (common > n_prompt) common = n_prompt;
        memcpy(a.prompt, other->prompt, (size_t)common * sizeof *a.prompt);
    }
    a.request.sampling = random_sampling(random);
    a.request.logprobs = random_below(random, 2);
    random_speculation(random, info, &a.request);
    return a;
}

/* Sessions get requests, are cancelled, closed and opened at any time, and steps are given any of them. */
static void test_trees(const TinyTarget *target, const TinyDrafter *with, int rounds, uint64_t seed) {
    Random random = {seed};
    bee_engine *engine = open_engine(target, with, 2, NULL);
    bee_engine_info info;
    bee_engine_describe(engine, &info);
    bee_session *sessions[N_SLOTS];
    static Answer known[N_KNOWN], answers[N_SLOTS];
    int n_known = 0, shared = 0;
    for (int i = 0; i < N_SLOTS; i++) sessions[i] = open_session(engine, CONTEXT);
    for (int i = 0; i < N_SLOTS; i++) answers[i].session = NULL;
    for (int round = 0; round < test_rounds(rounds);) {
        const int slot = random_below(&random, N_SLOTS);
        Answer *a = &answers[slot];
        if (!a->session && random_below(&random, 3)) {
            if (random_below(&random, 4) == 0) {
                bee_session_close(sessions[slot]);
                sessions[slot] = open_session(engine, CONTEXT);
            }
            *a = random_branch(&random, known, n_known < N_KNOWN ? n_known : N_KNOWN, &info);
            known[n_known++ % N_KNOWN] = *a;
            begin(a, sessions[slot]);
            round++;
        } else if (a->session && random_below(&random, 40) == 0) {
            bee_session_cancel(sessions[slot]);
        }
        bool ran[N_SLOTS];
        for (int i = 0; i < N_SLOTS; i++) ran[i] = answers[i].session;
        step_together(engine, answers, N_SLOTS,
                      (unsigned)random_below(&random, 4) ? 0 : (unsigned)random_bits(&random));
        for (int i = 0; i < N_SLOTS; i++) {
            if (!ran[i] || answers[i].session) continue;
            shared += answers[i].stats.shared_tokens;
            check_same(engine, &answers[i]);
        }
    }
    finish_all(engine, answers, N_SLOTS);
    if (test_rounds(2) == 2) CHECK(shared > rounds * (target->remembers ? 1 : 10));
    for (int i = 0; i < N_SLOTS; i++) bee_session_close(sessions[i]);
    CHECK(!engine->sessions);
    bee_engine_close(engine);
}

int main(void) {
    test_chunks();
    test_trees(&remembering, &drafter, 24, 38);
    if (test_on_cuda()) return check_report(); /* the rest takes long there, and shares no more of the backend */
    test_limits();
    test_without_memory();
    test_drafters_context();
    test_one_reads(&attending, BEE_SPECULATION_OFF);
    test_one_reads(&attending, BEE_SPECULATION_DFLASH);
    test_one_reads(&remembering, BEE_SPECULATION_AUTO);
    test_reader_leaves();
    test_trees(&attending, &drafter, 24, 36);
    test_trees(&attending, NULL, 24, 37);
    return check_report();
}
