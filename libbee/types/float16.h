/* Half-precision conversions in plain C: IEEE 754 binary16 (round to nearest, ties to even) and bfloat16. */
#ifndef BEE_FLOAT16_H
#define BEE_FLOAT16_H

#include <stdint.h>
#include <string.h>

static inline float float_from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t bits_from_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static inline float float_from_bf16(uint16_t h) { return float_from_bits((uint32_t)h << 16); }

static inline float float_from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return float_from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    const float tiny = (float)mantissa * 0x1p-24f; /* zero and subnormals */
    return sign ? -tiny : tiny;
}

static inline uint16_t f16_from_float(float f) {
    const uint32_t bits = bits_from_float(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);  /* NaN */
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and up round to infinity */
    if (magnitude < 0x38800000) {                                  /* below 2^-14: a multiple of 2^-24 */
        /* Adding 0.5 puts the value's last kept bit at the end of the mantissa; the addition rounds. */
        return (uint16_t)(sign | (bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000));
    }
    const uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xfff + odd) >> 13);
}

#endif
