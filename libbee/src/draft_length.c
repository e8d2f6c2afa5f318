#include "draft_length.h"

/* Chances are exponential averages over about 1 / RATE cycles. Where drafting does not pay, one draft every PROBE
 * cycles finds out whether the text has become easier; it costs some 2 % of those cycles. Drafting must promise MARGIN
 * times plain decoding: the costs are estimates, and leave out the projection of accepted features. */
static const double RATE = 0.08, MARGIN = 1.1;
enum { PROBE = 24 };

void draft_chances_reset(DraftChances *chances) {
    /* Neither keen nor shy: on most machines it drafts a few tokens, whose fate soon corrects it. */
    for (int i = 0; i < BEE_MAX_BLOCK; i++) chances->accepted[i] = 0.5;
    chances->cycles_without = 0;
}

void draft_chances_observe(DraftChances *chances, int drafted, int accepted) {
    chances->cycles_without = drafted ? 0 : chances->cycles_without + 1;
    /* Draft i was judged only if those before it were kept. */
    for (int i = 0; i < drafted && i <= accepted; i++)
        chances->accepted[i] += RATE * ((i < accepted) - chances->accepted[i]);
}

int draft_length_choose(const DraftCosts *costs, const DraftChances *chances) {
    if (!costs->longest) return 0;
    double tokens = 1, reached = 1, best_rate = MARGIN / costs->seconds[0];
    int best = 0;
    for (int k = 1; k <= costs->longest; k++) {
        reached *= chances->accepted[k - 1];
        tokens += reached;
        if (tokens / costs->seconds[k] <= best_rate) continue;
        best_rate = tokens / costs->seconds[k];
        best = k;
    }
    return !best && chances->cycles_without >= PROBE ? 1 : best;
}
