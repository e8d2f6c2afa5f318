/* Tests of opening engines: what is refused, costs that are known, what an engine says of itself. */
#include "engine_exercise.h"

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
    test_bad_engines();
    test_known_costs();
    test_description();
    return check_report();
}
