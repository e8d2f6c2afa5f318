/* Sixteen lanes in four q registers: any 64-bit ARM, with or without the dot product of ARMv8.2. The operations are
 * described in simd_avx512.h. */
#include <arm_neon.h>
#include <float.h>

#ifdef __ARM_FEATURE_DOTPROD
#define ISA_NAME "neon_dotprod"
#define ISA_KERNELS bee_kernels_neon_dotprod
#else
#define ISA_NAME "neon"
#define ISA_KERNELS bee_kernels_neon
#endif
#define STEP_ROWS 8
#define REGISTER_TOKENS 4
#define TWO_CHAINS_BELOW 0
#define FLOAT_SUMS 6
#define HIGH_NIBBLE 1
#define WIDE_ZERO 0
#define CHAINS 8

typedef struct VF {
    float32x4_t q[4];
} VF;
typedef struct VI {
    int32x4_t q[4];
} VI;
/* Eight rows: 32 columns of them take 16 of the 32 registers. */
typedef struct RF {
    float32x4_t q[2];
} RF;
typedef struct RI {
    int32x4_t q[2];
} RI;
typedef struct RCODES {
    uint8x16_t q[2];
} RCODES;

#define QUARTERS(type, expression)                              \
    type out;                                                   \
    UNROLL for (int i = 0; i < 4; i++) out.q[i] = (expression); \
    return out
#define PARTS(type, expression)                                 \
    type out;                                                   \
    UNROLL for (int i = 0; i < 2; i++) out.q[i] = (expression); \
    return out

INLINE float32x4_t widen_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE float32x4_t widen_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

INLINE VF vf_load(const float *p) { QUARTERS(VF, vld1q_f32(p + 4 * i)); }
INLINE void vf_store(float *p, VF a) { UNROLL for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, a.q[i]); }
INLINE VF vf_set(float a) { QUARTERS(VF, vdupq_n_f32(a)); }
INLINE VF vf_add(VF a, VF b) { QUARTERS(VF, vaddq_f32(a.q[i], b.q[i])); }
INLINE VF vf_sub(VF a, VF b) { QUARTERS(VF, vsubq_f32(a.q[i], b.q[i])); }
INLINE VF vf_mul(VF a, VF b) { QUARTERS(VF, vmulq_f32(a.q[i], b.q[i])); }
INLINE VF vf_div(VF a, VF b) { QUARTERS(VF, vdivq_f32(a.q[i], b.q[i])); }
INLINE VF vf_fma(VF a, VF b, VF c) { QUARTERS(VF, vfmaq_f32(c.q[i], a.q[i], b.q[i])); }
/* The second where one is NaN, as on other machines: vmaxq would give NaN. */
INLINE VF vf_max(VF a, VF b) { QUARTERS(VF, vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i])); }
INLINE VF vf_abs(VF a) { QUARTERS(VF, vabsq_f32(a.q[i])); }
INLINE VF vf_round(VF a) { QUARTERS(VF, vrndnq_f32(a.q[i])); }
INLINE float32x4_t power_of_two(float32x4_t n) { /* n in [-126, 127] */
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
INLINE VF vf_scale2(VF a, VF n) { QUARTERS(VF, vmulq_f32(a.q[i], power_of_two(n.q[i]))); }
INLINE VF vf_from_vi(VI a) { QUARTERS(VF, vcvtq_f32_s32(a.q[i])); }
INLINE VF vf_load_f16(const uint16_t *p) { QUARTERS(VF, widen_f16(p + 4 * i)); }
INLINE void vf_store_f16(uint16_t *p, VF a) {
    UNROLL for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.q[i])));
}
INLINE VF vf_load_bf16(const uint16_t *p) { QUARTERS(VF, widen_bf16(p + 4 * i)); }
INLINE VF vf_keep(VF a, int n, float fill) {
    static const int32_t lanes[4] = {0, 1, 2, 3};
    const int32x4_t lane = vld1q_s32(lanes);
    QUARTERS(VF, vbslq_f32(vcltq_s32(lane, vdupq_n_s32(n - 4 * i)), a.q[i], vdupq_n_f32(fill)));
}
/* Halves are added to each other, as on other machines. */
INLINE float vf_sum(VF a) {
    const float32x4_t v = vaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
    const float32x2_t s = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(s, 0) + vget_lane_f32(s, 1);
}
INLINE float vf_largest(VF a) {
    return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a.q[0], a.q[1]), vmaxnmq_f32(a.q[2], a.q[3])));
}
/* Rounds to the nearest int8 and writes 16 of them; saturates. */
INLINE void vf_store_int8(int8_t *p, VF a) {
    int16x4_t words[4];
    UNROLL for (int i = 0; i < 4; i++) words[i] = vqmovn_s32(vcvtnq_s32_f32(a.q[i]));
    vst1q_s8(p,
             vcombine_s8(vqmovn_s16(vcombine_s16(words[0], words[1])), vqmovn_s16(vcombine_s16(words[2], words[3]))));
}
INLINE bool vf_finite(VF a) {
    uint32x4_t finite = vdupq_n_u32(UINT32_MAX);
    UNROLL for (int i = 0; i < 4; i++) finite = vandq_u32(finite, vcleq_f32(vabsq_f32(a.q[i]), vdupq_n_f32(FLT_MAX)));
    return vminvq_u32(finite);
}
INLINE void sum_halves(const int8_t *p, int32_t sums[2]) {
    UNROLL for (int i = 0; i < 2; i++) sums[i] = vaddlvq_s8(vld1q_s8(p + 16 * i));
}

INLINE RF rf_load(const float *p) { PARTS(RF, vld1q_f32(p + 4 * i)); }
INLINE RF rf_load_f16(const uint16_t *p) { PARTS(RF, widen_f16(p + 4 * i)); }
INLINE RF rf_load_bf16(const uint16_t *p) { PARTS(RF, widen_bf16(p + 4 * i)); }
INLINE void rf_store(float *p, RF a) { UNROLL for (int i = 0; i < 2; i++) vst1q_f32(p + 4 * i, a.q[i]); }
INLINE RF rf_set(float a) { PARTS(RF, vdupq_n_f32(a)); }
INLINE RF rf_add(RF a, RF b) { PARTS(RF, vaddq_f32(a.q[i], b.q[i])); }
INLINE RF rf_mul(RF a, RF b) { PARTS(RF, vmulq_f32(a.q[i], b.q[i])); }
INLINE RF rf_fma(RF a, RF b, RF c) { PARTS(RF, vfmaq_f32(c.q[i], a.q[i], b.q[i])); }
INLINE RF rf_from_ri(RI a) { PARTS(RF, vcvtq_f32_s32(a.q[i])); }
INLINE RI ri_set(int32_t a) { PARTS(RI, vdupq_n_s32(a)); }
INLINE RI ri_add(RI a, RI b) { PARTS(RI, vaddq_s32(a.q[i], b.q[i])); }

INLINE RI ri_load(const uint8_t *p) { PARTS(RI, vreinterpretq_s32_u8(vld1q_u8(p + 16 * i))); }
INLINE RI ri_load_int8(const uint8_t *p) {
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)));
    return (RI){{vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)}};
}
INLINE RI ri_load_u8(const uint8_t *p) {
    const uint16x8_t words = vmovl_u8(vld1_u8(p));
    return (RI){{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words))), vreinterpretq_s32_u32(vmovl_high_u16(words))}};
}
INLINE RI ri_load_u16(const uint8_t *p) {
    const uint16x8_t words = vreinterpretq_u16_u8(vld1q_u8(p));
    return (RI){{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words))), vreinterpretq_s32_u32(vmovl_high_u16(words))}};
}
INLINE RI ri_left(RI a, int n) { PARTS(RI, vshlq_s32(a.q[i], vdupq_n_s32(n))); }
INLINE RI ri_bits(RI a, int shift, int mask) {
    PARTS(RI, vandq_s32(vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a.q[i]), vdupq_n_s32(-shift))),
                        vdupq_n_s32(mask)));
}
INLINE RI ri_largest(RI a, RI b) { PARTS(RI, vmaxq_s32(a.q[i], b.q[i])); }
INLINE RF rf_from_bits(RI a) { PARTS(RF, vreinterpretq_f32_s32(a.q[i])); }

INLINE RCODES codes_set(int code) { PARTS(RCODES, vdupq_n_u8((uint8_t)code)); }
INLINE RCODES codes_load(const uint8_t *p) { PARTS(RCODES, vld1q_u8(p + 16 * i)); }
INLINE RCODES codes_low(const uint8_t *p) { PARTS(RCODES, vandq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(15))); }
INLINE RCODES codes_upper(const uint8_t *p) { PARTS(RCODES, vshrq_n_u8(vld1q_u8(p + 16 * i), 4)); }
/* Shifted down: products are of signed bytes, which codes up to 240 are not. */
INLINE RCODES codes_high(const uint8_t *p) { return codes_upper(p); }
INLINE RCODES codes_part(RCODES codes, int left, int mask) {
    const int8x16_t shift = vdupq_n_s8((int8_t)left); /* negative: right */
    PARTS(RCODES, vandq_u8(vshlq_u8(codes.q[i], shift), vdupq_n_u8((uint8_t)mask)));
}
INLINE RCODES codes_join(RCODES low, RCODES upper, int left, int mask) {
    const RCODES part = codes_part(upper, left, mask);
    PARTS(RCODES, vorrq_u8(low.q[i], part.q[i]));
}
INLINE RCODES codes_look_up(const uint32_t table[4], RCODES nibbles) {
    const uint8x16_t bytes = vreinterpretq_u8_u32(vld1q_u32(table));
    PARTS(RCODES, vqtbl1q_u8(bytes, nibbles.q[i]));
}
INLINE RCODES codes_from_grid(const uint32_t *grid, RI index, RI more) {
    int32_t rows[8];
    uint32_t words[8];
    UNROLL for (int i = 0; i < 2; i++) vst1q_s32(rows + 4 * i, index.q[i]);
    UNROLL for (int i = 0; i < 8; i++) words[i] = grid[rows[i]];
    PARTS(RCODES, vreinterpretq_u8_u32(vaddq_u32(vld1q_u32(words + 4 * i), vreinterpretq_u32_s32(more.q[i]))));
}
INLINE void codes_pair_from_grid(const uint32_t *grid, RI index, RI more, RCODES *codes) {
    UNROLL for (int i = 0; i < 2; i++) codes[i] = codes_from_grid(grid + i, ri_add(index, index), more);
}
INLINE RCODES codes_signed(RCODES codes, RCODES plane, int bit, int zero) {
    const uint8x16_t one = vdupq_n_u8((uint8_t)(1 << bit)), z = vdupq_n_u8((uint8_t)zero);
    PARTS(RCODES, vbslq_u8(vtstq_u8(plane.q[i], one), vsubq_u8(z, codes.q[i]), vaddq_u8(z, codes.q[i])));
}
INLINE RCODES codes_digit(RCODES bytes, int n) {
    for (; n; n--) UNROLL for (int i = 0; i < 2; i++) bytes.q[i] = vmulq_u8(bytes.q[i], vdupq_n_u8(3));
    PARTS(RCODES, vsubq_u8(vsubq_u8(vdupq_n_u8(0), vcgeq_u8(bytes.q[i], vdupq_n_u8(86))),
                           vcgeq_u8(bytes.q[i], vdupq_n_u8(171))));
}
/* 8-bit codes around their zero point: a changed upper bit makes them signed. */
INLINE int8x16_t as_signed(uint8x16_t w, int bits) {
    return vreinterpretq_s8_u8(bits == 8 ? veorq_u8(w, vdupq_n_u8(0x80)) : w);
}
#ifdef __ARM_FEATURE_DOTPROD
/* 16 columns of four rows, whose codes fill one register for every four columns. */
INLINE int32x4_t dot_sixteen(int32x4_t acc, const RCODES *w, int half, int8x16_t x, int bits) {
    acc = vdotq_laneq_s32(acc, as_signed(w[0].q[half], bits), x, 0);
    acc = vdotq_laneq_s32(acc, as_signed(w[1].q[half], bits), x, 1);
    acc = vdotq_laneq_s32(acc, as_signed(w[2].q[half], bits), x, 2);
    return vdotq_laneq_s32(acc, as_signed(w[3].q[half], bits), x, 3);
}
INLINE RI dot(RI acc, const RCODES *w, const int8_t *a, int n, int bits) {
    UNROLL for (int j = 0; j < n; j += 4) {
        const int8x16_t x = vld1q_s8(a + 4 * j);
        UNROLL for (int half = 0; half < 2; half++) acc.q[half] = dot_sixteen(acc.q[half], w + j, half, x, bits);
    }
    return acc;
}
#else
/* Sums stay in 16 bits for as many columns as these hold, at 127 times the largest code each; a lane takes every fourth
 * column of one row. */
INLINE RI dot(RI acc, const RCODES *w, const int8_t *a, int n, int bits) {
    const int room = INT16_MAX / (127 * (bits == 8 ? 128 : (1 << bits) - 1)), together = room < n ? room : n;
    UNROLL for (int first = 0; first < n; first += together) UNROLL for (int half = 0; half < 2; half++) {
        int16x8_t upper = vdupq_n_s16(0), lower = upper;
        UNROLL for (int j = first; j < first + together; j++) {
            const int8x16_t codes = as_signed(w[j].q[half], bits);
            const int8x8_t x = vreinterpret_s8_s32(vld1_dup_s32((const int32_t *)(const void *)(a + 4 * j)));
            lower = vmlal_s8(lower, vget_low_s8(codes), x);
            upper = vmlal_s8(upper, vget_high_s8(codes), x);
        }
        acc.q[half] = vaddq_s32(acc.q[half], vpaddq_s32(vpaddlq_s16(lower), vpaddlq_s16(upper)));
    }
    return acc;
}
#endif
/* Both numbers of a pair, with their signs. */
INLINE RI pair_firsts(RI a) { PARTS(RI, vshrq_n_s32(vshlq_n_s32(a.q[i], 16), 16)); }
INLINE RI pair_seconds(RI a) { PARTS(RI, vshrq_n_s32(a.q[i], 16)); }
INLINE RI ri_mla(RI acc, RI a, RI b) { PARTS(RI, vmlaq_s32(acc.q[i], a.q[i], b.q[i])); }
INLINE RI ri_load_pairs(const uint8_t *p) {
    PARTS(RI, vreinterpretq_s32_s16(vmovl_s8(vreinterpret_s8_u8(vld1_u8(p + 8 * i)))));
}
INLINE RI ri_mul_pairs(RI a, int n) {
    PARTS(RI, vreinterpretq_s32_s16(vmulq_n_s16(vreinterpretq_s16_s32(a.q[i]), (int16_t)n)));
}
INLINE RI ri_pairs_dot(RI a, const int16_t *pair) {
    return ri_mla(ri_mla(ri_set(0), pair_firsts(a), ri_set(pair[0])), pair_seconds(a), ri_set(pair[1]));
}
INLINE RI dot_halves(const RCODES *w, const int8_t *a, RI pairs, int bits) {
    const RI sum = ri_mla(ri_set(0), dot(ri_set(0), w, a, 4, bits), pair_firsts(pairs));
    return ri_mla(sum, dot(ri_set(0), w + 4, a + 16, 4, bits), pair_seconds(pairs));
}
