/* Requests on tiny random models, run to their end, with what must hold of every one of them. */
#ifndef BEE_TESTS_ENGINE_EXERCISE_H
#define BEE_TESTS_ENGINE_EXERCISE_H

#include "check.h"
#include "random.h"
#include "state.h"
#include "tiny_model.h"

#include <math.h>
#include <stdlib.h>

enum { N_CTX = 96, MOST = 128 };

/* Models and drafters of all kinds, and threads to run them. */
static const struct {
    TinyTarget target;
    TinyDrafter drafter;
    int threads;
} pairs[] = {
    {{.n_vocab = 97, .n_layer = 2, .n_embd = 64, .n_ctx = 256, .seed = 1, .sharpness = 3},
     {.block_size = 16, .seed = 2},
     1},
    /* so few tokens that drafts are often right */
    {{.n_vocab = 5, .n_layer = 1, .n_embd = 32, .n_ctx = 256, .seed = 3, .sharpness = 1},
     {.block_size = 8, .seed = 4},
     2},
    {{.n_vocab = 50, .n_layer = 3, .n_embd = 96, .n_ctx = 256, .seed = 5, .sharpness = 2},
     {.block_size = 4, .causal = true, .seed = 6},
     3},
    {{.n_vocab = 40, .n_layer = 2, .n_embd = 64, .n_ctx = 256, .seed = 7, .sharpness = 1},
     {.block_size = 16, .n_draft_vocab = 9, .seed = 8},
     5},
    {{.n_vocab = 333, .n_layer = 1, .n_embd = 64, .n_ctx = 256, .seed = 7, .sharpness = 1},
     {.block_size = 16, .n_draft_vocab = 100, .seed = 8},
     2},
};
enum { N_PAIRS = sizeof pairs / sizeof *pairs };

static const TinyTarget plain_target = {
    .n_vocab = 97, .n_layer = 2, .n_embd = 64, .n_ctx = 256, .seed = 1, .sharpness = 3};

/* BEE_TEST_DEVICE=cuda runs these tests on a card, or with BEE_CUDA_LIBRARY on its emulation. */
static inline bool test_on_cuda(void) {
    const char *device = getenv("BEE_TEST_DEVICE");
    return device && !strcmp(device, "cuda");
}

/* On an emulated card everything takes long: BEE_TEST_DIVISOR makes fewer rounds of what repeats. */
static inline int test_rounds(int n) {
    const char *divisor = getenv("BEE_TEST_DIVISOR");
    const int rounds = divisor ? n / atoi(divisor) : n;
    return rounds ? rounds : 1;
}

static inline bee_device test_device(void) { return test_on_cuda() ? BEE_DEVICE_CUDA : BEE_DEVICE_CPU; }

/* Instruction sets to go through: on a card they all come to the same. */
static inline const char *const *test_sets(void) {
    static const char *one[2];
    one[0] = bee_instruction_sets()[0];
    return test_on_cuda() ? one : bee_instruction_sets();
}

static inline bee_engine *open_engine(const TinyTarget *target, const TinyDrafter *drafter, int threads,
                                      const char *isa) {
    TinyFile file = tiny_target(target), drafter_file = {-1, ""};
    if (drafter) drafter_file = tiny_drafter(target, drafter);
    bee_error error = {BEE_OK, ""};
    const bee_engine_params params = {.device = test_device(), .n_threads = threads, .instruction_set = isa};
    bee_engine *engine = bee_engine_open(file.path, drafter ? drafter_file.path : NULL, &params, &error);
    if (!CHECK(engine != NULL)) {
        printf("    %s\n", error.message);
        exit(check_report());
    }
    tiny_file_close(&file);
    if (drafter) tiny_file_close(&drafter_file);
    engine->short_cycle = INFINITY; /* on an emulated card no cycle is */
    return engine;
}

static inline bee_session *open_session(bee_engine *engine, int n_ctx) {
    bee_error error = {BEE_OK, ""};
    bee_session *session = bee_session_open(engine, n_ctx, false, &error);
    if (!CHECK(session != NULL)) {
        printf("    %s\n", error.message);
        exit(check_report());
    }
    return session;
}

typedef struct Output {
    int32_t tokens[MOST];
    int n;
    bee_finish finish;
    bee_stats stats;
    int n_ahead; /* cycles queued ahead */
} Output;

static inline void take_step(const bee_step *step, Output *out) {
    CHECK(step->n_tokens >= 0 && step->n_tokens <= BEE_MAX_BLOCK && out->n + step->n_tokens <= MOST);
    CHECK(step->n_prompt_left >= 0);
    CHECK(step->n_tokens == 0 || step->n_prompt_left == 0);
    for (int i = 0; i < step->n_tokens; i++) out->tokens[out->n++] = step->tokens[i];
    out->finish = step->finish;
}

/* The counts agree with each other and with what came out. */
static inline void check_stats(const Output *out, int n_prompt) {
    const bee_stats *s = &out->stats;
    int cycles = 0, accepted = 0, drafted_cycles = 0, drafted = 0, drafter_cycles = 0, by_drafter = 0;
    for (int k = 0; k < 16; k++) {
        cycles += s->accepted_histogram[k];
        accepted += k * s->accepted_histogram[k];
        drafted_cycles += s->drafted_histogram[k];
        drafted += k * s->drafted_histogram[k];
        drafter_cycles += s->drafter_histogram[k];
        by_drafter += k * s->drafter_histogram[k];
    }
    CHECK_EQ(s->prompt_tokens, n_prompt);
    CHECK_EQ(s->output_tokens, out->n);
    CHECK_EQ(cycles, s->cycles);
    CHECK_EQ(accepted, s->accepted_tokens);
    CHECK_EQ(drafted_cycles, s->cycles);
    CHECK_EQ(drafted, s->drafted_tokens);
    CHECK_EQ(drafter_cycles, s->cycles);
    /* What a constraint forces stands before the drafter's own, or alone. */
    CHECK(by_drafter + s->copied_tokens <= s->drafted_tokens);
    CHECK(by_drafter + s->copied_tokens + s->forced_tokens >= s->drafted_tokens);
    CHECK(s->accepted_tokens <= s->drafted_tokens && s->copied_accepted <= s->copied_tokens);
    CHECK(s->copied_accepted <= s->accepted_tokens);
    CHECK_EQ(s->reduced_cycles + s->masked_cycles + s->full_cycles, s->cycles);
    /* A pass that read several tokens of the prompt gave one token without being a cycle. */
    const int without_cycle = out->n - s->cycles - s->accepted_tokens;
    CHECK(without_cycle == 0 || without_cycle == 1);
}

static inline Output finish_request(bee_engine *engine, bee_session *session, int n_prompt) {
    Output out = {.n = 0};
    bee_error error = {BEE_OK, ""};
    for (int i = 0; i < 1000 && !out.finish; i++) {
        bee_step step;
        if (!CHECK_EQ(bee_engine_step(engine, &session, 1, &step, &error), BEE_OK)) {
            printf("    %s\n", error.message);
            break;
        }
        take_step(&step, &out);
    }
    CHECK(out.finish != BEE_FINISH_NONE);
    bee_session_stats(session, &out.stats);
    out.n_ahead = session->n_ahead;
    check_stats(&out, n_prompt);
    return out;
}

static inline Output generate(bee_engine *engine, bee_session *session, const bee_request *request) {
    bee_error error = {BEE_OK, ""};
    if (!CHECK_EQ(bee_session_begin(session, request, &error), BEE_OK)) printf("    %s\n", error.message);
    return finish_request(engine, session, request->n_prompt);
}

/* By a session that has nothing, and takes nothing from others. */
static inline Output generate_fresh(bee_engine *engine, const bee_request *request) {
    bee_session *session = open_session(engine, N_CTX);
    session->apart = true;
    const Output out = generate(engine, session, request);
    bee_session_close(session);
    return out;
}

static inline bool same_output(const Output *a, const Output *b) {
    return a->n == b->n && a->finish == b->finish && !memcmp(a->tokens, b->tokens, (size_t)a->n * sizeof *a->tokens);
}

static inline void random_prompt(Random *random, int32_t *prompt, int n, int n_vocab) {
    for (int i = 0; i < n; i++) prompt[i] = random_below(random, n_vocab);
}

static inline bee_sampling random_sampling(Random *random) {
    static const float temperatures[] = {0, 0, 0.7f, 1.5f, 8, 40};
    bee_sampling s = {.temperature = temperatures[random_below(random, 6)], .top_p = 1, .seed = random_bits(random)};
    if (random_below(random, 4) == 0) s.top_k = 1 + random_below(random, 20);
    if (random_below(random, 4) == 0) s.top_p = 0.9f;
    if (random_below(random, 4) == 0) s.min_p = 0.05f;
    return s;
}

/* Any mode that the engine can run, with any length that it takes. */
static inline void random_speculation(Random *random, const bee_engine_info *info, bee_request *request) {
    request->speculation = (bee_speculation)random_below(random, 4);
    if (request->speculation == BEE_SPECULATION_DFLASH && !info->has_drafter)
        request->speculation = BEE_SPECULATION_AUTO;
    const bool copies = request->speculation == BEE_SPECULATION_COPY || !info->has_drafter;
    const int longest = copies ? BEE_MAX_BLOCK - 1 : info->block_size - 1;
    request->draft_length = random_below(random, 2) ? -1 : 1 + random_below(random, longest);
}

/* Drafts cost next to nothing, or so much that they never pay. */
static inline void set_costs(bee_engine *engine, bool cheap) {
    for (int i = 0; i < COST_POINTS; i++) engine->costs.pass[i] = cheap ? 1 + 1e-6 * i : 1 + 1e6 * i;
    for (int k = 1; k < BEE_MAX_BLOCK; k++) engine->draft_costs[SOURCE_DFLASH].draft[k] = 1e-3;
    pass_costs_complete(&engine->costs);
    draft_costs_complete(&engine->draft_costs[SOURCE_DFLASH], &engine->costs, 0);
}

/* A call that fails, with a message that contains `part`. */
#define EXPECT(call, expected, part)           \
    do {                                       \
        bee_error error = {BEE_OK, ""};        \
        CHECK_EQ((call), (expected));          \
        CHECK_EQ(error.status, (expected));    \
        CHECK_CONTAINS(error.message, (part)); \
    } while (0)

#endif
