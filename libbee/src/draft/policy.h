/* What to draft, and how much: the source and the number of tokens that gain most per second, nothing included.
 *
 * A cycle with k drafts yields 1 + p1 + p1 p2 + ... + p1 .. pk tokens, where p_i is the chance that the i-th draft is
 * accepted once those before it were. It costs a pass of the target over k + 1 rows, and drafting. The costs are
 * measured when the engine opens and corrected by what passes take later; the chances are learned while sessions
 * generate, and an engine carries them over from one request to the next. Drafts never change the output, so that the
 * choice may follow the clock. This file knows numbers alone: no engine, no clock. */
#ifndef BEE_DRAFT_LENGTH_H
#define BEE_DRAFT_LENGTH_H

#include "bee.h"
#include "copy.h"

/* ---- costs -------------------------------------------------------------------------------------- */

/* Rows of the passes whose cost is known; between them it is interpolated. */
enum { COST_POINTS = 11 };
extern const int cost_rows[COST_POINTS];

/* All in seconds. The factors follow the machine and the context: 1 is as measured when the engine opened. */
typedef struct DraftCosts {
    double pass[COST_POINTS];    /* a pass of the target over cost_rows[i] rows, as measured */
    double factor[COST_POINTS];  /* what such a pass takes since, beside `drift` */
    double drift;                /* of all passes */
    double draft[BEE_MAX_BLOCK]; /* [k]: k drafts of the drafter and the projection that comes with them, as measured */
    double draft_factor;         /* what a draft takes since, beside `drift` */
    int longest;                 /* drafts of the drafter; 0 without one */
    int since_plain;             /* passes with drafts since one without */
    int plain_patience;          /* how many there may be */
} DraftCosts;

/* After pass[0], `longest`, and what else was measured of `pass` and `draft` were filled in: the rest, as it usually
 * is. A draft of which nothing is known costs `draft_share` of a pass. */
void costs_complete(DraftCosts *costs, double draft_share);

/* What a pass over cost_rows[point] rows usually costs where one over a single row costs `single`. */
double usual_cost(double single, int point);

/* One pass over so many rows, which several sessions may share. */
double cost_of_pass(const DraftCosts *costs, int n_rows);

/* k drafts for each of n_sessions, in one pass of the drafter. */
double cost_of_draft(const DraftCosts *costs, int k, int n_sessions);

/* What a pass of the target took, with drafts among its rows or none, and what drafting took, where it was predicted to
 * take `predicted`. */
void costs_observe_pass(DraftCosts *costs, int n_rows, bool drafted, double seconds);
void costs_observe_draft(DraftCosts *costs, double predicted, double seconds);

/* ---- chances ------------------------------------------------------------------------------------ */

enum { COPY_CLASSES = 6 };

/* Running estimates. */
typedef struct DraftChances {
    double model[BEE_MAX_BLOCK]; /* [i]: p_(i + 1) of the drafter */
    double copy[COPY_CLASSES];   /* that the token after a match of such a length follows again */
    int idle;                    /* cycles since the drafter was tried, or gave reason to try it */
    int patience;                /* cycles that it may be idle */
} DraftChances;

/* What to expect of an engine that has not drafted yet. */
void chances_reset(DraftChances *chances);

/* For a new request, after what requests showed before. */
void chances_begin(DraftChances *chances, const DraftChances *usual);

/* Learns from a cycle that verified `drafted` tokens of the drafter, of which the first `accepted` were kept; 0 of 0
 * where it was not asked. `usual` learns more slowly. */
void chances_observe_model(DraftChances *chances, DraftChances *usual, int drafted, int accepted);

/* Learns from a match of `length` tokens after which the first `agreed` tokens followed again and, if `ended`, the next
 * one did not. Whether they were drafted makes no difference: the copy is known either way. */
void chances_observe_copy(DraftChances *chances, DraftChances *usual, int length, int agreed, bool ended);

/* ---- the choice --------------------------------------------------------------------------------- */

/* DRAFT_FORCED: what a constraint knows, and no other source behind it. */
typedef enum DraftSource { DRAFT_NOTHING, DRAFT_MODEL, DRAFT_COPY, DRAFT_FORCED } DraftSource;

typedef struct DraftChoice {
    DraftSource source;
    int length;
} DraftChoice;

/* What a session may do in its next cycle. */
typedef struct DraftOptions {
    bool model;            /* ask the drafter */
    int match;             /* tokens of the longest match to copy after; 0: there is nothing to copy */
    int forced;            /* tokens that are certain to come first, whatever the source; 0 where there is a match */
    int shortest, longest; /* drafts; where `shortest` is not 0, a source that there is must be used */
    int n_sessions;        /* that share the pass and are taken to do the same */
} DraftOptions;

DraftChoice draft_choose(const DraftCosts *costs, const DraftChances *chances, const DraftOptions *options);

#endif
