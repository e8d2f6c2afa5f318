/* What stands between the passes of a cycle, so that the device goes on without the host: rows and choices of the
 * draft and of the verification, and what is accepted, by the rules of src/cycle.c. One warp does it; lane i has row
 * i. */
#include "kernels.h"

namespace {

static_assert(BEE_MAX_BLOCK <= (int)WARP_SIZE && BEE_MAX_STOP_TOKENS <= (int)WARP_SIZE, "a lane has one of each");

#if defined(BEE_EMULATE)
inline void __threadfence_system() {}
#endif

__device__ DeviceRow row_of(const DeviceSession *s, bool draft, int32_t token, int32_t position, int32_t n_visible) {
    DeviceRow row;
    row.cache = draft ? s->draft_cache : s->cache;
    row.token = token;
    row.position = position;
    row.n_visible = n_visible;
    return row;
}

/* What is chosen for the position behind the cached ones, the last token and `behind` drafts. */
__device__ DeviceChoice choice_of(const DeviceSession *s, int behind) {
    DeviceChoice choice = {};
    choice.sampling = s->sampling;
    choice.position = s->n_cached + 1 + behind;
    choice.logits_row = behind;
    choice.n_top = -1;
    return choice;
}

__global__ void draft_rows(const DeviceSession *s, int n_drafts, DeviceRow *rows, DeviceChoice *choices) {
    begin_grid();
    const int i = (int)threadIdx.x;
    if (i > n_drafts) return;
    const int32_t position = s->n_cached + i, end = s->n_cached + n_drafts + 1;
    if (i < n_drafts) choices[i] = choice_of(s, i);
    if (s->finished)
        rows[i] = row_of(s, true, s->last_token, -1, 1);
    else
        rows[i] = row_of(s, true, i ? s->mask_token : s->last_token, position, s->causal ? position + 1 : end);
}

__device__ __forceinline__ int32_t draft_at(const int32_t *drafts, int i) { return drafts[i] < 0 ? 0 : drafts[i]; }

__global__ void verify_rows(const DeviceSession *s, int n_drafts, const int32_t *drafts, DeviceRow *rows,
                            DeviceChoice *choices, DeviceRun *run) {
    begin_grid();
    const int i = (int)threadIdx.x;
    if (i > n_drafts) return;
    const int32_t position = s->n_cached + i;
    if (!i) *run = device_run(&s->cache, s->end, 0, s->finished ? 0 : n_drafts + 1, s->n_cached);
    choices[i] = choice_of(s, i);
    if (s->finished)
        rows[i] = row_of(s, false, s->last_token, -1, 1);
    else
        rows[i] = row_of(s, false, i ? draft_at(drafts, i - 1) : s->last_token, position, position + 1);
}

/* ---- accept ------------------------------------------------------------------------------------- */

__device__ uint64_t mix_bits(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* How many drafts this cycle accepts by the profile: a number of the seed and the position alone. */
__device__ int draw_accepted(const DeviceSession *s, int n_drafts) {
    const uint64_t bits = mix_bits(mix_bits(s->sampling.seed ^ 0x5851f42d4c957f2d) + (uint64_t)(uint32_t)s->n_cached);
    const float u = (float)(bits >> 40) * 0x1p-24f; /* in [0, 1) */
    int n = 0;
    while (n < n_drafts && s->profile[n] > u) n++;
    return n;
}

/* Lane i's draft: what was drafted, or what lets the drawn number of drafts agree. */
__device__ int32_t draft_of_lane(const DeviceSession *s, int n_drafts, const int32_t *drafts, int32_t chosen) {
    const int i = lane_of();
    if (i >= n_drafts) return -1;
    if (!s->has_profile) return draft_at(drafts, i);
    const int accepted = draw_accepted(s, n_drafts);
    return i < accepted ? chosen : i == accepted ? chosen ^ 1 : draft_at(drafts, i);
}

typedef struct Walk {
    int32_t n_new, finished, last_token;
} Walk;

/* agreed_tokens and finish_of of src/cycle.c; every lane sees the same. */
__device__ Walk walk_tokens(const DeviceSession *s, int n_drafts, int32_t draft, int32_t chosen) {
    const int32_t stop = lane_of() < s->n_stop_tokens ? s->stop_tokens[lane_of()] : -1;
    Walk walk = {0, s->finished, s->last_token};
    while (walk.n_new <= n_drafts && !walk.finished) {
        const int32_t token = __shfl_sync(0xffffffffu, chosen, walk.n_new);
        const int32_t drafted = __shfl_sync(0xffffffffu, draft, walk.n_new);
        const int stops = __any_sync(0xffffffffu, stop == token);
        if (token < 0) { /* not finite */
            walk.finished = 1;
            break;
        }
        walk.last_token = token;
        walk.n_new++;
        walk.finished = stops || walk.n_new >= s->output_left || walk.n_new >= s->context_left;
        if (drafted != token) break; /* the last row's token has no draft beside it */
    }
    return walk;
}

/* The accepted tokens' rows, for the drafter's cache. `before`: the token of the row, which was the draft or the last
 * token when the pass ran. */
__device__ void set_inject_row(const DeviceSession *s, int n_drafts, int n_new, int32_t before, DeviceRow *rows) {
    const int i = lane_of();
    if (i > n_drafts) return;
    const int32_t position = s->n_cached + i;
    rows[i] = i < n_new ? row_of(s, true, before, position, position + 1) : row_of(s, true, s->last_token, -1, 1);
}

/* The pass has written the states behind what was cached before it, and keeps its rows. */
__device__ void advance(DeviceSession *s, int n_drafts, const Walk *walk) {
    if (!s->finished) s->end = {s->n_cached, n_drafts + 1};
    s->last_token = walk->last_token;
    s->n_cached += walk->n_new;
    s->output_left -= walk->n_new;
    s->context_left -= walk->n_new;
    s->n_new = walk->n_new;
    s->finished = walk->finished;
    s->cycles++;
}

/* The host waits for `cycle`: it must see everything else before. */
__device__ void publish(CycleResult *out, const DeviceSession *s, int n_drafts, const Walk *walk, int32_t draft,
                        int32_t chosen, uint32_t cycle) {
    const int i = lane_of();
    if (i < n_drafts) out->drafts[i] = draft;
    if (i <= n_drafts) out->tokens[i] = chosen;
    if (!i) {
        out->n_drafts = n_drafts;
        out->n_new = walk->n_new;
        out->finished = walk->finished;
        out->end = s->end;
    }
    __syncwarp();
    __threadfence_system();
    __syncwarp();
    if (!i) out->cycle = cycle;
}

__global__ void accept(DeviceSession *s, int n_drafts, int32_t *drafts, const int32_t *chosen_tokens,
                       CycleResult *results, DeviceRow *inject_rows) {
    begin_grid();
    const int i = lane_of();
    const int32_t chosen = i <= n_drafts ? chosen_tokens[i] : -1;
    const int32_t draft = draft_of_lane(s, n_drafts, drafts, chosen);
    const Walk walk = walk_tokens(s, n_drafts, draft, chosen);
    const uint32_t cycle = s->cycles + 1;
    const int32_t accepted = __shfl_sync(0xffffffffu, chosen, i ? i - 1 : 0);
    if (inject_rows) set_inject_row(s, n_drafts, walk.n_new, i ? accepted : s->last_token, inject_rows);
    if (i < n_drafts) drafts[i] = draft;
    __syncwarp(); /* everyone has read the session as it was */
    if (!i) advance(s, n_drafts, &walk);
    publish(&results[cycle % 2], s, n_drafts, &walk, draft, chosen, cycle);
}

} // namespace

void queue_draft_rows(cudaStream_t stream, const DeviceSession *session, int n_drafts, DeviceRow *rows,
                      DeviceChoice *choices) {
    launch(stream, dim3(1), dim3(WARP_SIZE), 0, draft_rows, session, n_drafts, rows, choices);
}

void queue_verify_rows(cudaStream_t stream, const DeviceSession *session, int n_drafts, const int32_t *drafts,
                       DeviceRow *rows, DeviceChoice *choices, DeviceRun *run) {
    launch(stream, dim3(1), dim3(WARP_SIZE), 0, verify_rows, session, n_drafts, drafts, rows, choices, run);
}

void queue_accept(cudaStream_t stream, DeviceSession *session, int n_drafts, int32_t *drafts, const int32_t *chosen,
                  CycleResult *results, DeviceRow *inject_rows) {
    launch(stream, dim3(1), dim3(WARP_SIZE), 0, accept, session, n_drafts, drafts, chosen, results, inject_rows);
}
