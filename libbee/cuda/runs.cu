/* Runs as graphs, and cycles. What differs from one run to the next lies in memory that the graph's kernels read. */
#include "backend.h"

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>

/* ---- runs --------------------------------------------------------------------------------------- */

static bool truncates(const bee_sampling *s) {
    return s->temperature > 0 && (s->top_k > 0 || s->top_p < 1 || s->min_p > 0);
}

static DeviceCache device_cache(const Cache *cache) {
    DeviceCache d = {};
    for (int r = 0; r < CACHE_REGIONS; r++) {
        d.keys[r] = cache->keys[r];
        d.values[r] = cache->values[r];
        d.n_positions[r] = cache->n_positions[r];
        d.position_bytes[r] = cache->position_bytes[r];
    }
    d.n_ctx = cache->n_ctx;
    d.states = cache->states;
    d.kept = cache->kept;
    return d;
}

static DeviceRow device_row(const Row *row) {
    return {device_cache(row->cache), row->token, row->position, row->n_visible};
}

/* Rows from `first` on that have its cache. */
static int run_length(const RunInput *input, int first) {
    int n = 1;
    while (first + n < input->n_rows && input->rows[first + n].cache == input->rows[first].cache) n++;
    return n;
}

/* Whether the model whose pass it is has recurrent layers. */
static bool recurs(const RunInput *input) { return input->n_rows && input->rows->cache->n_states; }

static int count_runs(const RunInput *input) {
    int n_runs = 0;
    for (int i = 0; recurs(input) && i < input->n_rows; i += run_length(input, i)) n_runs++;
    return n_runs;
}

/* The runs of a pass, and where their layers stand behind it, all of them, as a pass is never left between two: the
 * last rows are kept, those before are in the states. */
static void take_runs(const RunInput *input, DeviceRun *runs) {
    for (int i = 0, n; recurs(input) && i < input->n_rows; i += n) {
        const Row *row = &input->rows[i];
        const DeviceCache cache = device_cache(row->cache);
        n = run_length(input, i);
        *runs++ = device_run(&cache, row->cache->ends[0], i, n, row->position);
        const int kept = n < CACHE_KEPT_ROWS ? n : CACHE_KEPT_ROWS;
        cache_set_ends(row->cache, {row->position + n - kept, kept});
    }
}

/* Edits and masks of all choices go where the choices then point. */
static bool upload_changes(Backend *b, const RunInput *input, DeviceChoice *choices) {
    size_t n_edits = 0;
    for (int i = 0; i < input->n_choices; i++) n_edits += (size_t)input->choices[i].n_edits;
    const size_t words = (size_t)input->mask_words;
    if (!reserve_changes(b, &b->edits, n_edits * sizeof(DeviceEdit)) ||
        !reserve_changes(b, &b->masks, (size_t)input->n_choices * words * sizeof(uint32_t)))
        return false;
    DeviceEdit *edits = (DeviceEdit *)b->edits.memory;
    for (int i = 0; i < input->n_choices; i++) {
        const Choice *c = &input->choices[i];
        uint32_t *mask = (uint32_t *)b->masks.memory + (size_t)i * words;
        static_assert(sizeof(DeviceEdit) == sizeof(LogitEdit), "edits travel as they are");
        if (c->n_edits)
            succeeded(
                b,
                cudaMemcpyAsync(edits, c->edits, (size_t)c->n_edits * sizeof *edits, cudaMemcpyHostToDevice, b->stream),
                "took biases");
        if (c->mask)
            succeeded(b, cudaMemcpyAsync(mask, c->mask, words * sizeof *mask, cudaMemcpyHostToDevice, b->stream),
                      "took a mask");
        choices[i].edits = c->n_edits ? edits : NULL;
        choices[i].n_edits = c->n_edits;
        choices[i].mask = c->mask ? mask : NULL;
        edits += c->n_edits;
    }
    return true;
}

/* Chunks that the rows see at most, rounded up so that a growing text changes its graphs rarely. */
static int chunks_seen(const RunInput *input) {
    int most = 1;
    for (int i = 0; i < input->n_rows; i++)
        if (input->rows[i].n_visible > most) most = input->rows[i].n_visible;
    return chunk_bucket(most);
}

static GraphKey key_of(void (*body)(Worker *, void *), const RunInput *input) {
    GraphKey key = {};
    key.body = body;
    key.model = input->model;
    key.variant = input->variant;
    key.n_rows = input->n_rows;
    key.n_runs = count_runs(input);
    key.n_index = input->n_index;
    key.n_choices = input->n_choices;
    key.n_chunks = chunks_seen(input);
    for (int i = 0; i < input->n_choices; i++) {
        const Choice *c = &input->choices[i];
        key.truncates = key.truncates || truncates(c->sampling);
        key.edits = key.edits || c->n_edits || c->mask || c->report;
        key.reports = key.reports || c->report;
    }
    return key;
}

static bool same_key(const GraphKey *a, const GraphKey *b) {
    return a->body == b->body && a->model == b->model && a->cycle == b->cycle && a->variant == b->variant &&
           a->n_rows == b->n_rows && a->n_runs == b->n_runs && a->n_index == b->n_index &&
           a->n_choices == b->n_choices && a->n_chunks == b->n_chunks && a->truncates == b->truncates &&
           a->edits == b->edits && a->reports == b->reports;
}

void drop_graphs(Backend *b) {
    for (int i = 0; i < MOST_GRAPHS; i++) {
        if (b->graphs[i].graph) cudaGraphExecDestroy(b->graphs[i].graph);
        b->graphs[i].graph = NULL;
    }
}

/* An unused place, or the one of the graph that was not used for longest. */
static Graph *place_for_graph(Backend *b) {
    Graph *oldest = &b->graphs[0];
    for (int i = 0; i < MOST_GRAPHS; i++) {
        if (!b->graphs[i].graph) return &b->graphs[i];
        if (b->graphs[i].last_used < oldest->last_used) oldest = &b->graphs[i];
    }
    cudaGraphExecDestroy(oldest->graph);
    oldest->graph = NULL;
    return oldest;
}

/* Graphs take memory of the device; where there is no more, the others are given up for the new one. */
static cudaError_t instantiate(Backend *b, cudaGraph_t graph, cudaGraphExec_t *out) {
    cudaError_t error = cudaGraphInstantiate(out, graph, 0);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        wait_for_stream(b);
        drop_graphs(b);
        error = cudaGraphInstantiate(out, graph, 0);
    }
    return error;
}

/* What failed, if anything did; `what` completes "the device failed while it". */
static cudaError_t record(Backend *b, Worker *worker, void *argument, cudaGraphExec_t *out, const char **what) {
    *what = "recorded a pass";
    /* Relaxed: a kernel's code may be loaded while it is first recorded, which other modes could forbid. */
    cudaError_t error = cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeRelaxed);
    if (error != cudaSuccess) return error;
    launch_overlap = {b->overlaps, false};
    worker->key.body(worker, argument);
    launch_overlap = {};
    /* A kernel that could not be queued would be missing from the graph, without a word. */
    const cudaError_t queued = cudaGetLastError();
    cudaGraph_t graph = NULL;
    error = cudaStreamEndCapture(b->stream, &graph);
    if (queued != cudaSuccess) {
        *what = "queued a kernel";
        error = queued;
    }
    if (error == cudaSuccess) error = instantiate(b, graph, out);
    if (graph) cudaGraphDestroy(graph);
    return error;
}

/* From now on this engine's kernels wait for each other. */
static void give_up_overlap(Backend *b, cudaError_t error) {
    cudaGetLastError();
    b->overlaps = false;
    snprintf(b->note, sizeof b->note, "kernels do not overlap: the device could not record them so: %s (%s)",
             cudaGetErrorString(error), cudaGetErrorName(error));
}

/* What fails with kernels that overlap may work without (seen on cards of the RTX 50 series, the cause is unknown), and
 * is recorded once more. */
static Graph *capture(Backend *b, Worker *worker, void *argument) {
    Graph *place = place_for_graph(b);
    const char *what;
    cudaError_t error = record(b, worker, argument, &place->graph, &what);
    if (error != cudaSuccess && error != cudaErrorMemoryAllocation && b->overlaps) {
        give_up_overlap(b, error);
        error = record(b, worker, argument, &place->graph, &what);
    }
    if (!succeeded(b, error, what)) place->graph = NULL;
    place->key = worker->key;
    return place->graph ? place : NULL;
}

static void launch_graph(Backend *b, Worker *worker, void *argument) {
    if (b->failure) return; /* a recording would begin that nobody ends */
    Graph *graph = NULL;
    for (int i = 0; i < MOST_GRAPHS && !graph; i++)
        if (b->graphs[i].graph && same_key(&b->graphs[i].key, &worker->key)) graph = &b->graphs[i];
    if (!graph) graph = capture(b, worker, argument);
    if (!graph) return;
    graph->last_used = ++b->n_runs;
    succeeded(b, cudaGraphLaunch(graph->graph, b->stream), "began a pass");
}

static Slot *next_slot(Backend *b) {
    Slot *slot = &b->slots[b->next_slot];
    b->next_slot = (b->next_slot + 1) % N_SLOTS;
    succeeded(b, cudaEventSynchronize(slot->uploaded), "took the rows of a pass");
    return slot;
}

static void upload_input(Backend *b, const RunInput *input) {
    Slot *slot = next_slot(b);
    for (int i = 0; i < input->n_rows; i++) slot->input->rows[i] = device_row(&input->rows[i]);
    take_runs(input, slot->input->runs);
    if (input->n_index) memcpy(slot->input->index, input->index, (size_t)input->n_index * sizeof *input->index);
    for (int i = 0; i < input->n_choices; i++) {
        const Choice *c = &input->choices[i];
        slot->input->choices[i] = {*c->sampling, c->position, c->logits_row, NULL, NULL, 0, c->report ? c->n_top : -1};
    }
    if (!upload_changes(b, input, slot->input->choices)) return;
    succeeded(b, cudaMemcpyAsync(b->input, slot->input, sizeof *b->input, cudaMemcpyHostToDevice, b->stream),
              "took the rows of a pass");
    succeeded(b, cudaEventRecord(slot->uploaded, b->stream), "took the rows of a pass");
}

static void fill_report(const DeviceReport *from, bee_logprobs *out) {
    *out = {};
    out->logprob = (float)(from->chosen_logit - from->log_sum);
    out->n_top = from->n_top;
    for (int i = 0; i < from->n_top; i++) {
        out->top_tokens[i] = from->top_tokens[i];
        out->top_logprobs[i] = (float)(from->top_logits[i] - from->log_sum);
    }
}

static void download_choices(Backend *b, const GraphKey *key, Choice *choices) {
    const size_t bytes = key->reports ? sizeof *b->output : offsetof(OutputBlock, reports);
    if (succeeded(b, cudaMemcpyAsync(b->read, b->output, bytes, cudaMemcpyDeviceToHost, b->stream), "gave tokens"))
        wait_for_stream(b);
    for (int i = 0; i < key->n_choices; i++) {
        choices[i].token = b->failure ? -1 : b->read->tokens[i];
        if (choices[i].report && !b->failure) fill_report(&b->read->reports[i], choices[i].report);
    }
}

static bool ready(Backend *b) {
    if (b->failure || !succeeded(b, cudaSetDevice(0), "began a pass")) return false;
    return reserve_needs(b) || succeeded(b, cudaErrorMemoryAllocation, "made room for a pass");
}

void run(Backend *b, void (*body)(Worker *, void *), void *argument, const RunInput *input) {
    Worker worker = {b, input, key_of(body, input), NULL, b->output->tokens};
    if (ready(b)) {
        upload_input(b, input);
        launch_graph(b, &worker, argument);
    }
    if (input->n_choices) download_choices(b, &worker.key, input->choices);
}

/* ---- cycles ------------------------------------------------------------------------------------- */

void cycle_free(Backend *b, DeviceCycle *cycle) {
    if (!cycle) return;
    wait_for_stream(b);
    for (int i = 0; i < MOST_GRAPHS; i++) {
        Graph *graph = &b->graphs[i];
        if (!graph->graph || graph->key.cycle != cycle) continue;
        cudaGraphExecDestroy(graph->graph);
        graph->graph = NULL;
    }
    give_back(b, cycle->session);
    if (cycle->staged) cudaFreeHost(cycle->staged);
    if (cycle->results) cudaFreeHost(cycle->results);
    free(cycle);
}

DeviceCycle *cycle_new(Backend *b) {
    DeviceCycle *cycle = (DeviceCycle *)calloc(1, sizeof *cycle);
    if (!cycle) return NULL;
    cycle->session = (DeviceSession *)take_zeroed(b, sizeof *cycle->session);
    cycle->staged = (DeviceSession *)take_pinned(b, sizeof *cycle->staged);
    cycle->results = (CycleResult *)take_pinned(b, 2 * sizeof *cycle->results);
    if (cycle->session && cycle->staged && cycle->results) {
        memset(cycle->results, 0, 2 * sizeof *cycle->results);
        return cycle;
    }
    cycle_free(b, cycle);
    return NULL;
}

/* Cycles that nobody reads any more are waited for first: they write the state, too. */
void cycle_set(Backend *b, DeviceCycle *cycle, const CycleState *state) {
    wait_for_stream(b);
    if (cycle->n_read != cycle->n_queued) cache_set_ends(cycle->cache, cycle->results[cycle->n_queued % 2].end);
    cycle->n_read = cycle->n_queued;
    cycle->cache = state->cache;
    cycle->position = state->n_cached;
    DeviceSession *s = cycle->staged;
    *s = {};
    s->sampling = state->sampling;
    s->last_token = state->last_token;
    s->n_cached = state->n_cached;
    s->output_left = state->output_left;
    s->context_left = state->context_left;
    s->n_stop_tokens = state->n_stop_tokens;
    memcpy(s->stop_tokens, state->stop_tokens, (size_t)state->n_stop_tokens * sizeof *state->stop_tokens);
    s->mask_token = state->mask_token;
    s->causal = state->causal;
    s->cache = device_cache(state->cache);
    if (state->cache->n_states) s->end = state->cache->ends[0];
    if (state->draft_cache) s->draft_cache = device_cache(state->draft_cache);
    s->has_profile = state->profile != NULL;
    if (state->profile) memcpy(s->profile, state->profile, sizeof s->profile);
    s->cycles = cycle->n_queued;
    succeeded(b, cudaMemcpyAsync(cycle->session, s, sizeof *s, cudaMemcpyHostToDevice, b->stream), "began a request");
}

void cycle_draft_rows(Worker *w) {
    Backend *b = w->backend;
    queue_draft_rows(b->stream, w->cycle->session, w->cycle->n_drafts, b->input->rows, b->input->choices);
    w->tokens = b->drafts;
}

void cycle_verify_rows(Worker *w) {
    Backend *b = w->backend;
    queue_verify_rows(b->stream, w->cycle->session, w->cycle->n_drafts, b->drafts, b->input->rows, b->input->choices,
                      b->input->runs);
    w->tokens = b->output->tokens;
}

void cycle_accept(Worker *w) {
    Backend *b = w->backend;
    queue_accept(b->stream, w->cycle->session, w->cycle->n_drafts, b->drafts, b->output->tokens, w->cycle->results,
                 w->cycle->n_drafts ? b->input->rows : NULL);
}

/* The numbers 0, 1, 2 ...: which rows of a buffer the passes of a cycle take. */
static void upload_index(Backend *b) {
    Slot *slot = next_slot(b);
    for (int i = 0; i < BEE_MAX_PASS_ROWS; i++) slot->input->index[i] = i;
    succeeded(b,
              cudaMemcpyAsync(b->input->index, slot->input->index, sizeof slot->input->index, cudaMemcpyHostToDevice,
                              b->stream),
              "began a cycle");
    succeeded(b, cudaEventRecord(slot->uploaded, b->stream), "began a cycle");
}

void cycle_queue(Backend *b, DeviceCycle *cycle, void (*body)(Worker *, void *), void *argument, const RunInput *input,
                 int n_drafts) {
    if (!ready(b)) return;
    cycle->n_drafts = n_drafts;
    Worker worker = {b, input, {}, cycle, b->output->tokens};
    worker.key.body = body;
    worker.key.model = input->model;
    worker.key.cycle = cycle;
    worker.key.n_rows = n_drafts + 1;
    worker.key.n_runs = cycle->cache->n_states ? 1 : 0;
    worker.key.truncates = truncates(&cycle->staged->sampling);
    worker.key.n_chunks = chunk_bucket(cycle->position + n_drafts + 1);
    upload_index(b);
    launch_graph(b, &worker, argument);
    cycle->position += n_drafts + 1;
    cycle->n_queued++;
}

int cycle_queued(const DeviceCycle *cycle) { return (int)(cycle->n_queued - cycle->n_read); }

/* Looks at the number that the device writes last; asks for errors now and then. */
static bool wait_for_cycle(Backend *b, const CycleResult *result, uint32_t cycle) {
    for (unsigned looks = 1; result->cycle != cycle; looks++) {
        if (looks % 4096) continue;
        const cudaError_t error = cudaStreamQuery(b->stream);
        if (error == cudaErrorNotReady) {
            cudaGetLastError(); /* it is no failure */
            continue;
        }
        if (!succeeded(b, error, "ran a cycle")) return false;
        if (error == cudaSuccess && result->cycle != cycle)
            return succeeded(b, cudaErrorIllegalAddress, "ran a cycle, which left no result");
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    return !b->failure;
}

bool cycle_read(Backend *b, DeviceCycle *cycle, CycleOutcome *out) {
    const uint32_t number = ++cycle->n_read;
    const CycleResult *result = &cycle->results[number % 2];
    if (b->failure || !wait_for_cycle(b, result, number)) return false;
    out->n_drafts = result->n_drafts;
    out->n_new = result->n_new;
    memcpy(out->drafts, result->drafts, sizeof out->drafts);
    memcpy(out->tokens, result->tokens, sizeof out->tokens);
    cache_set_ends(cycle->cache, result->end);
    cycle->position -= result->n_drafts + 1 - result->n_new;
    return true;
}
