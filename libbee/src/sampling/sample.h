/* Choosing a token from logits: argmax of logits / temperature + Gumbel noise over the tokens that the
 * truncations leave. */
#ifndef BEE_SAMPLE_H
#define BEE_SAMPLE_H

#include "bee.h"

/* Reductions that the backend's instruction set offers. */
typedef struct Reductions {
    float (*largest)(const float *x, int n);
    float (*sum_exp)(const float *x, int n, float shift);
    /* Whether one of 16 entries, of the tokens ids[0 .. 16) or first .. first + 15, may have a score above
     * `lead` + top / temperature, where `top` is at least their largest logit. Never false where one has. */
    bool (*may_win)(const float *logits, const int32_t *ids, int32_t first, float top, float inverse_temperature,
                    uint64_t key, float lead);
} Reductions;

/* The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
static inline uint64_t mix_bits(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* 64 random bits of a token, from the key of a seed and a position: its noise is -log(-log(u)), and u the first 52. */
static inline uint64_t token_bits(uint64_t key, int32_t token) {
    return mix_bits(key + ((uint64_t)(uint32_t)token + 1) * 0x9e3779b97f4a7c15);
}

/* Gumbel noise of a token at a position. */
double gumbel_noise(uint64_t seed, int32_t position, int32_t token);

/* One row of logits, float[n], and what is chosen from it: the token for `position`. Entry i stands for token ids[i],
 * or i where ids is NULL. Equal scores go to the lower entry. */
typedef struct Draw {
    const float *logits;
    const int32_t *ids;
    int n;
    const bee_sampling *sampling;
    int32_t position;
    const Reductions *reductions;
} Draw;

/* What a part of a row comes to. */
typedef struct Best {
    float largest; /* logit; NaN where one is */
    int entry;     /* of the highest score; -1 where that is not found in parts, because the row must be truncated */
    double score;
} Best;

typedef struct Candidate {
    float logit;
    int32_t entry;
} Candidate;

/* A row in two steps: parts of it, in any order, and then all of their results, in the order of their entries. `room`
 * is for the n candidates of a truncation. The token, or -1 where the largest logit is not finite. */
Best sample_part(const Draw *draw, int first, int last);
int32_t sample_finish(const Draw *draw, const Best *parts, int n_parts, Candidate *room);

/* BEE_OK, or which parameter is out of range. */
bee_status sampling_check(const bee_sampling *sampling, bee_error *error);

#endif
