/* Tests of cycles that a card runs before those before them are known; on the CPU there are none, and the same holds.
 */
#include "draft/dflash.h"
#include "engine/device_cycle.h"
#include "engine_exercise.h"

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

int main(void) {
    test_ahead();
    return check_report();
}
