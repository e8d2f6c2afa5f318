#include "policy.h"

const int cost_rows[COST_POINTS] = {1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128};

/* ---- costs of passes -------------------------------------------------------------------------- */

static double within(double value, double low, double high) { return value < low ? low : value > high ? high : value; }

/* Whether drafting pays is a comparison with plain decoding. Where all cycles draft, one without finds out now and then
 * whether that costs what is believed: ever more rarely while it does. */
enum { FIRST_PLAIN = 8, LAST_PLAIN = 512 };

/* What passes cost in units of one over a single row, where weights are 4-bit and vectors 512 bits wide; beyond 16
 * rows, which is what kernels hold at once, in proportion. */
static const double usual_passes[COST_POINTS] = {1, 1.15, 1.25, 1.35, 1.7, 1.95, 2.7, 3.3, 6.6, 13.2, 26.4};

void pass_costs_complete(PassCosts *costs) {
    double unit = costs->pass[0];
    for (int i = 0; i < COST_POINTS; i++) {
        if (costs->pass[i] > 0)
            unit = costs->pass[i] / usual_passes[i];
        else
            costs->pass[i] = unit * usual_passes[i];
        /* More rows never cost less: where they seem to, it is noise. */
        if (i && costs->pass[i] < costs->pass[i - 1]) costs->pass[i] = costs->pass[i - 1];
        costs->factor[i] = 1;
    }
    costs->drift = 1;
    costs->since_plain = 0;
    costs->plain_patience = FIRST_PLAIN;
}

double usual_cost(double single, int point) { return single * usual_passes[point]; }

/* n_rows lies between the points i and i + 1, at the returned share of the way. */
static double locate(int n_rows, int *point) {
    int i = 0;
    while (i < COST_POINTS - 2 && cost_rows[i + 1] <= n_rows) i++;
    *point = i;
    return within((double)(n_rows - cost_rows[i]) / (cost_rows[i + 1] - cost_rows[i]), 0, 1);
}

/* Without the drift. */
static double relative_cost(const PassCosts *costs, int n_rows) {
    int i;
    const double share = locate(n_rows, &i);
    return (1 - share) * costs->pass[i] * costs->factor[i] + share * costs->pass[i + 1] * costs->factor[i + 1];
}

double cost_of_pass(const PassCosts *costs, int n_rows) { return costs->drift * relative_cost(costs, n_rows); }

/* A pass that was held up says nothing of its cost, and must not scare us away from its length. One that was fast says
 * that it can be. */
static double bounded_ratio(double observed, double expected) { return within(observed / expected, 0.5, 1.4); }

static bool plain_is_due(const PassCosts *costs) { return costs->since_plain >= costs->plain_patience; }

static void observe_plain(PassCosts *costs, double ratio) {
    const bool as_believed = ratio > 0.93 && ratio < 1.08;
    if (plain_is_due(costs)) {
        if (!as_believed)
            costs->plain_patience = FIRST_PLAIN;
        else if (costs->plain_patience < LAST_PLAIN)
            costs->plain_patience *= 2;
    }
    costs->since_plain = 0;
}

void pass_costs_observe(PassCosts *costs, int n_rows, bool drafted, double seconds) {
    /* The drift follows within some five passes, as a machine that gets busy slows all lengths; what one length differs
     * by shows over some twenty. Factors of other lengths return to the measurement over some thousand passes: a length
     * that once seemed dear is tried again. In simulations on recorded answers, with costs that were measured wrong by
     * up to 40 %, this regains half of what the error costs; with costs measured right it loses next to nothing, and
     * other rates between half and twice these do about as well. */
    static const double DRIFT_RATE = 0.2, FACTOR_RATE = 0.05, TRY_RATE = 0.2, RETURN_RATE = 0.001, MOST = 3;
    const double ratio = bounded_ratio(seconds, cost_of_pass(costs, n_rows));
    const double rate = !drafted && plain_is_due(costs) ? TRY_RATE : FACTOR_RATE; /* a rare pass tells more */
    costs->drift = within(costs->drift * (1 + DRIFT_RATE * (ratio - 1)), 1e-3, 1e3);
    int near;
    const double share = locate(n_rows, &near);
    for (int i = 0; i < COST_POINTS; i++) {
        const double weight = i == near ? 1 - share : i == near + 1 ? share : 0;
        if (weight > 0)
            costs->factor[i] *= 1 + rate * weight * (ratio - 1);
        else
            costs->factor[i] += RETURN_RATE * (1 - costs->factor[i]);
        costs->factor[i] = within(costs->factor[i], 1 / MOST, MOST);
    }
    if (drafted)
        costs->since_plain++;
    else
        observe_plain(costs, ratio);
}

/* ---- costs of drafts ---------------------------------------------------------------------------- */

/* Lengths that were not measured lie on lines between those that were, and on the last line's continuation. */
static void complete_drafts(DraftCosts *costs) {
    double slope = 0;
    for (int k = 2, known = 1; k <= costs->longest; k++) {
        int next = k;
        while (next <= costs->longest && costs->draft[next] <= 0) next++;
        if (next <= costs->longest) slope = (costs->draft[next] - costs->draft[known]) / (next - known);
        if (slope < 0) slope = 0;
        if (next > k || costs->draft[k] < costs->draft[k - 1]) costs->draft[k] = costs->draft[k - 1] + slope;
        if (next == k) known = k;
    }
}

void draft_costs_complete(DraftCosts *costs, const PassCosts *passes, double share) {
    if (costs->draft[1] <= 0) costs->draft[1] = share * passes->pass[1];
    complete_drafts(costs);
    costs->factor = 1;
}

double cost_of_draft(const DraftCosts *costs, const PassCosts *passes, int k, int n_sessions) {
    if (!k) return 0;
    /* The drafter's pass grows with its rows as the target's does. */
    const double crowd = relative_cost(passes, n_sessions * (k + 1)) / relative_cost(passes, k + 1);
    return passes->drift * costs->factor * costs->draft[k] * crowd;
}

void draft_costs_observe(DraftCosts *costs, double predicted, double seconds) {
    static const double RATE = 0.05, MOST = 2;
    const double ratio = bounded_ratio(seconds, predicted);
    costs->factor = within(costs->factor * (1 + RATE * (ratio - 1)), 1 / MOST, MOST);
}

/* ---- chances ------------------------------------------------------------------------------------ */

/* Where a source does not pay, one draft every so many cycles finds out whether the text has become easier: at some
 * 0.4 of a plain cycle a try, these cost 2 % at first and 0.2 % where they keep failing. */
enum { FIRST_PATIENCE = 16, LAST_PATIENCE = 256 };

void chances_reset(DraftChances *chances, const double *first) {
    for (int i = 0; i < BEE_MAX_BLOCK; i++) chances->kept[i] = first[i];
    chances->idle = 0;
    chances->patience = FIRST_PATIENCE;
}

void chances_begin(DraftChances *chances, const DraftChances *usual) {
    *chances = *usual;
    chances->idle = 0;
    chances->patience = FIRST_PATIENCE;
}

void chances_learn(DraftChances *chances, DraftChances *usual, int i, bool kept) {
    /* Over some fifteen judged drafts for the text at hand: half of that chases noise and misses drafts that pay, twice
     * of it keeps drafting where a text has turned difficult. Over a hundred for the texts of an engine. */
    static const double RATE = 0.06, USUAL_RATE = 0.01;
    chances->kept[i] += RATE * (kept - chances->kept[i]);
    usual->kept[i] += USUAL_RATE * (kept - usual->kept[i]);
}

void chances_observe_block(DraftChances *chances, DraftChances *usual, int drafted, int accepted) {
    if (!drafted) {
        chances->idle++;
        return;
    }
    /* A try that failed makes the next one rarer. */
    if (accepted)
        chances->patience = FIRST_PATIENCE;
    else if (chances->idle >= chances->patience && chances->patience < LAST_PATIENCE)
        chances->patience *= 2;
    chances->idle = 0;
    /* Draft i was judged only if those before it were kept. */
    for (int i = 0; i < drafted && i <= accepted; i++) chances_learn(chances, usual, i, i < accepted);
    /* All were kept: the next one, which was not tried, may be as good. Else a length that was left would stay left. */
    static const double HOPE_RATE = 0.03;
    if (accepted == drafted && drafted < BEE_MAX_BLOCK - 1 && chances->kept[drafted] < chances->kept[drafted - 1])
        chances->kept[drafted] += HOPE_RATE * (chances->kept[drafted - 1] - chances->kept[drafted]);
}

/* ---- the choice --------------------------------------------------------------------------------- */

DraftOffer offer_block(const PassCosts *passes, const DraftCosts *costs, const DraftChances *chances, int n_sessions) {
    DraftOffer offer = {.longest = costs->longest, .overdue = chances->idle >= chances->patience};
    for (int k = 1; k <= costs->longest; k++) {
        offer.chance[k - 1] = chances->kept[k - 1];
        offer.seconds[k] = cost_of_draft(costs, passes, k, n_sessions);
    }
    return offer;
}

/* Drafting must promise so much more than plain decoding: chances and costs are estimates, and a pass that follows one
 * of another length is a little slower. */
static const double MARGIN = 1.02;

/* Tokens per second of cycles that verify `length` drafts, where `tokens` are expected of one. */
static double rate(const PassCosts *costs, int length, int n_sessions, double draft_seconds, double tokens) {
    return tokens / (cost_of_pass(costs, n_sessions * (length + 1)) + draft_seconds);
}

/* Replaces `best` by the best length of offer `i` where that is better. */
static void consider(const PassCosts *costs, const DraftOffer *offers, int i, const DraftLimits *limits,
                     DraftChoice *best, double *best_rate) {
    const DraftOffer *offer = &offers[i];
    double tokens = 1, reached = 1;
    for (int k = 1; k <= offer->longest && k <= limits->longest; k++) {
        if (k > limits->forced) reached *= offer->chance[k - 1];
        tokens += reached;
        if (k < limits->shortest || k < limits->forced) continue;
        const double this_rate = rate(costs, k, limits->n_sessions, offer->seconds[k], tokens);
        if (this_rate <= *best_rate) continue;
        *best_rate = this_rate;
        *best = (DraftChoice){i, k};
    }
}

/* Tokens that are known cost no more in one pass than in several, so all of them are drafted; a source that can go on
 * behind them does where that promises more. */
static DraftChoice choose_forced(const PassCosts *costs, const DraftOffer *offers, int n_offers,
                                 const DraftLimits *limits) {
    const int n = limits->forced < limits->longest ? limits->forced : limits->longest;
    DraftChoice best = {-1, n};
    double best_rate = limits->shortest > n ? 0 : rate(costs, n, limits->n_sessions, 0, 1 + n);
    for (int i = 0; i < n_offers && n == limits->forced; i++) consider(costs, offers, i, limits, &best, &best_rate);
    return best;
}

DraftChoice draft_choose(const PassCosts *costs, const DraftOffer *offers, int n_offers, const DraftLimits *limits) {
    if (limits->forced) return choose_forced(costs, offers, n_offers, limits);
    DraftChoice best = {-1, 0};
    double best_rate = limits->shortest ? 0 : MARGIN * rate(costs, 0, limits->n_sessions, 0, 1);
    for (int i = 0; i < n_offers; i++) consider(costs, offers, i, limits, &best, &best_rate);
    if (!limits->shortest && plain_is_due(costs)) return (DraftChoice){-1, 0};
    for (int i = 0; i < n_offers && best.offer < 0; i++)
        if (offers[i].overdue && offers[i].longest > 0 && limits->longest > 0) best = (DraftChoice){i, 1};
    return best;
}
