/* Functions of single numbers that kernels of several files share. */
#ifndef BEE_CUDA_POINTWISE_H
#define BEE_CUDA_POINTWISE_H

#include "activation.h"
#include "device.h"

/* What a feed-forward does between its products: activation(gate) * up. */
static __device__ __forceinline__ float gated(Activation activation, float gate, float up) {
    if (activation == ACTIVATION_GELU) { /* x / 2 (1 + tanh u) = x / (1 + exp(-2 u)) */
        const float twice = 2 * 0.7978845608f * gate * fused(gate * gate, 0.044715f, 1.0f);
        return gate / (1.0f + expf(-twice)) * up;
    }
    if (activation == ACTIVATION_CLAMPED) { /* NaN stays what it is */
        const float g = gate > 7.0f ? 7.0f : gate, u = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
        return g / (1.0f + expf(-1.702f * g)) * (u + 1.0f);
    }
    return gate / (1.0f + expf(-gate)) * up;
}

static __device__ __forceinline__ float capped(float x, float softcap) { return softcap * tanhf(x / softcap); }

#endif
