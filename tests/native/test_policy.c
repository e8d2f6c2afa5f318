/* What to draft, and how much: against a search of all choices, on costs and texts that are made up here. */
#include "check.h"
#include "draft/copy.h"
#include "draft/dflash.h"
#include "random.h"

/* Seconds of passes over 1, 2, 3, 4, 6, 8, 12 and 16 rows. */
enum { N_MEASURED = 8, LONGEST = 7 };
static const double usual_passes[N_MEASURED] = {1, 1.15, 1.25, 1.35, 1.7, 1.95, 2.7, 3.3};

/* Passes, and a model that drafts blocks. */
typedef struct Costs {
    PassCosts pass;
    DraftCosts draft;
} Costs;

static Costs make_costs(const double *passes, double first_draft, double next_draft, int longest) {
    Costs costs = {.draft = {.longest = longest}};
    for (int i = 0; i < N_MEASURED; i++) costs.pass.pass[i] = passes[i];
    for (int k = 1; k <= longest; k++) costs.draft.draft[k] = first_draft + next_draft * (k - 1);
    pass_costs_complete(&costs.pass);
    draft_costs_complete(&costs.draft, &costs.pass, 0);
    return costs;
}

static Costs default_costs(void) { return make_costs(usual_passes, 0.27, 0.02, LONGEST); }

/* Of the model's drafts and of copies. */
typedef struct Chances {
    DraftChances model, copy;
} Chances;

static Chances certain(double model, double copy) {
    Chances chances;
    chances_reset(&chances.model, dflash_source.first_chances);
    chances_reset(&chances.copy, copy_source.first_chances);
    for (int i = 0; i < BEE_MAX_BLOCK; i++) chances.model.kept[i] = model;
    for (int i = 0; i < COPY_CLASSES; i++) chances.copy.kept[i] = copy;
    return chances;
}

typedef enum Source { NOTHING, MODEL, COPY, FORCED } Source;

typedef struct Options {
    bool model; /* there is a model, */
    int match;  /* and a match of so many tokens to copy after */
    int forced, shortest, longest, n_sessions;
} Options;

typedef struct Chosen {
    Source source;
    int length;
} Chosen;

static const Options anything = {.model = true, .match = 5, .shortest = 0, .longest = 15, .n_sessions = 1};

/* As a session asks: the model first, and no copy behind what is forced. */
static Chosen choose(const Costs *costs, const Chances *chances, const Options *options) {
    DraftOffer offers[2];
    Source sources[2];
    int n = 0;
    if (options->model) {
        sources[n] = MODEL;
        offers[n++] = offer_block(&costs->pass, &costs->draft, &chances->model, options->n_sessions);
    }
    if (options->match && !options->forced) {
        sources[n] = COPY;
        offers[n++] = copy_offer(&chances->copy, options->match);
    }
    const DraftLimits limits = {options->forced, options->shortest, options->longest, options->n_sessions};
    const DraftChoice choice = draft_choose(&costs->pass, offers, n, &limits);
    if (choice.offer >= 0) return (Chosen){sources[choice.offer], choice.length};
    return (Chosen){choice.length ? FORCED : NOTHING, choice.length};
}

static double pass_cost(const Costs *costs, int n_rows) { return cost_of_pass(&costs->pass, n_rows); }

static double draft_cost(const Costs *costs, int k, int n_sessions) {
    return cost_of_draft(&costs->draft, &costs->pass, k, n_sessions);
}

/* ---- costs ------------------------------------------------------------------------------------------- */

static void test_interpolation(void) {
    const Costs costs = default_costs();
    for (int i = 0; i < N_MEASURED; i++) CHECK_NEAR(pass_cost(&costs, cost_rows[i]), usual_passes[i], 1e-12);
    CHECK_NEAR(pass_cost(&costs, 5), (1.35 + 1.7) / 2, 1e-12);
    CHECK_NEAR(pass_cost(&costs, 13), 2.7 + 0.6 / 4, 1e-12);
    CHECK_NEAR(pass_cost(&costs, 32), 6.6, 1e-12); /* beyond what was measured: in proportion */
    CHECK_NEAR(pass_cost(&costs, 128), 26.4, 1e-9);
    CHECK_NEAR(draft_cost(&costs, 3, 1), 0.31, 1e-12);
    CHECK_NEAR(draft_cost(&costs, 3, 4), 0.31 * 3.3 / 1.35, 1e-12); /* 16 rows instead of 4 */
    CHECK_NEAR(draft_cost(&costs, 0, 1), 0, 0);
    for (int n = 2; n <= 128; n++) CHECK(pass_cost(&costs, n) >= pass_cost(&costs, n - 1));
}

/* Noise that makes more rows look cheaper is taken out; drafts that were not measured lie between the others. */
static void test_completion(void) {
    const double noisy[N_MEASURED] = {1, 1.2, 1.1, 1.3, 1.2, 1.9, 2.7, 3.3};
    Costs costs = make_costs(noisy, 0.3, 0, 0);
    CHECK_NEAR(pass_cost(&costs, 3), 1.2, 1e-12);
    CHECK_NEAR(pass_cost(&costs, 6), 1.3, 1e-12);
    costs.draft.longest = 10;
    const double measured[BEE_MAX_BLOCK] = {[1] = 0.2, [2] = 0.1, [3] = 0.3, [5] = 0.5, [7] = 0.9};
    memcpy(costs.draft.draft, measured, sizeof measured);
    draft_costs_complete(&costs.draft, &costs.pass, 0);
    const double expected[] = {0.2, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5};
    for (int k = 1; k <= 10; k++) CHECK_NEAR(draft_cost(&costs, k, 1), expected[k - 1], 1e-12);
    /* A machine too slow to measure more than single rows, and then one row and eight: the others in proportion. */
    Costs single = {.pass = {.pass = {0.5}}, .draft = {.longest = 3}};
    pass_costs_complete(&single.pass);
    draft_costs_complete(&single.draft, &single.pass, 0.2);
    CHECK_NEAR(pass_cost(&single, 16), 0.5 * 3.3, 1e-12);
    CHECK_NEAR(draft_cost(&single, 1, 1), 0.2 * 0.5 * 1.15, 1e-12);
    CHECK(draft_cost(&single, 3, 1) >= draft_cost(&single, 1, 1));
    Costs two = {.pass = {.pass = {[0] = 0.5, [5] = 2 * 0.5 * 1.95}}};
    pass_costs_complete(&two.pass);
    CHECK_NEAR(pass_cost(&two, 4), 0.5 * 1.35, 1e-12);
    CHECK_NEAR(pass_cost(&two, 12), 2 * 0.5 * 2.7, 1e-12);
}

/* A machine that is twice as slow changes all costs alike, and so no choice. */
static void test_drift(void) {
    Costs costs = default_costs();
    for (int i = 0; i < 200; i++) pass_costs_observe(&costs.pass, 1, false, 2);
    CHECK_NEAR(pass_cost(&costs, 1), 2, 0.02);
    CHECK(pass_cost(&costs, 4) > 1.2 * 1.35);
    const double before = pass_cost(&costs, 1);
    pass_costs_observe(&costs.pass, 1, false, 1000); /* a pass that was held up for long */
    CHECK(pass_cost(&costs, 1) < 1.15 * before);
    for (int i = 0; i < 10000; i++) pass_costs_observe(&costs.pass, 1, false, i % 2 ? 1e-9 : 1e9);
    CHECK(isfinite(pass_cost(&costs, 1)) && pass_cost(&costs, 1) > 0);
}

/* Two lengths in turn, one of them 20 % dearer than measured: that shows, and is forgotten when it no longer runs. */
static void test_factors(void) {
    Costs costs = default_costs();
    for (int i = 0; i < 400; i++) pass_costs_observe(&costs.pass, i % 2 ? 4 : 1, i % 2, i % 2 ? 1.35 * 1.2 : 1);
    CHECK_NEAR(pass_cost(&costs, 4) / pass_cost(&costs, 1), 1.35 * 1.2, 0.03);
    for (int i = 0; i < 5000; i++) pass_costs_observe(&costs.pass, 1, false, 1);
    CHECK_NEAR(costs.pass.factor[3], 1, 0.01);
    for (int i = 0; i < 400; i++) pass_costs_observe(&costs.pass, i % 2 ? 4 : 1, i % 2, i % 2 ? 100 : 1);
    CHECK(costs.pass.factor[3] <= 3 && costs.pass.factor[0] >= 1.0 / 3);
    costs = default_costs();
    double predicted = draft_cost(&costs, 3, 1);
    for (int i = 0; i < 200; i++, predicted = draft_cost(&costs, 3, 1))
        draft_costs_observe(&costs.draft, predicted, 0.2);
    CHECK_NEAR(predicted, 0.2, 0.02);
}

/* A machine was busy when the costs were measured, and all lengths seemed alike. Plain cycles in between show what they
 * cost, so that drafts which do not pay are given up; while they cost what is believed they become rare. */
static void test_plain_cycles(void) {
    const double all_alike[N_MEASURED] = {5, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6, 5.7};
    const Costs truth = default_costs();
    const Chances chances = certain(0.1, 0.1);
    Costs costs = make_costs(all_alike, 0.3, 0.01, LONGEST);
    CHECK(choose(&costs, &chances, &anything).length > 0);
    int drafted = 0;
    for (int i = 0; i < 400; i++) {
        const int k = choose(&costs, &chances, &anything).length;
        pass_costs_observe(&costs.pass, k + 1, k > 0, pass_cost(&truth, k + 1));
        if (i >= 300) drafted += k;
    }
    CHECK_EQ(drafted, 0);

    const Chances good = certain(0.9, 0.9);
    int plain = 0, plain_at_first = 0;
    costs = truth;
    for (int i = 0; i < 3000; i++) {
        const int k = choose(&costs, &good, &anything).length;
        pass_costs_observe(&costs.pass, k + 1, k > 0, pass_cost(&truth, k + 1));
        plain += !k;
        plain_at_first += !k && i < 100;
    }
    CHECK(plain_at_first >= 2 && plain > plain_at_first && plain < 15);
    Options fixed = anything; /* a number that was asked for is kept */
    fixed.shortest = fixed.longest = 3;
    costs.pass.since_plain = costs.pass.plain_patience;
    CHECK_EQ(choose(&costs, &good, &fixed).length, 3);
    CHECK_EQ(choose(&costs, &good, &anything).length, 0);
}

/* ---- chances ----------------------------------------------------------------------------------------- */

static void test_chances(void) {
    Random random = {41};
    DraftChances usual, chances;
    chances_reset(&usual, dflash_source.first_chances);
    chances_begin(&chances, &usual);
    for (int i = 0; i < 3000; i++) { /* the first draft is kept with 0.7, the second one then with 0.3 */
        const int accepted = random_unit(&random) < 0.7 ? 1 + (random_unit(&random) < 0.3) : 0;
        chances_observe_block(&chances, &usual, 2, accepted);
    }
    CHECK_NEAR(chances.kept[0], 0.7, 0.25);
    CHECK_NEAR(usual.kept[0], 0.7, 0.12);
    CHECK_NEAR(usual.kept[1], 0.3, 0.12);
    CHECK_NEAR(usual.kept[2], 0.5, 0); /* never tried */
    DraftChances next;
    chances_begin(&next, &usual);
    CHECK_NEAR(next.kept[0], usual.kept[0], 0); /* a new request starts from there */
    const double before = chances.kept[1];
    chances_observe_block(&chances, &usual, 2, 0); /* says nothing of the second draft */
    CHECK_NEAR(chances.kept[1], before, 0);
}

/* A copied token makes the match longer, and so concerns the next class. */
static void test_copy_classes(void) {
    DraftChances usual, chances;
    chances_reset(&usual, copy_source.first_chances);
    chances_begin(&chances, &usual);
    const DraftChances before = chances;
    copy_learn(&chances, &usual, 2, 2, true); /* matches of 2 and 3 went on, one of 4 ended */
    CHECK(chances.kept[0] > before.kept[0] && chances.kept[1] > before.kept[1] && chances.kept[2] < before.kept[2]);
    CHECK_NEAR(chances.kept[3], before.kept[3], 0);
    copy_learn(&chances, &usual, 60, 3, false);
    CHECK(chances.kept[COPY_CLASSES - 1] > before.kept[COPY_CLASSES - 1]);
    CHECK(usual.kept[COPY_CLASSES - 1] > before.kept[COPY_CLASSES - 1]);
}

/* Where the drafter does not pay it is tried now and then, ever more rarely while that fails. */
static void test_patience(void) {
    const Costs costs = default_costs();
    Options options = anything;
    options.match = 0;
    Chances usual = certain(0.05, 0.5), chances = usual;
    chances_begin(&chances.model, &usual.model);
    int last = -1, gap = 0, n_tries = 0;
    for (int cycle = 0; cycle < 3000; cycle++) {
        const Chosen choice = choose(&costs, &chances, &options);
        chances_observe_block(&chances.model, &usual.model, choice.length, 0);
        if (choice.source == NOTHING) continue;
        CHECK(choice.source == MODEL && choice.length == 1);
        CHECK(cycle - last >= gap); /* never shorter than before */
        gap = cycle - last;
        last = cycle;
        n_tries++;
    }
    CHECK(n_tries >= 10 && n_tries < 20 && gap > 200);
    /* The text turns easy: with its tries accepted, the drafter comes back, and with ever more drafts. */
    Chosen choice = {NOTHING, 0};
    for (int cycle = 0; cycle < 1000; cycle++) {
        choice = choose(&costs, &chances, &options);
        chances_observe_block(&chances.model, &usual.model, choice.length, choice.length);
    }
    CHECK(choice.source == MODEL && choice.length == LONGEST);
}

/* ---- the choice -------------------------------------------------------------------------------------- */

/* The best source and length by trying all of them. */
static Chosen search(const Costs *costs, const Chances *chances, const Options *options) {
    static const int first_of_class[COPY_CLASSES] = {2, 3, 4, 6, 9, 16};
    Chosen best = {NOTHING, 0};
    const int s = options->n_sessions;
    double best_rate = options->shortest ? 0 : 1.02 * s / pass_cost(costs, s);
    for (int source = MODEL; source <= COPY; source++)
        for (int k = 1; k <= options->longest && k <= (source == MODEL ? costs->draft.longest : 15); k++) {
            if (k < options->shortest || (source == MODEL ? !options->model : !options->match)) continue;
            double tokens = 1, reached = 1;
            for (int i = 0; i < k; i++) {
                int class = 0;
                while (class + 1 < COPY_CLASSES && first_of_class[class + 1] <= options->match + i) class++;
                reached *= source == MODEL ? chances->model.kept[i] : chances->copy.kept[class];
                tokens += reached;
            }
            double seconds = pass_cost(costs, s * (k + 1));
            if (source == MODEL) seconds += draft_cost(costs, k, s);
            if (s * tokens / seconds <= best_rate) continue;
            best_rate = s * tokens / seconds;
            best = (Chosen){(Source)source, k};
        }
    return best;
}

static void test_against_search(void) {
    Random random = {42};
    int chosen[3] = {0};
    for (int round = 0; round < 3000; round++) {
        double passes[N_MEASURED], sum = 1;
        for (int i = 0; i < N_MEASURED; i++) passes[i] = sum += random_unit(&random) * 0.5;
        const Costs costs = make_costs(passes, random_unit(&random), random_unit(&random) * 0.1,
                                       random_below(&random, 2) * (1 + random_below(&random, 15)));
        Chances chances = certain(0, 0);
        for (int i = 0; i < BEE_MAX_BLOCK; i++) chances.model.kept[i] = random_unit(&random);
        for (int i = 0; i < COPY_CLASSES; i++) chances.copy.kept[i] = random_unit(&random);
        Options options = {.model = random_below(&random, 2),
                           .match = random_below(&random, 2) * (2 + random_below(&random, 40)),
                           .longest = random_below(&random, 16),
                           .n_sessions = random_below(&random, 2) ? 1 : 1 + random_below(&random, 8)};
        if (random_below(&random, 3) == 0) options.shortest = options.longest;
        const Chosen expected = search(&costs, &chances, &options);
        const Chosen choice = choose(&costs, &chances, &options);
        CHECK(choice.source == expected.source && choice.length == expected.length);
        chosen[choice.source]++;
    }
    for (int i = 0; i < 3; i++) CHECK(chosen[i] > 200);
}

static void test_obvious_choices(void) {
    const Costs costs = default_costs();
    Chances chances = certain(1, 0);
    Chosen choice = choose(&costs, &chances, &anything);
    CHECK(choice.source == MODEL && choice.length == LONGEST);
    chances = certain(0.9, 1);
    choice = choose(&costs, &chances, &anything);
    CHECK(choice.source == COPY && choice.length == 15);
    chances = certain(0, 0);
    CHECK_EQ(choose(&costs, &chances, &anything).source, NOTHING);
    chances = certain(1, 1);
    Options nothing = anything;
    nothing.longest = 0; /* no room */
    CHECK_EQ(choose(&costs, &chances, &nothing).source, NOTHING);
    const double proportional[N_MEASURED] = {1, 2, 3, 4, 6, 8, 12, 16}; /* verifying costs what decoding does */
    const Costs dear = make_costs(proportional, 0.1, 0, LONGEST);
    CHECK_EQ(choose(&dear, &chances, &anything).source, NOTHING);
    Options crowd = anything; /* a pass that is full already has no cheap rows left */
    crowd.n_sessions = 16;
    chances = certain(0.6, 0.6);
    CHECK(choose(&costs, &chances, &anything).source != NOTHING);
    CHECK_EQ(choose(&costs, &chances, &crowd).source, NOTHING);
}

int main(void) {
    test_interpolation();
    test_completion();
    test_drift();
    test_factors();
    test_plain_cycles();
    test_chances();
    test_copy_classes();
    test_patience();
    test_against_search();
    test_obvious_choices();
    return check_report();
}
