/* What to draft, and how much: the offer and the number of tokens that gain most per second, nothing included.
 *
 * A cycle with k drafts yields 1 + p1 + p1 p2 + ... + p1 .. pk tokens, where p_i is the chance that the i-th draft is
 * accepted once those before it were. It costs a pass of the target over k + 1 rows, and drafting. The costs are
 * measured when the engine opens and corrected by what passes take later; the chances are learned while sessions
 * generate, and an engine carries them over from one request to the next. Drafts never change the output, so that the
 * choice may follow the clock. This file knows numbers alone: no engine, no source, no clock. */
#ifndef BEE_DRAFT_POLICY_H
#define BEE_DRAFT_POLICY_H

#include "bee.h"

/* ---- costs of passes ---------------------------------------------------------------------------- */

/* Rows of the passes whose cost is known; between them it is interpolated. */
enum { COST_POINTS = 11 };
extern const int cost_rows[COST_POINTS];

/* All in seconds. The factors follow the machine and the context: 1 is as measured when the engine opened. */
typedef struct PassCosts {
    double pass[COST_POINTS];   /* a pass of the target over cost_rows[i] rows, as measured */
    double factor[COST_POINTS]; /* what such a pass takes since, beside `drift` */
    double drift;               /* of all passes */
    int since_plain;            /* passes with drafts since one without */
    int plain_patience;         /* how many there may be */
} PassCosts;

/* After pass[0] and what else was measured were filled in: the rest, as it usually is. */
void pass_costs_complete(PassCosts *costs);

/* What a pass over cost_rows[point] rows usually costs where one over a single row costs `single`. */
double usual_cost(double single, int point);

/* One pass over so many rows, which several sessions may share. */
double cost_of_pass(const PassCosts *costs, int n_rows);

/* What a pass of the target took, with drafts among its rows or none. */
void pass_costs_observe(PassCosts *costs, int n_rows, bool drafted, double seconds);

/* ---- costs of drafts ---------------------------------------------------------------------------- */

/* Of a model that drafts; all zero for sources that cost nothing. */
typedef struct DraftCosts {
    double draft[BEE_MAX_BLOCK]; /* [k]: k drafts, and what comes with them in every cycle, as measured */
    double factor;               /* what they take since, beside the drift of the passes */
    int longest;                 /* drafts */
} DraftCosts;

/* After `longest` and what was measured were filled in: the rest. A draft of which nothing is known costs `share` of a
 * pass. */
void draft_costs_complete(DraftCosts *costs, const PassCosts *passes, double share);

/* k drafts for each of n_sessions, in one go. */
double cost_of_draft(const DraftCosts *costs, const PassCosts *passes, int k, int n_sessions);

/* What drafting took, where it was predicted to take `predicted`. */
void draft_costs_observe(DraftCosts *costs, double predicted, double seconds);

/* ---- chances ------------------------------------------------------------------------------------ */

/* Running estimates of one source: of its i-th draft, or of what else its drafts may be told apart by. */
typedef struct DraftChances {
    double kept[BEE_MAX_BLOCK];
    int idle;     /* cycles since the source was tried, or gave reason to try it */
    int patience; /* cycles that it may be idle */
} DraftChances;

/* What to expect of an engine that has not drafted yet. */
void chances_reset(DraftChances *chances, const double *first);

/* For a new request, after what requests showed before. */
void chances_begin(DraftChances *chances, const DraftChances *usual);

/* One draft of kind `i` was judged. `usual` learns more slowly. */
void chances_learn(DraftChances *chances, DraftChances *usual, int i, bool kept);

/* Learns from a cycle that verified `drafted` tokens of a block, of which the first `accepted` were kept; 0 of 0 where
 * its source was not asked. */
void chances_observe_block(DraftChances *chances, DraftChances *usual, int drafted, int accepted);

/* ---- the choice --------------------------------------------------------------------------------- */

/* What a source promises for the next cycle. */
typedef struct DraftOffer {
    int longest;  /* drafts */
    bool overdue; /* it was left out for so long that it is tried where nothing pays */
    bool urgent;  /* it may be about to pay: the choice must not be made before the last tokens are known */
    double chance[BEE_MAX_BLOCK];  /* [i]: that draft i + 1 is kept once those before it were */
    double seconds[BEE_MAX_BLOCK]; /* [k]: what k drafts for each of the sessions cost beside the pass */
} DraftOffer;

/* Of a model that drafts blocks, from its running estimates. */
DraftOffer offer_block(const PassCosts *passes, const DraftCosts *costs, const DraftChances *chances, int n_sessions);

/* What a session may do in its next cycle. */
typedef struct DraftLimits {
    int forced;            /* tokens that are certain to come first, whatever the source */
    int shortest, longest; /* drafts; where `shortest` is not 0, an offer that there is must be taken */
    int n_sessions;        /* that share the pass and are taken to do the same */
} DraftLimits;

typedef struct DraftChoice {
    int offer;  /* -1: none: nothing is drafted, or what is forced alone */
    int length; /* drafts, the forced ones among them */
} DraftChoice;

DraftChoice draft_choose(const PassCosts *costs, const DraftOffer *offers, int n_offers, const DraftLimits *limits);

#endif
