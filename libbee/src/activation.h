/* What a feed-forward does between its products. */
#ifndef BEE_ACTIVATION_H
#define BEE_ACTIVATION_H

typedef enum Activation {
    ACTIVATION_SILU, /* x / (1 + exp(-x)) */
    ACTIVATION_GELU, /* x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) */
    /* of gate and up together (gpt-oss): g / (1 + exp(-1.702 g)) * (u + 1), g at most 7, u between -7 and 7 */
    ACTIVATION_CLAMPED,
    ACTIVATION_LOGISTIC,     /* 1 / (1 + exp(-x)) */
    ACTIVATION_RELU_SQUARED, /* max(0, x)^2 */
} Activation;

#endif
