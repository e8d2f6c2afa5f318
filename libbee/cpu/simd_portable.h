/* Sixteen lanes in plain C loops, for any machine. The operations are described in simd_avx512.h. */
#include <math.h>

#include "types/float16.h"

#define ISA_NAME "portable"
#define ISA_KERNELS bee_kernels_portable
#define STEP_ROWS 16
#define REGISTER_TOKENS 4
#define ONE_TILE 1
#define TWO_CHAINS_BELOW 0
#define CHAINS 2
#define FLOAT_SUMS 6
#define HIGH_NIBBLE 16
#define WIDE_ZERO 128

typedef struct VF {
    float v[16];
} VF;
typedef struct VI {
    int32_t v[16];
} VI;
typedef struct RCODES {
    uint8_t v[64];
} RCODES;

#define LANES(type, expression)                           \
    type out;                                             \
    for (int i = 0; i < 16; i++) out.v[i] = (expression); \
    return out

INLINE VF vf_load(const float *p) { LANES(VF, p[i]); }
INLINE void vf_store(float *p, VF a) { memcpy(p, a.v, sizeof a.v); }
INLINE VF vf_set(float a) { LANES(VF, a); }
INLINE VF vf_add(VF a, VF b) { LANES(VF, a.v[i] + b.v[i]); }
INLINE VF vf_sub(VF a, VF b) { LANES(VF, a.v[i] - b.v[i]); }
INLINE VF vf_mul(VF a, VF b) { LANES(VF, a.v[i] * b.v[i]); }
INLINE VF vf_div(VF a, VF b) { LANES(VF, a.v[i] / b.v[i]); }
/* Two roundings: a fused one would be a library call on machines without the instruction. */
INLINE VF vf_fma(VF a, VF b, VF c) { LANES(VF, a.v[i] * b.v[i] + c.v[i]); }
INLINE VF vf_max(VF a, VF b) { LANES(VF, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE VF vf_abs(VF a) { LANES(VF, fabsf(a.v[i])); }
/* Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, for |a| < 2^22. */
INLINE VF vf_round(VF a) { LANES(VF, (a.v[i] + 12582912.0f) - 12582912.0f); }
/* n in [-126, 127], or NaN: then any power will do. */
INLINE float power_of_two(float n) {
    const uint32_t bits = (uint32_t)((n >= -126 ? (int32_t)n : 0) + 127) << 23;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
INLINE VF vf_scale2(VF a, VF n) { LANES(VF, a.v[i] * power_of_two(n.v[i])); }
INLINE VF vf_from_vi(VI a) { LANES(VF, (float)a.v[i]); }
INLINE VF vf_load_f16(const uint16_t *p) { LANES(VF, float_from_f16(p[i])); }
INLINE void vf_store_f16(uint16_t *p, VF a) {
    for (int i = 0; i < 16; i++) p[i] = f16_from_float(a.v[i]);
}
INLINE VF vf_load_bf16(const uint16_t *p) { LANES(VF, float_from_bf16(p[i])); }
INLINE VF vf_keep(VF a, int n, float fill) { LANES(VF, i < n ? a.v[i] : fill); }
INLINE float vf_sum(VF a) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) a.v[i] += a.v[i + width];
    return a.v[0];
}
INLINE float vf_largest(VF a) {
    float largest = a.v[0];
    for (int i = 1; i < 16; i++) largest = a.v[i] > largest ? a.v[i] : largest;
    return largest;
}

INLINE VI vi_set(int32_t a) { LANES(VI, a); }
INLINE VI vi_add(VI a, VI b) { LANES(VI, a.v[i] + b.v[i]); }
INLINE void vf_store_int8(int8_t *p, VF a) {
    const VF rounded = vf_round(a);
    for (int i = 0; i < 16; i++)
        p[i] = rounded.v[i] >= -127 && rounded.v[i] <= 127 ? (int8_t)rounded.v[i] : 0; /* NaN: 0 */
}
INLINE bool vf_finite(VF a) {
    bool finite = true;
    for (int i = 0; i < 16; i++) finite = finite && isfinite(a.v[i]);
    return finite;
}
INLINE void sum_halves(const int8_t *p, int32_t sums[2]) {
    sums[0] = sums[1] = 0;
    for (int i = 0; i < 32; i++) sums[i / 16] += p[i];
}

INLINE VI ri_load(const uint8_t *p) {
    VI out;
    memcpy(out.v, p, sizeof out.v);
    return out;
}
INLINE VI ri_load_int8(const uint8_t *p) { LANES(VI, (int8_t)p[i]); }
INLINE VI ri_load_u8(const uint8_t *p) { LANES(VI, p[i]); }
INLINE VI ri_load_u16(const uint8_t *p) { LANES(VI, p[2 * i] | p[2 * i + 1] << 8); }
INLINE VI ri_left(VI a, int n) { LANES(VI, (int32_t)((uint32_t)a.v[i] << n)); }
INLINE VI ri_bits(VI a, int shift, int mask) { LANES(VI, (int32_t)((uint32_t)a.v[i] >> shift & (uint32_t)mask)); }
INLINE VI ri_largest(VI a, VI b) { LANES(VI, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE VF rf_from_bits(VI a) {
    VF out;
    memcpy(out.v, a.v, sizeof out.v);
    return out;
}

INLINE RCODES codes_set(int code) {
    RCODES w;
    memset(w.v, code, 64);
    return w;
}
INLINE RCODES codes_load(const uint8_t *p) {
    RCODES w;
    memcpy(w.v, p, 64);
    return w;
}
INLINE RCODES codes_low(const uint8_t *p) {
    RCODES w;
    for (int i = 0; i < 64; i++) w.v[i] = p[i] & 0x0F;
    return w;
}
INLINE RCODES codes_high(const uint8_t *p) {
    RCODES w;
    for (int i = 0; i < 64; i++) w.v[i] = p[i] & 0xF0;
    return w;
}
INLINE RCODES codes_upper(const uint8_t *p) {
    RCODES w;
    for (int i = 0; i < 64; i++) w.v[i] = p[i] >> 4;
    return w;
}
INLINE RCODES codes_part(RCODES codes, int left, int mask) {
    for (int i = 0; i < 64; i++) codes.v[i] = (uint8_t)((left >= 0 ? codes.v[i] << left : codes.v[i] >> -left) & mask);
    return codes;
}
INLINE RCODES codes_join(RCODES low, RCODES upper, int left, int mask) {
    for (int i = 0; i < 64; i++) low.v[i] |= (left >= 0 ? upper.v[i] << left : upper.v[i] >> -left) & mask;
    return low;
}
INLINE RCODES codes_look_up(const uint32_t table[4], RCODES nibbles) {
    for (int i = 0; i < 64; i++) nibbles.v[i] = (uint8_t)(table[nibbles.v[i] / 4] >> nibbles.v[i] % 4 * 8);
    return nibbles;
}
INLINE RCODES codes_from_grid(const uint32_t *grid, VI index, VI more) {
    RCODES w;
    for (int i = 0; i < 16; i++) {
        const uint32_t word = grid[index.v[i]] + (uint32_t)more.v[i];
        memcpy(w.v + 4 * i, &word, 4);
    }
    return w;
}
INLINE void codes_pair_from_grid(const uint32_t *grid, VI index, VI more, RCODES *codes) {
    UNROLL for (int i = 0; i < 2; i++) codes[i] = codes_from_grid(grid + i, vi_add(index, index), more);
}
INLINE RCODES codes_signed(RCODES codes, RCODES plane, int bit, int zero) {
    for (int i = 0; i < 64; i++) codes.v[i] = (uint8_t)(plane.v[i] >> bit & 1 ? zero - codes.v[i] : zero + codes.v[i]);
    return codes;
}
INLINE RCODES codes_digit(RCODES bytes, int n) {
    for (int i = 0; i < 64; i++) {
        for (int k = 0; k < n; k++) bytes.v[i] = (uint8_t)(3 * bytes.v[i]);
        bytes.v[i] = (uint8_t)(3 * bytes.v[i] >> 8);
    }
    return bytes;
}
INLINE VI dot(VI acc, const RCODES *w, const int8_t *a, int n, int bits) {
    (void)bits;
    for (int j = 0; j < n; j++, a += 4)
        for (int i = 0; i < 16; i++) {
            const uint8_t *code = w[j].v + 4 * i;
            acc.v[i] += code[0] * a[0] + code[1] * a[1] + code[2] * a[2] + code[3] * a[3];
        }
    return acc;
}
/* A pair is two int16 in 32 bits, the first in the lower ones. */
INLINE int32_t pair_of(int first, int second) { return (int32_t)((uint32_t)first & 0xffff) | second * 65536; }
INLINE int pair_first(int32_t pair) { return (int16_t)pair; }
INLINE int pair_second(int32_t pair) { return (int16_t)((uint32_t)pair >> 16); }
INLINE VI ri_load_pairs(const uint8_t *p) { LANES(VI, pair_of((int8_t)p[2 * i], (int8_t)p[2 * i + 1])); }
INLINE VI ri_mul_pairs(VI a, int n) { LANES(VI, pair_of(n * pair_first(a.v[i]), n * pair_second(a.v[i]))); }
INLINE VI ri_pairs_dot(VI a, const int16_t *pair) {
    LANES(VI, pair_first(a.v[i]) * pair[0] + pair_second(a.v[i]) * pair[1]);
}
INLINE VI dot_halves(const RCODES *w, const int8_t *a, VI pairs, int bits) {
    const VI first = dot(vi_set(0), w, a, 4, bits), second = dot(vi_set(0), w + 4, a + 16, 4, bits);
    LANES(VI, pair_first(pairs.v[i]) * first.v[i] + pair_second(pairs.v[i]) * second.v[i]);
}
