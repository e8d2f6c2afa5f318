/* What to draft, and how much: against a search of all choices, on costs and texts that are made up here. */
#include "check.h"
#include "draft/policy.h"
#include "random.h"

/* Seconds of passes over 1, 2, 3, 4, 6, 8, 12 and 16 rows. */
enum { N_MEASURED = 8, LONGEST = 7 };
static const double usual_passes[N_MEASURED] = {1, 1.15, 1.25, 1.35, 1.7, 1.95, 2.7, 3.3};

static DraftCosts make_costs(const double *passes, double first_draft, double next_draft, int longest) {
    DraftCosts costs = {.longest = longest};
    for (int i = 0; i < N_MEASURED; i++) costs.pass[i] = passes[i];
    for (int k = 1; k <= longest; k++) costs.draft[k] = first_draft + next_draft * (k - 1);
    costs_complete(&costs, 0);
    return costs;
}

static DraftCosts default_costs(void) { return make_costs(usual_passes, 0.27, 0.02, LONGEST); }

static DraftChances certain(double model, double copy) {
    DraftChances chances;
    chances_reset(&chances);
    for (int i = 0; i < BEE_MAX_BLOCK; i++) chances.model[i] = model;
    for (int i = 0; i < COPY_CLASSES; i++) chances.copy[i] = copy;
    return chances;
}

static const DraftOptions anything = {.model = true, .match = 5, .shortest = 0, .longest = 15, .n_sessions = 1};

/* ---- costs ------------------------------------------------------------------------------------------- */

static void test_interpolation(void) {
    const DraftCosts costs = default_costs();
    for (int i = 0; i < N_MEASURED; i++) CHECK_NEAR(cost_of_pass(&costs, cost_rows[i]), usual_passes[i], 1e-12);
    CHECK_NEAR(cost_of_pass(&costs, 5), (1.35 + 1.7) / 2, 1e-12);
    CHECK_NEAR(cost_of_pass(&costs, 13), 2.7 + 0.6 / 4, 1e-12);
    CHECK_NEAR(cost_of_pass(&costs, 32), 6.6, 1e-12); /* beyond what was measured: in proportion */
    CHECK_NEAR(cost_of_pass(&costs, 128), 26.4, 1e-9);
    CHECK_NEAR(cost_of_draft(&costs, 3, 1), 0.31, 1e-12);
    CHECK_NEAR(cost_of_draft(&costs, 3, 4), 0.31 * 3.3 / 1.35, 1e-12); /* 16 rows instead of 4 */
    CHECK_NEAR(cost_of_draft(&costs, 0, 1), 0, 0);
    for (int n = 2; n <= 128; n++) CHECK(cost_of_pass(&costs, n) >= cost_of_pass(&costs, n - 1));
}

/* Noise that makes more rows look cheaper is taken out; drafts that were not measured lie between the others. */
static void test_completion(void) {
    const double noisy[N_MEASURED] = {1, 1.2, 1.1, 1.3, 1.2, 1.9, 2.7, 3.3};
    DraftCosts costs = make_costs(noisy, 0.3, 0, 0);
    CHECK_NEAR(cost_of_pass(&costs, 3), 1.2, 1e-12);
    CHECK_NEAR(cost_of_pass(&costs, 6), 1.3, 1e-12);
    costs.longest = 10;
    const double measured[BEE_MAX_BLOCK] = {[1] = 0.2, [2] = 0.1, [3] = 0.3, [5] = 0.5, [7] = 0.9};
    memcpy(costs.draft, measured, sizeof measured);
    costs_complete(&costs, 0);
    const double expected[] = {0.2, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5};
    for (int k = 1; k <= 10; k++) CHECK_NEAR(cost_of_draft(&costs, k, 1), expected[k - 1], 1e-12);
    /* A machine too slow to measure more than single rows, and then one row and eight: the others in proportion. */
    DraftCosts single = {.pass = {0.5}, .longest = 3};
    costs_complete(&single, 0.2);
    CHECK_NEAR(cost_of_pass(&single, 16), 0.5 * 3.3, 1e-12);
    CHECK_NEAR(cost_of_draft(&single, 1, 1), 0.2 * 0.5 * 1.15, 1e-12);
    CHECK(cost_of_draft(&single, 3, 1) >= cost_of_draft(&single, 1, 1));
    DraftCosts two = {.pass = {[0] = 0.5, [5] = 2 * 0.5 * 1.95}};
    costs_complete(&two, 0);
    CHECK_NEAR(cost_of_pass(&two, 4), 0.5 * 1.35, 1e-12);
    CHECK_NEAR(cost_of_pass(&two, 12), 2 * 0.5 * 2.7, 1e-12);
}

/* A machine that is twice as slow changes all costs alike, and so no choice. */
static void test_drift(void) {
    DraftCosts costs = default_costs();
    for (int i = 0; i < 200; i++) costs_observe_pass(&costs, 1, false, 2);
    CHECK_NEAR(cost_of_pass(&costs, 1), 2, 0.02);
    CHECK(cost_of_pass(&costs, 4) > 1.2 * 1.35);
    const double before = cost_of_pass(&costs, 1);
    costs_observe_pass(&costs, 1, false, 1000); /* a pass that was held up for long */
    CHECK(cost_of_pass(&costs, 1) < 1.15 * before);
    for (int i = 0; i < 10000; i++) costs_observe_pass(&costs, 1, false, i % 2 ? 1e-9 : 1e9);
    CHECK(isfinite(cost_of_pass(&costs, 1)) && cost_of_pass(&costs, 1) > 0);
}

/* Two lengths in turn, one of them 20 % dearer than measured: that shows, and is forgotten when it no longer runs. */
static void test_factors(void) {
    DraftCosts costs = default_costs();
    for (int i = 0; i < 400; i++) costs_observe_pass(&costs, i % 2 ? 4 : 1, i % 2, i % 2 ? 1.35 * 1.2 : 1);
    CHECK_NEAR(cost_of_pass(&costs, 4) / cost_of_pass(&costs, 1), 1.35 * 1.2, 0.03);
    for (int i = 0; i < 5000; i++) costs_observe_pass(&costs, 1, false, 1);
    CHECK_NEAR(costs.factor[3], 1, 0.01);
    for (int i = 0; i < 400; i++) costs_observe_pass(&costs, i % 2 ? 4 : 1, i % 2, i % 2 ? 100 : 1);
    CHECK(costs.factor[3] <= 3 && costs.factor[0] >= 1.0 / 3);
    costs = default_costs();
    double predicted = cost_of_draft(&costs, 3, 1);
    for (int i = 0; i < 200; i++, predicted = cost_of_draft(&costs, 3, 1)) costs_observe_draft(&costs, predicted, 0.2);
    CHECK_NEAR(predicted, 0.2, 0.02);
}

/* A machine was busy when the costs were measured, and all lengths seemed alike. Plain cycles in between show what they
 * cost, so that drafts which do not pay are given up; while they cost what is believed they become rare. */
static void test_plain_cycles(void) {
    const double all_alike[N_MEASURED] = {5, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6, 5.7};
    const DraftCosts truth = default_costs();
    const DraftChances chances = certain(0.1, 0.1);
    DraftCosts costs = make_costs(all_alike, 0.3, 0.01, LONGEST);
    CHECK(draft_choose(&costs, &chances, &anything).length > 0);
    int drafted = 0;
    for (int i = 0; i < 400; i++) {
        const int k = draft_choose(&costs, &chances, &anything).length;
        costs_observe_pass(&costs, k + 1, k > 0, cost_of_pass(&truth, k + 1));
        if (i >= 300) drafted += k;
    }
    CHECK_EQ(drafted, 0);

    const DraftChances good = certain(0.9, 0.9);
    int plain = 0, plain_at_first = 0;
    costs = truth;
    for (int i = 0; i < 3000; i++) {
        const int k = draft_choose(&costs, &good, &anything).length;
        costs_observe_pass(&costs, k + 1, k > 0, cost_of_pass(&truth, k + 1));
        plain += !k;
        plain_at_first += !k && i < 100;
    }
    CHECK(plain_at_first >= 2 && plain > plain_at_first && plain < 15);
    DraftOptions fixed = anything; /* a number that was asked for is kept */
    fixed.shortest = fixed.longest = 3;
    costs.since_plain = costs.plain_patience;
    CHECK_EQ(draft_choose(&costs, &good, &fixed).length, 3);
    CHECK_EQ(draft_choose(&costs, &good, &anything).length, 0);
}

/* ---- chances ----------------------------------------------------------------------------------------- */

static void test_chances(void) {
    Random random = {41};
    DraftChances usual, chances;
    chances_reset(&usual);
    chances_begin(&chances, &usual);
    for (int i = 0; i < 3000; i++) { /* the first draft is kept with 0.7, the second one then with 0.3 */
        const int accepted = random_unit(&random) < 0.7 ? 1 + (random_unit(&random) < 0.3) : 0;
        chances_observe_model(&chances, &usual, 2, accepted);
    }
    CHECK_NEAR(chances.model[0], 0.7, 0.25);
    CHECK_NEAR(usual.model[0], 0.7, 0.12);
    CHECK_NEAR(usual.model[1], 0.3, 0.12);
    CHECK_NEAR(usual.model[2], 0.5, 0); /* never tried */
    DraftChances next;
    chances_begin(&next, &usual);
    CHECK_NEAR(next.model[0], usual.model[0], 0); /* a new request starts from there */
    const double before = chances.model[1];
    chances_observe_model(&chances, &usual, 2, 0); /* says nothing of the second draft */
    CHECK_NEAR(chances.model[1], before, 0);
}

/* A copied token makes the match longer, and so concerns the next class. */
static void test_copy_classes(void) {
    DraftChances usual, chances;
    chances_reset(&usual);
    chances_begin(&chances, &usual);
    const DraftChances before = chances;
    chances_observe_copy(&chances, &usual, 2, 2, true); /* matches of 2 and 3 went on, one of 4 ended */
    CHECK(chances.copy[0] > before.copy[0] && chances.copy[1] > before.copy[1] && chances.copy[2] < before.copy[2]);
    CHECK_NEAR(chances.copy[3], before.copy[3], 0);
    chances_observe_copy(&chances, &usual, 60, 3, false);
    CHECK(chances.copy[COPY_CLASSES - 1] > before.copy[COPY_CLASSES - 1]);
    CHECK(usual.copy[COPY_CLASSES - 1] > before.copy[COPY_CLASSES - 1]);
}

/* Where the drafter does not pay it is tried now and then, ever more rarely while that fails. */
static void test_patience(void) {
    const DraftCosts costs = default_costs();
    DraftOptions options = anything;
    options.match = 0;
    DraftChances usual = certain(0.05, 0.5), chances;
    chances_begin(&chances, &usual);
    int last = -1, gap = 0, n_tries = 0;
    for (int cycle = 0; cycle < 3000; cycle++) {
        const DraftChoice choice = draft_choose(&costs, &chances, &options);
        chances_observe_model(&chances, &usual, choice.length, 0);
        if (choice.source == DRAFT_NOTHING) continue;
        CHECK(choice.source == DRAFT_MODEL && choice.length == 1);
        CHECK(cycle - last >= gap); /* never shorter than before */
        gap = cycle - last;
        last = cycle;
        n_tries++;
    }
    CHECK(n_tries >= 10 && n_tries < 20 && gap > 200);
    /* The text turns easy: with its tries accepted, the drafter comes back, and with ever more drafts. */
    DraftChoice choice = {DRAFT_NOTHING, 0};
    for (int cycle = 0; cycle < 1000; cycle++) {
        choice = draft_choose(&costs, &chances, &options);
        chances_observe_model(&chances, &usual, choice.length, choice.length);
    }
    CHECK(choice.source == DRAFT_MODEL && choice.length == LONGEST);
}

/* ---- the choice -------------------------------------------------------------------------------------- */

/* The best source and length by trying all of them. */
static DraftChoice search(const DraftCosts *costs, const DraftChances *chances, const DraftOptions *options) {
    static const int first_of_class[COPY_CLASSES] = {2, 3, 4, 6, 9, 16};
    DraftChoice best = {DRAFT_NOTHING, 0};
    const int s = options->n_sessions;
    double best_rate = options->shortest ? 0 : 1.02 * s / cost_of_pass(costs, s);
    for (int source = DRAFT_MODEL; source <= DRAFT_COPY; source++)
        for (int k = 1; k <= options->longest && k <= (source == DRAFT_MODEL ? costs->longest : 15); k++) {
            if (k < options->shortest || (source == DRAFT_MODEL ? !options->model : !options->match)) continue;
            double tokens = 1, reached = 1;
            for (int i = 0; i < k; i++) {
                int class = 0;
                while (class + 1 < COPY_CLASSES && first_of_class[class + 1] <= options->match + i) class++;
                reached *= source == DRAFT_MODEL ? chances->model[i] : chances->copy[class];
                tokens += reached;
            }
            double seconds = cost_of_pass(costs, s * (k + 1));
            if (source == DRAFT_MODEL) seconds += cost_of_draft(costs, k, s);
            if (s * tokens / seconds <= best_rate) continue;
            best_rate = s * tokens / seconds;
            best = (DraftChoice){(DraftSource)source, k};
        }
    return best;
}

static void test_against_search(void) {
    Random random = {42};
    int chosen[3] = {0};
    for (int round = 0; round < 3000; round++) {
        double passes[N_MEASURED], sum = 1;
        for (int i = 0; i < N_MEASURED; i++) passes[i] = sum += random_unit(&random) * 0.5;
        const DraftCosts costs = make_costs(passes, random_unit(&random), random_unit(&random) * 0.1,
                                            random_below(&random, 2) * (1 + random_below(&random, 15)));
        DraftChances chances = certain(0, 0);
        for (int i = 0; i < BEE_MAX_BLOCK; i++) chances.model[i] = random_unit(&random);
        for (int i = 0; i < COPY_CLASSES; i++) chances.copy[i] = random_unit(&random);
        DraftOptions options = {.model = random_below(&random, 2),
                                .match = random_below(&random, 2) * (2 + random_below(&random, 40)),
                                .longest = random_below(&random, 16),
                                .n_sessions = random_below(&random, 2) ? 1 : 1 + random_below(&random, 8)};
        if (random_below(&random, 3) == 0) options.shortest = options.longest;
        const DraftChoice expected = search(&costs, &chances, &options);
        const DraftChoice choice = draft_choose(&costs, &chances, &options);
        CHECK(choice.source == expected.source && choice.length == expected.length);
        chosen[choice.source]++;
    }
    for (int i = 0; i < 3; i++) CHECK(chosen[i] > 200);
}

static void test_obvious_choices(void) {
    const DraftCosts costs = default_costs();
    DraftChances chances = certain(1, 0);
    DraftChoice choice = draft_choose(&costs, &chances, &anything);
    CHECK(choice.source == DRAFT_MODEL && choice.length == LONGEST);
    chances = certain(0.9, 1);
    choice = draft_choose(&costs, &chances, &anything);
    CHECK(choice.source == DRAFT_COPY && choice.length == 15);
    chances = certain(0, 0);
    CHECK_EQ(draft_choose(&costs, &chances, &anything).source, DRAFT_NOTHING);
    chances = certain(1, 1);
    DraftOptions nothing = anything;
    nothing.longest = 0; /* no room */
    CHECK_EQ(draft_choose(&costs, &chances, &nothing).source, DRAFT_NOTHING);
    const double proportional[N_MEASURED] = {1, 2, 3, 4, 6, 8, 12, 16}; /* verifying costs what decoding does */
    const DraftCosts dear = make_costs(proportional, 0.1, 0, LONGEST);
    CHECK_EQ(draft_choose(&dear, &chances, &anything).source, DRAFT_NOTHING);
    DraftOptions crowd = anything; /* a pass that is full already has no cheap rows left */
    crowd.n_sessions = 16;
    chances = certain(0.6, 0.6);
    CHECK(draft_choose(&costs, &chances, &anything).source != DRAFT_NOTHING);
    CHECK_EQ(draft_choose(&costs, &chances, &crowd).source, DRAFT_NOTHING);
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
