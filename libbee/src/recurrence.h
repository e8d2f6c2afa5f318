/* What a recurrent layer computes, and what it remembers for that. */
#ifndef BEE_RECURRENCE_H
#define BEE_RECURRENCE_H

#include <stdbool.h>
#include <stddef.h>

enum { MAX_KERNEL = 16, MAX_STATE_SIZE = 512 }; /* rows of a convolution; sides of a state */

/* What a recurrent layer remembers. A row has `channels` inputs, each of which a causal convolution mixes with those of
 * the kernel - 1 rows before it, and `input_floats` in all. Then every head has a state of key_size x value_size,
 *
 *     state = decay state + key (rate (value - decay state' key))'       the gated delta rule (arXiv 2412.06464),
 *     state = decay state + key (rate value)'                            Mamba-2 (arXiv 2405.21060),
 *
 * and gives state' query. Queries, keys and values are convolved inputs; steps and rates come behind these. */
typedef struct Recurrence {
    int kernel, channels, input_floats;
    int n_heads, n_key_heads; /* 0 heads: a convolution alone */
    int key_size, value_size;
    int query_at, key_at, value_at; /* the first head's, among the inputs */
    int step_at, rate_at;           /* a number for each head */
    bool corrects;                  /* the delta rule: queries and keys have length 1; rate = 1 / (1 + exp(-input)) */
    bool alternating;               /* head m reads keys m % n_key_heads; otherwise as many heads in turn read one's */
    float eps;                      /* of those lengths, and of the norm of a head's results */
    const float *taps;              /* [kernel][channels] */
    const float *tap_bias;          /* [channels]; NULL: 0 */
    const float *decay, *step_bias; /* [n_heads]: decay = exp(`decay` step), step = log(1 + exp(input + bias)) */
    const float *skip; /* [n_heads]: skip * value is added to results; NULL: nothing is. The rate is step */
    const float *gain; /* [value_size]: results are normed; NULL: they are not */
    int index;         /* among the layers that have states */
    size_t first_state, first_kept; /* where this layer's numbers begin in a cache */
} Recurrence;

static inline size_t state_floats(const Recurrence *r) {
    return (size_t)(r->kernel - 1) * r->channels + (size_t)r->n_heads * r->key_size * r->value_size;
}

#endif
