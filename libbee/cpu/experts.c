/* Mixtures of experts on the CPU. The rows of a pass are put together by expert, so that an expert's weights are read
 * once; a row's answers are summed up in the order in which its experts were chosen, whatever the other rows chose. */
#include <math.h>
#include <string.h>

#include "worker.h"

static double probability_of(const Routing *r, float logit, float top, double sum) {
    if (r->probability == ROUTE_SIGMOID) return 1 / (1 + exp(-(double)logit));
    if (r->probability == ROUTE_SOFTMAX) return exp((double)logit - top) / sum;
    return logit;
}

/* In the order of the experts and in double precision: the same for a row in any pass. */
static void route_row(const Routing *r, const float *logits, int32_t *ids, float *weights) {
    double probability[MAX_EXPERTS], sum = 0, chosen_sum = 0;
    float top = logits[0];
    for (int e = 1; e < r->n_experts; e++) top = logits[e] > top ? logits[e] : top;
    for (int e = 0; e < r->n_experts; e++) sum += exp((double)logits[e] - top);
    for (int e = 0; e < r->n_experts; e++) probability[e] = probability_of(r, logits[e], top, sum);
    bool taken[MAX_EXPERTS] = {false};
    for (int k = 0; k < r->n_used; k++) {
        int best = -1;
        double most = 0;
        for (int e = 0; e < r->n_experts; e++) {
            const double value = probability[e] + (r->bias ? r->bias[e] : 0);
            if (taken[e] || (best >= 0 && !(value > most))) continue;
            best = e;
            most = value;
        }
        taken[best] = true;
        ids[k] = best;
    }
    const double shift = probability[ids[0]];
    for (int k = 0; k < r->n_used; k++) {
        double weight = probability[ids[k]];
        if (r->probability == ROUTE_SOFTMAX_OF_CHOSEN) weight = exp(weight - shift);
        chosen_sum += weight;
        weights[k] = (float)weight;
    }
    const bool normed = r->normed || r->probability == ROUTE_SOFTMAX_OF_CHOSEN;
    const float factor = (float)(normed ? r->scale / fmax(chosen_sum, 6.103515625e-5) : r->scale);
    for (int k = 0; k < r->n_used; k++) weights[k] *= factor;
}

void route(Worker *w, const Routing *r, const float *logits, size_t stride, int n, ExpertRoom *room) {
    for (int i = w->index; i < n; i += w->count)
        route_row(r, logits + i * stride, room->ids + i * r->n_used, room->weights + i * r->n_used);
    barrier(w);
}

/* Where the rows of each expert lie in the gathered operands. */
typedef struct Places {
    int first[MAX_EXPERTS], count[MAX_EXPERTS];
    int n_hit, hit[MAX_EXPERTS];                         /* experts that have rows, ascending */
    int16_t place[BEE_MAX_PASS_ROWS * MAX_USED_EXPERTS]; /* of row i's k-th expert: [i * n_used + k] */
} Places;

static void find_places(const Experts *e, const int32_t *ids, int n, Places *p) {
    memset(p->count, 0, (size_t)e->n_experts * sizeof *p->count);
    for (int i = 0; i < n * e->n_used; i++) p->count[ids[i]]++;
    p->n_hit = 0;
    for (int x = 0, at = 0; x < e->n_experts; x++) {
        p->first[x] = at;
        if (!p->count[x]) continue;
        p->hit[p->n_hit++] = x;
        at += (p->count[x] + EXPERT_ALIGNMENT - 1) / EXPERT_ALIGNMENT * EXPERT_ALIGNMENT;
    }
    memset(p->count, 0, (size_t)e->n_experts * sizeof *p->count);
    for (int i = 0; i < n * e->n_used; i++) p->place[i] = (int16_t)(p->first[ids[i]] + p->count[ids[i]]++);
}

/* Row `from` of an operand becomes row `to` of another one. */
static void copy_row(const Operand *in, int from, Operand *out, int to) {
    const size_t in_tile = (size_t)(from / TILE), out_tile = (size_t)(to / TILE);
    for (int p = 0; in->pairs && p < in->n_pairs; p++)
        out->pairs[(out_tile * out->n_pairs + p) * TILE + to % TILE] =
            in->pairs[(in_tile * in->n_pairs + p) * TILE + from % TILE];
    for (int c = 0; in->values && c < in->columns; c++)
        out->values[(out_tile * out->columns + c) * TILE + to % TILE] =
            in->values[(in_tile * in->columns + c) * TILE + from % TILE];
}

/* The rows of an operand from a whole tile on. */
static Operand rows_from(const Operand *operand, int first) {
    Operand part = *operand;
    const size_t tile = (size_t)(first / TILE);
    if (part.pairs) part.pairs += tile * part.n_pairs * TILE;
    if (part.values) part.values += tile * part.columns * TILE;
    part.own = NULL;
    return part;
}

/* Groups of 32 columns of an expert's gate and up products, for all its rows, a few at a time. */
static void gate_expert(Worker *w, const Experts *e, int expert, const Places *p, int unit, const ExpertRoom *room) {
    enum { BLOCKS = GROUP / BLOCK_ROWS };
    const Kernels *kernels = w->backend->kernels;
    const Matrix *const matrices[] = {e->gate ? &e->gate[expert] : NULL, &e->up[expert]};
    float *values[] = {w->scratch + BEE_MAX_PASS_ROWS * GROUP, w->scratch + 2 * BEE_MAX_PASS_ROWS * GROUP};
    const int n = p->count[expert], n_blocks = e->up[expert].weight->n_blocks;
    const int first = BLOCKS * unit, last = first + BLOCKS < n_blocks ? first + BLOCKS : n_blocks;
    const Operand in = rows_from(room->gathered, p->first[expert]);
    if (last < first + BLOCKS) memset(values[0], 0, 2 * BEE_MAX_PASS_ROWS * GROUP * sizeof(float));
    for (int m = e->gate ? 0 : 1; m < 2 && first < last; m++)
        multiply_blocks(w, matrices[m], first, last, &in, n, values[m], GROUP, false);
    for (int i = 0; i < n; i++) {
        float *g = values[0] + i * GROUP;
        kernels->gate(e->activation, e->gate ? g : NULL, values[1] + i * GROUP, GROUP, g);
        kernels->store_operand(g, room->between, p->first[expert] + i, unit, unit + 1);
    }
}

static void down_blocks(Worker *w, const Experts *e, int expert, const Places *p, int first, int last,
                        const ExpertRoom *room) {
    const Operand in = rows_from(room->between, p->first[expert]);
    multiply_blocks(w, &e->down[expert], first, last, &in, p->count[expert],
                    room->each + (size_t)p->first[expert] * room->stride + (size_t)first * BLOCK_ROWS, room->stride,
                    false);
}

static size_t matrix_bytes(const Matrix *m) { return m->weight->block_bytes * (size_t)m->weight->n_blocks; }

/* All columns of a row, in the order of its experts. */
static void sum_up(const Worker *w, const Experts *e, const Places *p, int row, const ExpertRoom *room, int columns,
                   float *out) {
    const float *weights = room->weights + row * e->n_used;
    memset(out, 0, (size_t)columns * sizeof *out);
    for (int k = 0; k < e->n_used; k++)
        w->backend->kernels->add(room->each + (size_t)p->place[row * e->n_used + k] * room->stride, weights[k], 1,
                                 columns, out);
}

/* Units of all experts that have rows form one list: where few experts are hit, they are shared out evenly, too. */
void experts(Worker *w, const Experts *e, const Operand *in, int n, ExpertRoom *room, float *out, size_t stride) {
    static _Thread_local Places p; /* each worker makes its own: it is cheaper than waiting for one of them */
    const Operand *mine = in->own && n <= OWN_ROWS ? &in->own[w->index] : in;
    find_places(e, room->ids, n, &p);
    for (int i = w->index; i < n * e->n_used; i += w->count) copy_row(mine, i / e->n_used, room->gathered, p.place[i]);
    barrier(w);
    const int groups = 2 * room->between->n_pairs, all_groups = p.n_hit * groups;
    const size_t group_bytes = (e->gate ? 2 : 1) * matrix_bytes(&e->up[0]) / (size_t)groups;
    for (Sharing s = share_units(w, all_groups, group_bytes); sharing_take(&s);)
        for (int u = s.first; u < s.end; u++) gate_expert(w, e, p.hit[u / groups], &p, u % groups, room);
    barrier(w);
    const int blocks = e->down[0].weight->n_blocks;
    for (Sharing s = share_units(w, p.n_hit * blocks, e->down[0].weight->block_bytes); sharing_take(&s);)
        for (int u = s.first, last; u < s.end; u = last) {
            last = (u / blocks + 1) * blocks < s.end ? (u / blocks + 1) * blocks : s.end;
            down_blocks(w, e, p.hit[u / blocks], &p, u % blocks, u % blocks + last - u, room);
        }
    barrier(w);
    for (int i = w->index; i < n; i += w->count) sum_up(w, e, &p, i, room, e->down[0].weight->rows, out + i * stride);
    barrier(w);
}
