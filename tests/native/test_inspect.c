/* Tests of logits, features and drafts as tests and training see them: the same numbers whatever the pass. */
#include "engine_exercise.h"

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

int main(void) {
    test_passes();
    test_taps();
    test_kept_features();
    return check_report();
}
