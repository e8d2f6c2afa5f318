/* Tests of where drafts come from in a session: copies, and the drafter's features that wait. */
#include "draft/dflash.h"
#include "engine_exercise.h"

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

int main(void) {
    test_copies();
    test_copies_go_on();
    test_waiting_features();
    return check_report();
}
