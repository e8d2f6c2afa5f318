/* How many tokens to draft: the number that gains most per second, zero included.
 *
 * A cycle with k drafts yields 1 + p1 + p1 p2 + ... + p1 .. pk tokens, where p_i is the chance that the i-th draft is
 * accepted once those before it were, and costs a pass over k + 1 rows and a draft of k. The costs are measured when
 * the engine opens, the chances while a session generates. Drafts never change the output, so the choice may follow the
 * clock. */
#ifndef BEE_DRAFT_LENGTH_H
#define BEE_DRAFT_LENGTH_H

#include "bee.h"

/* Seconds of a cycle with k drafts; [0] is plain decoding. */
typedef struct DraftCosts {
    double seconds[BEE_MAX_BLOCK];
    int longest; /* drafts; 0 without a drafter */
} DraftCosts;

/* A session's running estimate of p_1 .. p_15, at [0] .. [14]. */
typedef struct DraftChances {
    double accepted[BEE_MAX_BLOCK];
    int cycles_without; /* since a draft was last tried */
} DraftChances;

void draft_chances_reset(DraftChances *chances);

/* Learns from a cycle that proposed `drafted` tokens, of which the first `accepted` were kept. */
void draft_chances_observe(DraftChances *chances, int drafted, int accepted);

int draft_length_choose(const DraftCosts *costs, const DraftChances *chances);

#endif
