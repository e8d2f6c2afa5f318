/* Products of codes and integers of 16 bits in the lanes of simd.h: sums that are exact, and therefore the same bits on
 * every machine. WORDS are two codes for each of sixteen lanes, SUMS their int32 of a type that the compiler knows as
 * such: as one that stands for any integers, it would be moved from register to register around every product. */
#ifndef BEE_SIMD_WORDS_H
#define BEE_SIMD_WORDS_H

#include "simd.h"

#if defined(BEE_ISA_AVX512)
typedef __m512i WORDS;
typedef int32_t SUMS __attribute__((vector_size(64)));
INLINE SUMS sums_zero(void) { return (SUMS)_mm512_setzero_si512(); }
INLINE VF vf_from_sums(SUMS a) { return _mm512_cvtepi32_ps((__m512i)a); }
INLINE WORDS words_load(const int8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
/* acc + each lane's first code * pair[0] + its second one * pair[1] */
INLINE SUMS sums_dot(SUMS acc, WORDS codes, const int16_t *pair) {
    int32_t both;
    memcpy(&both, pair, sizeof both);
    return (SUMS)_mm512_dpwssd_epi32((__m512i)acc, codes, _mm512_set1_epi32(both));
}
/* Rounds to the nearest integer, which is one of 16 bits; NaN becomes anything. */
INLINE void vf_store_int16(int16_t *p, VF a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
}
#elif defined(BEE_ISA_AVX2) || defined(BEE_ISA_AVXVNNI)
typedef struct WORDS {
    __m256i lo, hi;
} WORDS;
INLINE WORDS words_load(const int8_t *p) {
    return (WORDS){_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)),
                   _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + 16)))};
}
typedef int32_t EIGHT __attribute__((vector_size(32)));
typedef struct SUMS {
    EIGHT lo, hi;
} SUMS;
INLINE SUMS sums_zero(void) { return (SUMS){(EIGHT)_mm256_setzero_si256(), (EIGHT)_mm256_setzero_si256()}; }
INLINE VF vf_from_sums(SUMS a) { return (VF){_mm256_cvtepi32_ps((__m256i)a.lo), _mm256_cvtepi32_ps((__m256i)a.hi)}; }
INLINE EIGHT add_products(EIGHT acc, __m256i codes, __m256i pair) {
#ifdef __AVXVNNI__
    return (EIGHT)_mm256_dpwssd_avx_epi32((__m256i)acc, codes, pair);
#else
    return (EIGHT)_mm256_add_epi32((__m256i)acc, _mm256_madd_epi16(codes, pair));
#endif
}
INLINE SUMS sums_dot(SUMS acc, WORDS codes, const int16_t *pair) {
    int32_t both;
    memcpy(&both, pair, sizeof both);
    const __m256i x = _mm256_set1_epi32(both);
    return (SUMS){add_products(acc.lo, codes.lo, x), add_products(acc.hi, codes.hi, x)};
}
INLINE void vf_store_int16(int16_t *p, VF a) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(words, 0xD8));
}
#elif defined(BEE_ISA_NEON) || defined(BEE_ISA_NEON_DOTPROD)
typedef struct WORDS {
    int16x4_t first[4], second[4];
} WORDS;
typedef VI SUMS;
INLINE SUMS sums_zero(void) { QUARTERS(VI, vdupq_n_s32(0)); }
INLINE VF vf_from_sums(SUMS a) { return vf_from_vi(a); }
INLINE WORDS words_load(const int8_t *p) {
    const int8x16x2_t codes = vld2q_s8(p);
    WORDS out;
    UNROLL for (int i = 0; i < 2; i++) {
        const int16x8_t first = vmovl_s8(i ? vget_high_s8(codes.val[0]) : vget_low_s8(codes.val[0])),
                        second = vmovl_s8(i ? vget_high_s8(codes.val[1]) : vget_low_s8(codes.val[1]));
        out.first[2 * i] = vget_low_s16(first), out.first[2 * i + 1] = vget_high_s16(first);
        out.second[2 * i] = vget_low_s16(second), out.second[2 * i + 1] = vget_high_s16(second);
    }
    return out;
}
INLINE SUMS sums_dot(SUMS acc, WORDS codes, const int16_t *pair) {
    UNROLL for (int i = 0; i < 4; i++) acc.q[i] =
        vmlal_n_s16(vmlal_n_s16(acc.q[i], codes.first[i], pair[0]), codes.second[i], pair[1]);
    return acc;
}
INLINE void vf_store_int16(int16_t *p, VF a) {
    UNROLL for (int i = 0; i < 4; i++) vst1_s16(p + 4 * i, vqmovn_s32(vcvtnq_s32_f32(a.q[i])));
}
#else
typedef struct WORDS {
    int16_t v[32];
} WORDS;
typedef VI SUMS;
INLINE SUMS sums_zero(void) { return vi_set(0); }
INLINE VF vf_from_sums(SUMS a) { return vf_from_vi(a); }
INLINE WORDS words_load(const int8_t *p) {
    WORDS out;
    for (int i = 0; i < 32; i++) out.v[i] = p[i];
    return out;
}
INLINE SUMS sums_dot(SUMS acc, WORDS codes, const int16_t *pair) {
    for (int i = 0; i < 16; i++) acc.v[i] += codes.v[2 * i] * pair[0] + codes.v[2 * i + 1] * pair[1];
    return acc;
}
INLINE void vf_store_int16(int16_t *p, VF a) {
    const VF rounded = vf_round(a);
    for (int i = 0; i < 16; i++) p[i] = fabsf(rounded.v[i]) <= INT16_MAX ? (int16_t)rounded.v[i] : 0; /* NaN: 0 */
}
#endif

#endif
