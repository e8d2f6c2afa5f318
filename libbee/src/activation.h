/* What a feed-forward does between its products. */
#ifndef BEE_ACTIVATION_H
#define BEE_ACTIVATION_H

typedef enum Activation {
    ACTIVATION_SILU, /* x / (1 + exp(-x)) */
    ACTIVATION_GELU, /* x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) */
} Activation;

#endif
