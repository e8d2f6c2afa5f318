/* A token from a whole row of logits at once. */
#ifndef SAMPLE_ROW_H
#define SAMPLE_ROW_H

#include <stdlib.h>

#include "sampling/sample.h"

static inline int32_t sample_row(const float *logits, int n, const int32_t *ids, const bee_sampling *sampling,
                                 int32_t position, const Reductions *reductions) {
    const Draw draw = {logits, ids, n, sampling, position, reductions};
    const Best whole = sample_part(&draw, 0, n);
    Candidate *room = malloc((size_t)n * sizeof *room);
    const int32_t token = sample_finish(&draw, &whole, 1, room);
    free(room);
    return token;
}

#endif
