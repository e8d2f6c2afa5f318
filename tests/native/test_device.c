/* What a card may lack, and what becomes of engines when it fails. Needs the emulation (BEE_CUDA_LIBRARY), which plays
 * every kind of card; without it only the library's absence and progress on the CPU are tested. */
#include "engine/measure.h"
#include "engine_exercise.h"
#include "model/memory_plan.h"

#include <sys/wait.h>
#include <unistd.h>

static const TinyTarget target = {.n_vocab = 97, .n_layer = 2, .n_embd = 64, .n_ctx = 256, .seed = 1, .sharpness = 3};
static const TinyDrafter drafter = {.block_size = 8, .seed = 2};

static void play(const char *name, const char *value) {
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

static void check_refused(const char *part) {
    bee_device_info info;
    bee_error error = {BEE_OK, ""};
    CHECK_EQ(bee_device_describe(BEE_DEVICE_CUDA, &info, &error), BEE_ERROR_DEVICE);
    CHECK_CONTAINS(error.message, part);
    TinyFile file = tiny_target(&target);
    CHECK(!bee_engine_open(file.path, NULL, &(bee_engine_params){.device = BEE_DEVICE_CUDA, .n_threads = 1}, &error));
    CHECK_EQ(error.status, BEE_ERROR_DEVICE);
    CHECK_CONTAINS(error.message, part);
    /* Where there is no card, AUTO is the CPU and has nothing to say. */
    bee_engine *engine =
        bee_engine_open(file.path, NULL, &(bee_engine_params){.device = BEE_DEVICE_AUTO, .n_threads = 1}, &error);
    bee_engine_info engine_info;
    if (CHECK(engine != NULL)) {
        bee_engine_describe(engine, &engine_info);
        CHECK_EQ(engine_info.device, BEE_DEVICE_CPU);
        CHECK_TEXT(engine_info.device_note, "");
        CHECK_TEXT(engine_info.device_info.name, "CPU");
    }
    bee_engine_close(engine);
    tiny_file_close(&file);
}

static void test_no_library(void) {
    char *kept = getenv("BEE_CUDA_LIBRARY") ? strdup(getenv("BEE_CUDA_LIBRARY")) : NULL;
    play("BEE_CUDA_LIBRARY", "/nowhere/libbee_cuda.so");
    check_refused("the CUDA library is missing or cannot be loaded");
    play("BEE_CUDA_LIBRARY", kept);
    free(kept);
}

static void test_no_card(void) {
    play("BEE_EMULATED_DEVICES", "0");
    check_refused("no CUDA device can be used");
    play("CUDA_VISIBLE_DEVICES", "");
    check_refused("no CUDA device is visible: CUDA_VISIBLE_DEVICES is \"\"");
    play("CUDA_VISIBLE_DEVICES", NULL);
    play("BEE_EMULATED_DEVICES", "-1");
    play("BEE_EMULATED_DRIVER", "0");
    check_refused("no NVIDIA driver is installed");
    play("BEE_EMULATED_DRIVER", "11040");
    check_refused("the NVIDIA driver is too old: it knows CUDA 11.4, and 13.0 is needed");
    play("BEE_EMULATED_DRIVER", NULL);
    play("BEE_EMULATED_DEVICES", NULL);
    play("BEE_EMULATED_CAPABILITY", "7.5");
    check_refused("has compute capability 7.5, and 8.0 is needed");
    play("BEE_EMULATED_CAPABILITY", NULL);
}

static bee_engine *open_on(bee_device device, bee_error *error) {
    TinyFile file = tiny_target(&target), drafter_file = tiny_drafter(&target, &drafter);
    bee_engine *engine = bee_engine_open(file.path, drafter_file.path,
                                         &(bee_engine_params){.device = device, .n_threads = 1, .n_ctx = N_CTX}, error);
    tiny_file_close(&file);
    tiny_file_close(&drafter_file);
    return engine;
}

/* A card whose memory is taken: refused with the numbers, or left alone. */
static void test_small_card(void) {
    bee_error error = {BEE_OK, ""};
    play("BEE_EMULATED_MEMORY", "100000000");
    CHECK(!open_on(BEE_DEVICE_CUDA, &error));
    CHECK_EQ(error.status, BEE_ERROR_MEMORY);
    CHECK_CONTAINS(error.message, "emulated device has 0.10 of 0.10 GB free: target");
    CHECK_CONTAINS(error.message, "smaller context");
    bee_engine *engine = open_on(BEE_DEVICE_AUTO, &error);
    bee_engine_info info;
    if (CHECK(engine != NULL)) {
        bee_engine_describe(engine, &info);
        CHECK_EQ(info.device, BEE_DEVICE_CPU);
        CHECK_CONTAINS(info.device_note, "GB free");
    }
    bee_engine_close(engine);
    play("BEE_EMULATED_MEMORY", NULL);
}

static uint64_t planned_bytes(void) {
    TinyFile file = tiny_target(&target), drafter_file = tiny_drafter(&target, &drafter);
    bee_file *t = bee_file_open(file.path, NULL), *d = bee_file_open(drafter_file.path, NULL);
    bee_memory_plan plan = {0}, alone = {0}, longer = {0};
    CHECK_EQ(bee_plan_memory(t, d, BEE_DEVICE_CUDA, N_CTX, BEE_KV_F16, &plan, NULL), BEE_OK);
    CHECK_EQ(bee_plan_memory(t, NULL, BEE_DEVICE_CUDA, N_CTX, BEE_KV_F16, &alone, NULL), BEE_OK);
    CHECK_EQ(bee_plan_memory(t, d, BEE_DEVICE_CUDA, 256, BEE_KV_F16, &longer, NULL), BEE_OK);
    CHECK_EQ(plan.total_bytes, plan.target_bytes + plan.drafter_bytes + plan.cache_bytes + plan.work_bytes);
    CHECK(alone.drafter_bytes == 0 && alone.total_bytes < plan.total_bytes && alone.target_bytes == plan.target_bytes);
    CHECK(longer.cache_bytes > plan.cache_bytes && longer.target_bytes == plan.target_bytes);
    EXPECT(bee_plan_memory(t, d, BEE_DEVICE_CUDA, 257, BEE_KV_F16, &plan, &error), BEE_ERROR_ARGUMENT, "n_ctx is 257");
    EXPECT(bee_plan_memory(d, NULL, BEE_DEVICE_CUDA, 0, BEE_KV_F16, &alone, &error), BEE_ERROR_UNSUPPORTED,
           "is a DFlash drafter");
    EXPECT(bee_plan_memory(t, d, BEE_DEVICE_AUTO, 0, BEE_KV_F16, &alone, &error), BEE_ERROR_ARGUMENT, "a plan is for");
    bee_file_close(d);
    bee_file_close(t);
    tiny_file_close(&file);
    tiny_file_close(&drafter_file);
    return plan.total_bytes;
}

static const int32_t prompt[] = {5, 9, 2, 7};

static bee_request greedy_request(void) {
    return (bee_request){.prompt = prompt,
                         .n_prompt = 4,
                         .max_tokens = 20,
                         .speculation = BEE_SPECULATION_DFLASH,
                         .draft_length = -1,
                         .sampling = {.top_p = 1}};
}

/* What an engine takes lies within its plan; what it took is given back. */
static void test_plan(void) {
    const uint64_t planned = planned_bytes();
    bee_device_info before, during, after;
    CHECK_EQ(bee_device_describe(BEE_DEVICE_CUDA, &before, NULL), BEE_OK);
    bee_error error = {BEE_OK, ""};
    bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
    if (!CHECK(engine != NULL)) return;
    const bee_request request = greedy_request();
    generate_fresh(engine, &request);
    bee_session *session = open_session(engine, N_CTX);
    CHECK_EQ(bee_device_describe(BEE_DEVICE_CUDA, &during, NULL), BEE_OK);
    CHECK(before.free_bytes - during.free_bytes <= planned - bee_cuda_device.driver_bytes);
    /* What the backend counts is what the device gave, but for graphs; and it counts what is given back. */
    const uint64_t taken = bee_cuda_device.bytes_taken(engine->backend);
    CHECK(taken <= before.free_bytes - during.free_bytes && taken > 0);
    bee_session_close(session);
    CHECK(bee_cuda_device.bytes_taken(engine->backend) < taken);
    session = open_session(engine, N_CTX);
    CHECK_EQ(bee_cuda_device.bytes_taken(engine->backend), taken);
    bee_session_close(session);
    bee_engine_close(engine);
    CHECK_EQ(bee_device_describe(BEE_DEVICE_CUDA, &after, NULL), BEE_OK);
    CHECK_EQ(after.free_bytes, before.free_bytes);
}

/* A session too many is refused; those that are open go on as if nothing had been asked. */
static void test_full_card(void) {
    bee_error error = {BEE_OK, ""};
    bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
    if (!CHECK(engine != NULL)) return;
    const bee_request request = greedy_request();
    const Output expected = generate_fresh(engine, &request);
    bee_session *session = open_session(engine, N_CTX);
    bee_device_info info;
    bee_device_describe(BEE_DEVICE_CUDA, &info, NULL);
    char memory[32];
    snprintf(memory, sizeof memory, "%llu", (unsigned long long)(info.total_bytes - info.free_bytes + 4096));
    play("BEE_EMULATED_MEMORY", memory);
    CHECK(!bee_session_open(engine, 256, false, &error));
    CHECK_EQ(error.status, BEE_ERROR_MEMORY);
    const Output out = generate(engine, session, &request);
    CHECK(same_output(&out, &expected));
    play("BEE_EMULATED_MEMORY", NULL);
    bee_session_close(session);
    bee_engine_close(engine);
}

/* Cycles that are queued at once are measured and forgotten: the others, and generations, are as before. */
static void test_measured_cycles(void) {
    bee_error error = {BEE_OK, ""};
    const bee_request request = greedy_request();
    bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
    if (!CHECK(engine != NULL)) return;
    const Output expected = generate_fresh(engine, &request);
    float all[BEE_MAX_BLOCK];
    for (int i = 0; i < BEE_MAX_BLOCK; i++) all[i] = 1;
    for (int n_drafts = 0; n_drafts < 8; n_drafts += 7) {
        bee_cycle_cost cost;
        CHECK_EQ(bee_engine_measure_cycles(engine, n_drafts, 3, 4, all, &cost, &error), BEE_OK);
        CHECK(cost.device_seconds > 0 && cost.seconds > 0);
        CHECK(cost.tokens == n_drafts + 1);
    }
    const Output out = generate_fresh(engine, &request);
    CHECK(same_output(&out, &expected));
    bee_engine_close(engine);
}

/* States cannot go back: where they stood when the measurement began, they stand behind it. */
static void test_measured_states(void) {
    static const TinyTarget remembering = {
        .n_vocab = 97, .n_layer = 2, .n_embd = 64, .n_ctx = 256, .seed = 3, .sharpness = 3, .remembers = true};
    TinyFile file = tiny_target(&remembering);
    const bee_engine_params params = {.device = BEE_DEVICE_CUDA, .n_threads = 1, .n_ctx = N_CTX};
    bee_error error = {BEE_OK, ""};
    bee_engine *engine = bee_engine_open(file.path, NULL, &params, &error);
    tiny_file_close(&file);
    if (!CHECK(engine != NULL)) return;
    bee_request request = greedy_request();
    request.speculation = BEE_SPECULATION_OFF;
    request.sampling = (bee_sampling){.temperature = 3, .top_p = 1, .seed = 5};
    const Output expected = generate_fresh(engine, &request);
    bee_session *session = open_session(engine, N_CTX);
    Output out = {.n = 0};
    CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
    while (!out.finish) {
        bee_step step = {.finish = BEE_FINISH_CONSTRAINT}; /* in case of an error */
        CHECK_EQ(bee_engine_step(engine, &session, 1, &step, NULL), BEE_OK);
        take_step(&step, &out);
        if (out.n == 4) CHECK(time_queued_cycles(session, 0, 3) > 0);
    }
    CHECK(same_output(&out, &expected));
    bee_session_close(session);
    bee_engine_close(engine);
}

/* Where there is memory for a single graph, every new one takes the place of the others. */
static void test_room_for_one_graph(void) {
    bee_error error = {BEE_OK, ""};
    const bee_request request = greedy_request();
    bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
    if (!CHECK(engine != NULL)) return;
    const Output expected = generate_fresh(engine, &request);
    bee_engine_close(engine);
    play("BEE_EMULATED_GRAPHS", "1");
    engine = open_on(BEE_DEVICE_CUDA, &error);
    if (CHECK(engine != NULL)) {
        const Output out = generate_fresh(engine, &request);
        CHECK(same_output(&out, &expected));
    }
    bee_engine_close(engine);
    play("BEE_EMULATED_GRAPHS", NULL);
}

typedef struct Told {
    int calls, most; /* gives up after `most` */
    uint64_t done, total;
    bool in_order;
} Told;

static bool tell(void *user, uint64_t done, uint64_t total) {
    Told *t = user;
    t->in_order = t->in_order && done >= t->done && done <= total && (!t->calls || total == t->total);
    t->done = done;
    t->total = total;
    return ++t->calls < t->most;
}

static void test_progress(bee_device device) {
    TinyFile target_file = tiny_target(&target), drafter_file = tiny_drafter(&target, &drafter);
    for (int most = 1; most < 100; most *= 3) {
        Told told = {.most = most, .in_order = true};
        const bee_engine_params params = {.device = device, .n_threads = 1, .progress = tell, .progress_user = &told};
        bee_error error = {BEE_OK, ""};
        bee_engine *engine = bee_engine_open(target_file.path, drafter_file.path, &params, &error);
        CHECK(told.in_order);
        if (engine) {
            bee_engine_info info;
            bee_engine_describe(engine, &info);
            CHECK(told.calls < most && told.calls > 20);
            CHECK(told.done == info.weight_bytes && told.total == info.weight_bytes);
        } else {
            CHECK_EQ(error.status, BEE_ERROR_CANCELLED);
            CHECK_CONTAINS(error.message, "loading was cancelled");
            CHECK_EQ(told.calls, most);
        }
        CHECK((engine != NULL) == (most > 20));
        bee_engine_close(engine);
    }
    tiny_file_close(&target_file);
    tiny_file_close(&drafter_file);
}

/* A kernel fails in the middle of an answer: the step says so, and every step after it; a CPU engine works. */
static void check_failing_card(bee_speculation speculation) {
    bee_request request = greedy_request();
    request.speculation = speculation;
    request.max_tokens = 60; /* far enough from the end to queue cycles ahead */
    for (int after = 1; after < 12; after++) {
        bee_error error = {BEE_OK, ""};
        bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
        if (!CHECK(engine != NULL)) return;
        bee_session *session = open_session(engine, N_CTX);
        engine->short_cycle = INFINITY;
        set_costs(engine, true);
        CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
        char count[16];
        snprintf(count, sizeof count, "%d", after);
        play("BEE_EMULATED_FAILURE", count);
        bee_step step = {.finish = BEE_FINISH_NONE};
        bee_status status = BEE_OK;
        for (int i = 0; i < 100 && !status && !step.finish; i++)
            status = bee_engine_step(engine, &session, 1, &step, &error);
        if (status) {
            CHECK_EQ(status, BEE_ERROR_DEVICE);
            CHECK_CONTAINS(error.message, "this engine is unusable");
            EXPECT(bee_engine_step(engine, &session, 1, &step, &error), BEE_ERROR_DEVICE, "this engine is unusable");
        }
        CHECK(status || after > 4);
        bee_session_close(session);
        bee_engine_close(engine);
        play("BEE_EMULATED_FAILURE", NULL);
    }
}

static void test_failing_card(void) {
    check_failing_card(BEE_SPECULATION_DFLASH);
    check_failing_card(BEE_SPECULATION_AUTO);
    const bee_request request = greedy_request();
    bee_error error = {BEE_OK, ""};
    bee_engine *cpu = open_on(BEE_DEVICE_CPU, &error);
    if (CHECK(cpu != NULL)) CHECK(generate_fresh(cpu, &request).n > 0);
    bee_engine_close(cpu);
}

/* Launches that an engine makes until it is open, or has answered. */
static void play_number(const char *name, int number) {
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    play(name, text);
}

/* The n-th launch fails while the engine opens: that is what the error says, whatever could not be made because of it,
 * and what "auto" says when it takes the CPU. */
static void test_failed_launch(void) {
    static const char cause[] =
        "no kernel image is available for execution on the device (cudaErrorNoKernelImageForDevice)";
    play("BEE_CUDA_OVERLAP", "0"); /* else the pass would be recorded once more, without it */
    int n = 1, packing = 0, recording = 0;
    for (bool opened = false; !opened && n < 1000; n += n < 36 ? 5 : 61) {
        bee_error error = {BEE_OK, ""};
        play_number("BEE_EMULATED_FAILED_LAUNCH", n);
        bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
        play("BEE_EMULATED_FAILED_LAUNCH", NULL);
        opened = engine != NULL;
        bee_engine_close(engine);
        if (opened) break;
        CHECK_EQ(error.status, BEE_ERROR_DEVICE);
        CHECK_CONTAINS(error.message, cause);
        packing += strstr(error.message, "packed weights") != NULL;
        recording += strstr(error.message, "queued a kernel") != NULL;
    }
    CHECK(n > 36 && packing > 4 && recording > 0); /* all weights are packed, then passes are measured */
    for (int after = 1; after < 30; after += 14) { /* while weights are packed */
        bee_error error = {BEE_OK, ""};
        play_number("BEE_EMULATED_FAILED_LAUNCH", after);
        bee_engine *engine = open_on(BEE_DEVICE_AUTO, &error);
        play("BEE_EMULATED_FAILED_LAUNCH", NULL);
        if (!CHECK(engine != NULL)) continue;
        bee_engine_info info;
        bee_engine_describe(engine, &info);
        CHECK_EQ(info.device, BEE_DEVICE_CPU);
        CHECK_CONTAINS(info.device_note, cause);
        bee_engine_close(engine);
    }
    play("BEE_CUDA_OVERLAP", NULL);
}

/* The device fails while weights wait for it: nobody takes that for want of memory. */
static void test_failure_while_loading(void) {
    for (int after = 1; after < 60; after += after < 8 ? 1 : 9) {
        bee_error error = {BEE_OK, ""};
        play_number("BEE_EMULATED_FAILURE", after);
        bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
        play("BEE_EMULATED_FAILURE", NULL);
        if (!engine) {
            CHECK_EQ(error.status, BEE_ERROR_DEVICE);
            CHECK_CONTAINS(error.message, "an illegal memory access was encountered (cudaErrorIllegalAddress)");
        }
        CHECK(!engine || after > 8);
        bee_engine_close(engine);
    }
}

/* A session for which there is a device no more. */
static void test_session_on_failed_card(void) {
    bee_error error = {BEE_OK, ""};
    bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
    if (!CHECK(engine != NULL)) return;
    const bee_request request = greedy_request();
    bee_session *session = open_session(engine, N_CTX);
    CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
    play("BEE_EMULATED_FAILURE", "1");
    bee_step step = {.finish = BEE_FINISH_NONE};
    bee_status status = BEE_OK;
    for (int i = 0; i < 100 && !status && !step.finish; i++)
        status = bee_engine_step(engine, &session, 1, &step, &error);
    CHECK_EQ(status, BEE_ERROR_DEVICE);
    CHECK(!bee_session_open(engine, N_CTX, false, &error));
    CHECK_EQ(error.status, BEE_ERROR_DEVICE);
    CHECK_CONTAINS(error.message, "cudaErrorIllegalAddress");
    bee_session_close(session);
    bee_engine_close(engine);
    play("BEE_EMULATED_FAILURE", NULL);
}

/* A driver that cannot record kernels that overlap: they are recorded without, and the engine says so. */
static void test_refused_overlap(void) {
    const bee_request request = greedy_request();
    bee_engine_info info;
    Output expected = {.n = 0};
    for (int where = 0; where <= 3; where++) { /* 0: nowhere */
        bee_error error = {BEE_OK, ""};
        play_number("BEE_EMULATED_REFUSED_OVERLAP", where);
        bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
        if (CHECK(engine != NULL)) {
            const Output out = generate_fresh(engine, &request);
            if (!where) expected = out;
            CHECK(same_output(&out, &expected));
            bee_engine_describe(engine, &info);
            CHECK_EQ(info.device, BEE_DEVICE_CUDA);
            if (where)
                CHECK_CONTAINS(info.device_note, "kernels do not overlap: the device could not record them so: ");
            else
                CHECK_TEXT(info.device_note, "");
            if (where) CHECK_CONTAINS(info.device_note, where == 2 ? "CaptureInvalidated" : "cudaErrorNotSupported");
        }
        bee_engine_close(engine);
        play("BEE_EMULATED_REFUSED_OVERLAP", NULL);
    }
}

/* All kernels ask for the same split of shared memory and cache; the emulation refuses one that does not. */
static void test_carveout(void) {
    const bee_request request = greedy_request();
    Output outputs[2];
    for (int with = 0; with < 2; with++) {
        bee_error error = {BEE_OK, ""};
        play("BEE_CUDA_CARVEOUT", with ? "1" : "0");
        bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
        if (CHECK(engine != NULL)) outputs[with] = generate_fresh(engine, &request);
        bee_engine_close(engine);
    }
    CHECK(same_output(&outputs[0], &outputs[1]));
    play("BEE_CUDA_CARVEOUT", NULL);
}

/* Pieces of a megabyte and more have pages of their own, in the plan as on the card. */
static void test_pages(void) {
    const Device *card = &bee_cuda_device;
    CHECK_EQ(card->buffer_bytes(1), 256);
    CHECK_EQ(card->buffer_bytes((1 << 20) - 1), 1 << 20);
    CHECK_EQ(card->buffer_bytes(1 << 20), 2 << 20);
    CHECK_EQ(card->buffer_bytes((2 << 20) + 1), 4 << 20);
    CHECK_EQ(card->matrix_bytes(TYPE_Q8_0, 1024, 1024), 2 << 20); /* 1.06 MiB */
    bee_error error = {BEE_OK, ""};
    bee_device_info before, during;
    bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
    if (!CHECK(engine != NULL)) return;
    bee_device_describe(BEE_DEVICE_CUDA, &before, NULL);
    const uint64_t taken = card->bytes_taken(engine->backend);
    float *buffer = engine->ops->buffer_new(engine->backend, (1 << 18) + 1);
    bee_device_describe(BEE_DEVICE_CUDA, &during, NULL);
    CHECK_EQ(before.free_bytes - during.free_bytes, 2 << 20);
    CHECK_EQ(card->bytes_taken(engine->backend), taken + (2 << 20));
    engine->ops->buffer_free(engine->backend, buffer);
    CHECK_EQ(card->bytes_taken(engine->backend), taken);
    bee_engine_close(engine);
}

/* Before anything else has used the card: where "auto" takes the CPU because the model does not fit, nothing is left on
 * the card; where it takes the card, what the driver took is not asked for again. */
static void test_context(void) {
    bee_error error = {BEE_OK, ""};
    bee_device_info before, after;
    play("BEE_EMULATED_CONTEXT", "300000000");
    play("BEE_EMULATED_MEMORY", "100000000");
    CHECK_EQ(bee_device_describe(BEE_DEVICE_CUDA, &before, NULL), BEE_OK);
    bee_engine *engine = open_on(BEE_DEVICE_AUTO, &error);
    if (CHECK(engine != NULL)) CHECK_EQ(engine->device->kind, BEE_DEVICE_CPU);
    CHECK_EQ(bee_device_describe(BEE_DEVICE_CUDA, &after, NULL), BEE_OK);
    CHECK_EQ(before.free_bytes, after.free_bytes);
    bee_engine_close(engine);
    /* Of 512 MB that the plan expects the driver to take it takes 300, and some may come. */
    char memory[32];
    snprintf(memory, sizeof memory, "%llu",
             (unsigned long long)(planned_bytes() - bee_cuda_device.driver_bytes + 300000000 +
                                  bee_cuda_device.driver_bytes_to_come));
    play("BEE_EMULATED_MEMORY", memory);
    engine = open_on(BEE_DEVICE_CUDA, &error);
    CHECK(engine != NULL);
    bee_engine_close(engine);
    /* A little less, and that is said before anything is loaded. */
    snprintf(memory, sizeof memory, "%llu", strtoull(memory, NULL, 10) - 1000000);
    play("BEE_EMULATED_MEMORY", memory);
    CHECK(!open_on(BEE_DEVICE_CUDA, &error));
    CHECK_CONTAINS(error.message, "GB free: target");
    play("BEE_EMULATED_MEMORY", NULL);
    play("BEE_EMULATED_CONTEXT", NULL);
}

/* A process that was forked from one that used the card: both a new engine and an old one name the fork. */
static void test_fork(void) {
    bee_error error = {BEE_OK, ""};
    bee_engine *engine = open_on(BEE_DEVICE_CUDA, &error);
    if (!CHECK(engine != NULL)) return;
    const bee_request request = greedy_request();
    bee_session *session = open_session(engine, N_CTX);
    CHECK_EQ(bee_session_begin(session, &request, NULL), BEE_OK);
    fflush(stdout);
    const pid_t child = fork();
    if (!child) {
        bee_device_info info;
        bee_step step;
        bee_error first = {BEE_OK, ""}, second = {BEE_OK, ""};
        const bool named = bee_device_describe(BEE_DEVICE_CUDA, &info, &first) == BEE_ERROR_DEVICE &&
                           strstr(first.message, "forked from one that used the card") &&
                           bee_engine_step(engine, &session, 1, &step, &second) == BEE_ERROR_DEVICE &&
                           strstr(second.message, "forked from the one that opened the engine");
        _exit(named ? 0 : 1);
    }
    int ended = -1;
    CHECK_EQ(waitpid(child, &ended, 0), child);
    CHECK_EQ(ended, 0);
    CHECK(finish_request(engine, session, 4).n > 0); /* the parent goes on */
    bee_session_close(session);
    bee_engine_close(engine);
}

int main(void) {
    test_no_library();
    test_progress(BEE_DEVICE_CPU);
    if (getenv("BEE_CUDA_LIBRARY")) {
        test_no_card();
        test_small_card();
        test_context();
        test_plan();
        test_pages();
        test_full_card();
        test_room_for_one_graph();
        test_measured_cycles();
        test_measured_states();
        test_progress(BEE_DEVICE_CUDA);
        test_progress(BEE_DEVICE_AUTO);
        test_failing_card();
        test_failed_launch();
        test_failure_while_loading();
        test_session_on_failed_card();
        test_refused_overlap();
        test_carveout();
        test_fork();
    }
    return check_report();
}
