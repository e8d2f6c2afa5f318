/* Functions of single numbers that kernels of several files share. */
#ifndef BEE_CUDA_POINTWISE_H
#define BEE_CUDA_POINTWISE_H

#include "activation.h"
#include "device.h"

/* Of one number: every activation but the clamped one. NaN stays what it is. */
static __device__ __forceinline__ float activated(Activation activation, float x) {
    if (activation == ACTIVATION_GELU) { /* x / 2 (1 + tanh u) = x / (1 + exp(-2 u)) */
        const float twice = 2 * 0.7978845608f * x * fused(x * x, 0.044715f, 1.0f);
        return x / (1.0f + expf(-twice));
    }
    if (activation == ACTIVATION_RELU_SQUARED) return x < 0.0f ? 0.0f : x * x;
    if (activation == ACTIVATION_LOGISTIC) return 1.0f / (1.0f + expf(-x));
    return x / (1.0f + expf(-x));
}

/* What a feed-forward does between its products: activation(gate) * up. */
static __device__ __forceinline__ float gated(Activation activation, float gate, float up) {
    if (activation == ACTIVATION_CLAMPED) { /* NaN stays what it is */
        const float g = gate > 7.0f ? 7.0f : gate, u = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
        return g / (1.0f + expf(-1.702f * g)) * (u + 1.0f);
    }
    return activated(activation, gate) * up;
}

static __device__ __forceinline__ float capped(float x, float softcap) { return softcap * tanhf(x / softcap); }

#endif
