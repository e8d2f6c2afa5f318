/* Recurrent layers on the CPU. Heads are shared out over the workers and columns over lanes; a head's rows follow one
 * another in one order, so that a token gets the same bits in any pass. */
#include <math.h>
#include <string.h>

#include "worker.h"

_Static_assert((int)CACHE_KEPT_ROWS >= (int)BEE_MAX_BLOCK, "drafts must find room among the rows that are kept");

/* One sequence's rows in a pass, behind those that its state lacks. Row 0 is the first of the latter; the rows before
 * it, below 0, are those that the convolution remembers. */
typedef struct Stretch {
    const Recurrence *of;
    const Row *rows; /* of the pass */
    const float *inputs;
    size_t stride;
    float *memory, *states, *kept; /* of this layer: rows of inputs, heads, rows of all that heads read */
    StateEnd *end;
    int n_remembered;   /* rows before row 0 */
    int n_late, n_rows; /* rows before the pass, and all */
    int n_certain;      /* rows behind which the state is written: those behind them may be rejected */
    int first;          /* of its rows in the pass */
} Stretch;

static int least(int a, int b) { return a < b ? a : b; }

static Stretch stretch_of(const Recurrence *r, Run run, const float *inputs, size_t stride) {
    const Cache *cache = run.rows->cache;
    StateEnd *end = &cache->ends[r->index];
    const int late = run.rows->position - end->position;
    Stretch s = {.of = r,
                 .rows = run.rows,
                 .inputs = inputs + (size_t)run.first * stride,
                 .stride = stride,
                 .memory = cache->states + r->first_state,
                 .kept = cache->kept + r->first_kept,
                 .end = end,
                 .n_remembered = least(r->kernel - 1, end->position),
                 .n_late = late < 0 ? 0 : least(late, end->n_kept),
                 .first = run.first};
    s.states = s.memory + (size_t)(r->kernel - 1) * r->channels;
    s.n_rows = s.n_late + run.n;
    s.n_certain = s.n_late + (run.n > CACHE_KEPT_ROWS ? run.n - CACHE_KEPT_ROWS : 0);
    return s;
}

/* A row's inputs from a column on. */
static const float *inputs_of(const Stretch *s, int row, int column) {
    const Recurrence *r = s->of;
    if (row < 0) return s->memory + (size_t)(r->kernel - 1 + row) * r->channels + column;
    if (row < s->n_late) return s->kept + (size_t)row * r->input_floats + column;
    return s->inputs + (size_t)(row - s->n_late) * s->stride + column;
}

/* Columns of a row, mixed with the rows before it; before a sequence's first row there are none. */
static void convolve_row(const Worker *w, const Stretch *s, int row, int column, int n, bool silu, float *out) {
    const Recurrence *r = s->of;
    const float *in[MAX_KERNEL], *taps[MAX_KERNEL];
    int n_taps = 0;
    for (int t = 0; t < r->kernel; t++) {
        const int from = row - (r->kernel - 1) + t;
        if (from < -s->n_remembered) continue;
        in[n_taps] = inputs_of(s, from, column);
        taps[n_taps++] = r->taps + (size_t)t * r->channels + column;
    }
    w->backend->kernels->convolve(in, taps, n_taps, r->tap_bias ? r->tap_bias + column : NULL, silu, n, out);
}

/* The layer's columns [begin, end) of what it remembers behind the pass: the inputs before n_certain, and those of the
 * rows that it keeps. Nobody reads the old ones any more. */
static void remember(const Stretch *s, int begin, int end) {
    const Recurrence *r = s->of;
    const int last = least(end, r->channels), n_memory = r->kernel - 1;
    for (int i = 0; s->n_certain && begin < last && i < n_memory; i++) {
        const int from = s->n_certain - n_memory + i;
        if (from < -s->n_remembered) continue;
        memcpy(s->memory + (size_t)i * r->channels + begin, inputs_of(s, from, begin),
               (size_t)(last - begin) * sizeof(float));
    }
    for (int row = s->n_certain; row < s->n_rows && begin < end; row++)
        memcpy(s->kept + (size_t)(row - s->n_certain) * r->input_floats + begin, inputs_of(s, row, begin),
               (size_t)(end - begin) * sizeof(float));
}

/* Columns of the inputs that are a worker's, in whole vectors. */
static int column_begin(const Worker *w, int columns, int index) {
    return least(16 * share_begin(w, (columns + 15) / 16, index), columns);
}

/* Behind a barrier: nobody asks where the layer stood any more. */
static void step_ends(const Recurrence *r, const Row *rows, int n) {
    for (Run run = run_at(rows, 0, n); run.n; run = run_at(rows, run.first + run.n, n)) {
        const Stretch s = stretch_of(r, run, NULL, 0);
        s.end->position = run.rows->position + s.n_certain - s.n_late;
        s.end->n_kept = s.n_rows - s.n_certain;
    }
}

/* ---- heads ---------------------------------------------------------------------------------------- */

/* What some rows give to a head, and it to them. */
typedef struct HeadRows {
    float *queries, *keys; /* [CACHE_KEPT_ROWS][key_size] */
    float *values, *out;   /* [CACHE_KEPT_ROWS][value_size] */
    float *state;          /* [key_size][16], where the layer's own must stay as it is */
    float decay[CACHE_KEPT_ROWS], rate[CACHE_KEPT_ROWS], step[CACHE_KEPT_ROWS];
} HeadRows;

static HeadRows head_rows(const Worker *w, const Recurrence *r) {
    HeadRows h = {.queries = w->scratch};
    h.keys = h.queries + (size_t)CACHE_KEPT_ROWS * r->key_size;
    h.values = h.keys + (size_t)CACHE_KEPT_ROWS * r->key_size;
    h.out = h.values + (size_t)CACHE_KEPT_ROWS * r->value_size;
    h.state = h.out + (size_t)CACHE_KEPT_ROWS * r->value_size;
    return h;
}

static void unit_length(const Kernels *kernels, const Recurrence *r, float scale, float *x) {
    /* x / sqrt(sum + eps) is 1 / sqrt(n) of x / sqrt(mean + eps / n) */
    kernels->norm(x, NULL, false, r->eps / (float)r->key_size, r->key_size, x);
    kernels->rotate(x, r->key_size, NULL, 0, false, scale / sqrtf((float)r->key_size));
}

static double softplus(double x) { return x > 20 ? x : log1p(exp(x)); }

/* Row `row` becomes row i of the head's. */
static void read_row(const Worker *w, const Stretch *s, int head, int row, HeadRows *h, int i) {
    const Recurrence *r = s->of;
    const int key_head = r->alternating ? head % r->n_key_heads : head / (r->n_heads / r->n_key_heads);
    float *query = h->queries + (size_t)i * r->key_size, *key = h->keys + (size_t)i * r->key_size;
    const Kernels *kernels = w->backend->kernels;
    convolve_row(w, s, row, r->key_at + key_head * r->key_size, r->key_size, true, key);
    convolve_row(w, s, row, r->value_at + head * r->value_size, r->value_size, true,
                 h->values + (size_t)i * r->value_size);
    if (r->corrects) unit_length(kernels, r, 1, key);
    if (row >= s->n_late) {
        convolve_row(w, s, row, r->query_at + key_head * r->key_size, r->key_size, true, query);
        if (r->corrects) unit_length(kernels, r, 1 / sqrtf((float)r->key_size), query);
    }
    const double step = softplus((double)*inputs_of(s, row, r->step_at + head) + r->step_bias[head]);
    h->decay[i] = (float)exp(r->decay[head] * step);
    h->rate[i] = (float)(r->corrects ? 1 / (1 + exp(-(double)*inputs_of(s, row, r->rate_at + head))) : step);
}

/* The results of row i, which is row `row` of the stretch. */
static void write_row(const Worker *w, const Stretch *s, int head, int row, const HeadRows *h, int i,
                      const float *gates, float *out, size_t stride) {
    const Recurrence *r = s->of;
    const Kernels *kernels = w->backend->kernels;
    const size_t at = (size_t)(s->first + row - s->n_late) * stride + (size_t)head * r->value_size;
    float *result = h->out + (size_t)i * r->value_size;
    if (r->skip) kernels->add(h->values + (size_t)i * r->value_size, r->skip[head], 1, r->value_size, result);
    if (r->gain) kernels->norm(result, r->gain, false, r->eps, r->value_size, result);
    kernels->gate(ACTIVATION_SILU, gates + at, result, r->value_size, out + at);
}

/* At most CACHE_KEPT_ROWS rows, 16 columns of the state at a time, which then stay in the nearest cache. */
static void run_head(const Worker *w, const Stretch *s, int head, int first, int last, const float *gates, float *out,
                     size_t stride) {
    const Recurrence *r = s->of;
    HeadRows h = head_rows(w, r);
    const size_t block_floats = (size_t)16 * r->key_size;
    float *states = s->states + (size_t)head * r->key_size * r->value_size;
    for (int row = first; row < last; row++) read_row(w, s, head, row, &h, row - first);
    for (int column = 0; column < r->value_size; column += 16) {
        float *state = states + (size_t)column / 16 * block_floats;
        if (!first && !s->end->position) memset(state, 0, block_floats * sizeof(float)); /* the sequence begins */
        if (first >= s->n_certain) state = memcpy(h.state, state, block_floats * sizeof(float));
        for (int row = first; row < last; row++) {
            const size_t i = (size_t)(row - first);
            w->backend->kernels->recur(state, r->key_size, h.keys + i * r->key_size, h.queries + i * r->key_size,
                                       h.decay[i], h.rate[i], r->corrects, h.values + i * r->value_size + column,
                                       row < s->n_late ? NULL : h.out + i * r->value_size + column);
        }
    }
    for (int row = first < s->n_late ? s->n_late : first; row < last; row++)
        write_row(w, s, head, row, &h, row - first, gates, out, stride);
}

void recur(Worker *w, const Recurrence *r, const Row *rows, int n, const float *inputs, size_t input_stride,
           const float *gates, float *out, size_t stride) {
    const int begin = share_begin(w, r->n_heads, w->index), end = share_begin(w, r->n_heads, w->index + 1);
    for (Run run = run_at(rows, 0, n); run.n; run = run_at(rows, run.first + run.n, n)) {
        const Stretch s = stretch_of(r, run, inputs, input_stride);
        for (int head = begin; head < end; head++)
            for (int first = 0, last; first < s.n_rows; first = last) { /* what is uncertain is a chunk of its own */
                last = least(first + CACHE_KEPT_ROWS, first < s.n_certain ? s.n_certain : s.n_rows);
                run_head(w, &s, head, first, last, gates, out, stride);
            }
    }
    barrier(w);
    const int columns = r->input_floats;
    for (Run run = run_at(rows, 0, n); run.n; run = run_at(rows, run.first + run.n, n)) {
        const Stretch s = stretch_of(r, run, inputs, input_stride);
        remember(&s, column_begin(w, columns, w->index), column_begin(w, columns, w->index + 1));
    }
    barrier(w);
    if (!w->index) step_ends(r, rows, n);
}

/* ---- convolutions alone --------------------------------------------------------------------------- */

/* Columns have nothing to do with each other. */
void convolve(Worker *w, const Recurrence *r, const Row *rows, int n, float *inputs, size_t input_stride, float *out,
              size_t stride) {
    const int begin = column_begin(w, r->channels, w->index), end = column_begin(w, r->channels, w->index + 1);
    for (Run run = run_at(rows, 0, n); run.n && begin < end; run = run_at(rows, run.first + run.n, n)) {
        const Stretch s = stretch_of(r, run, inputs, input_stride);
        for (int i = 0; i < run.n; i++) {
            float *first = inputs + (size_t)(run.first + i) * input_stride, *third = first + r->channels;
            float *to = out + (size_t)(run.first + i) * stride;
            for (int c = begin; c < end; c++) first[c] *= third[r->channels + c];
            convolve_row(w, &s, s.n_late + i, begin, end - begin, false, to + begin);
            for (int c = begin; c < end; c++) to[c] *= third[c];
        }
        remember(&s, begin, end);
    }
    barrier(w);
    if (!w->index) step_ends(r, rows, n);
}
