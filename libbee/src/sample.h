/* Choosing a token from logits: argmax of logits / temperature + Gumbel noise over the tokens that the
 * truncations leave. */
#ifndef BEE_SAMPLE_H
#define BEE_SAMPLE_H

#include "bee.h"

/* Reductions that the backend's instruction set offers. */
typedef struct Reductions {
    float (*largest)(const float *x, int n);
    float (*sum_exp)(const float *x, int n, float shift);
} Reductions;

/* Gumbel noise of a token at a position: -log(-log(u)), u from a counter-based hash of the three. */
double gumbel_noise(uint64_t seed, int32_t position, int32_t token);

/* The token for `position`: logits float[n]; entry i stands for token ids[i], or i where ids is NULL. Equal scores
 * go to the lower entry. Returns -1 where the largest logit is not finite. */
int32_t sample_token(const float *logits, int n, const int32_t *ids, const bee_sampling *sampling, int32_t position,
                     const Reductions *reductions);

/* BEE_OK, or which parameter is out of range. */
bee_status sampling_check(const bee_sampling *sampling, bee_error *error);

#endif
