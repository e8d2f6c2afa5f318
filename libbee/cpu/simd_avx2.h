/* Sixteen lanes in two ymm registers: AVX2, FMA and F16C, with or without AVX-VNNI. The operations are described in
 * simd_avx512.h. */
#include <immintrin.h>

#ifdef __AVXVNNI__
#define ISA_NAME "avxvnni"
#define ISA_KERNELS bee_kernels_avxvnni
#else
#define ISA_NAME "avx2"
#define ISA_KERNELS bee_kernels_avx2
#endif
#define STEP_ROWS 8
#define REGISTER_TOKENS 4
#define TWO_CHAINS_BELOW 0
#define FLOAT_SUMS 6
#ifdef __AVXVNNI__
#define CHAINS 10
#define HIGH_NIBBLE 16
#define WIDE_ZERO 128
#else
#define CHAINS 5
#define HIGH_NIBBLE 1
#define WIDE_ZERO 0
#define WIDE_FLIP 128
#define SCALED_DOTS 1
#endif

typedef struct VF {
    __m256 lo, hi;
} VF;
typedef struct VI {
    __m256i lo, hi;
} VI;
/* Eight rows: 32 columns of them take 8 of the 16 registers. */
typedef __m256 RF;
typedef __m256i RI;
typedef __m256i RCODES;

INLINE VF vf_load(const float *p) { return (VF){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void vf_store(float *p, VF a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
INLINE VF vf_set(float a) { return (VF){_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
INLINE VF vf_add(VF a, VF b) { return (VF){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
INLINE VF vf_sub(VF a, VF b) { return (VF){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
INLINE VF vf_mul(VF a, VF b) { return (VF){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
INLINE VF vf_div(VF a, VF b) { return (VF){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
INLINE VF vf_fma(VF a, VF b, VF c) {
    return (VF){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
INLINE VF vf_max(VF a, VF b) { return (VF){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
INLINE VF vf_abs(VF a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (VF){_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
INLINE VF vf_round(VF a) {
    return (VF){_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
INLINE __m256 power_of_two(__m256 n) { /* n in [-126, 127] */
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE VF vf_scale2(VF a, VF n) {
    return (VF){_mm256_mul_ps(a.lo, power_of_two(n.lo)), _mm256_mul_ps(a.hi, power_of_two(n.hi))};
}
INLINE VF vf_from_vi(VI a) { return (VF){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
INLINE VF vf_load_f16(const uint16_t *p) {
    return (VF){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
INLINE void vf_store_f16(uint16_t *p, VF a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE __m256 widen_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE VF vf_load_bf16(const uint16_t *p) { return (VF){widen_bf16(p), widen_bf16(p + 8)}; }
INLINE VF vf_keep(VF a, int n, float fill) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 f = _mm256_set1_ps(fill);
    return (VF){_mm256_blendv_ps(f, a.lo, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane))),
                _mm256_blendv_ps(f, a.hi, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane)))};
}
INLINE float vf_sum(VF a) {
    const __m256 v = _mm256_add_ps(a.lo, a.hi);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float vf_largest(VF a) {
    const __m256 v = _mm256_max_ps(a.lo, a.hi);
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

INLINE VI vi_set(int32_t a) { return (VI){_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
INLINE VI vi_add(VI a, VI b) { return (VI){_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
INLINE void vf_store_int8(int8_t *p, VF a) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    const __m256i pairs = _mm256_permute4x64_epi64(words, 0xD8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}
INLINE bool vf_finite(VF a) {
    const __m256 lo = _mm256_sub_ps(a.lo, a.lo), hi = _mm256_sub_ps(a.hi, a.hi); /* 0, or NaN */
    return !_mm256_movemask_ps(_mm256_cmp_ps(lo, hi, _CMP_UNORD_Q));
}
INLINE void sum_halves(const int8_t *p, int32_t sums[2]) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *)p));
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    const __m256i eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4E));
    const __m256i all = _mm256_add_epi32(eights, _mm256_shuffle_epi32(eights, 0xB1));
    sums[0] = _mm256_cvtsi256_si32(all);
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(all, 1));
}

INLINE RF rf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE RF rf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE RF rf_load_bf16(const uint16_t *p) { return widen_bf16(p); }
INLINE void rf_store(float *p, RF a) { _mm256_storeu_ps(p, a); }
INLINE RF rf_set(float a) { return _mm256_set1_ps(a); }
INLINE RF rf_add(RF a, RF b) { return _mm256_add_ps(a, b); }
INLINE RF rf_mul(RF a, RF b) { return _mm256_mul_ps(a, b); }
INLINE RF rf_fma(RF a, RF b, RF c) { return _mm256_fmadd_ps(a, b, c); }
INLINE RF rf_from_ri(RI a) { return _mm256_cvtepi32_ps(a); }
INLINE RI ri_set(int32_t a) { return _mm256_set1_epi32(a); }
INLINE RI ri_add(RI a, RI b) { return _mm256_add_epi32(a, b); }

INLINE RI ri_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE RI ri_load_u8(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE RI ri_load_int8(const uint8_t *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE RI ri_load_u16(const uint8_t *p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE RI ri_left(RI a, int n) { return _mm256_slli_epi32(a, n); }
INLINE RI ri_bits(RI a, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi32(a, shift), _mm256_set1_epi32(mask));
}
INLINE RI ri_largest(RI a, RI b) { return _mm256_max_epi32(a, b); }
INLINE RF rf_from_bits(RI a) { return _mm256_castsi256_ps(a); }

INLINE RCODES codes_set(int code) { return _mm256_set1_epi8((char)code); }
INLINE RCODES codes_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE RCODES codes_flip(RCODES codes, int bits) { return _mm256_xor_si256(codes, codes_set(bits)); }
INLINE RCODES codes_low(const uint8_t *p) { return _mm256_and_si256(codes_load(p), _mm256_set1_epi8(0x0F)); }
INLINE RCODES codes_upper(const uint8_t *p) {
    return _mm256_and_si256(_mm256_srli_epi16(codes_load(p), 4), _mm256_set1_epi8(0x0F));
}
#ifdef __AVXVNNI__
INLINE RCODES codes_high(const uint8_t *p) { return _mm256_and_si256(codes_load(p), _mm256_set1_epi8((char)0xF0)); }
#else
/* Shifted down: sums of 16 bits could not hold codes up to 240. */
INLINE RCODES codes_high(const uint8_t *p) { return codes_upper(p); }
#endif
INLINE RCODES codes_part(RCODES codes, int left, int mask) {
    const __m256i moved = left >= 0 ? _mm256_slli_epi16(codes, left) : _mm256_srli_epi16(codes, -left);
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)mask));
}
INLINE RCODES codes_join(RCODES low, RCODES upper, int left, int mask) {
    return _mm256_or_si256(low, codes_part(upper, left, mask));
}
INLINE RCODES codes_look_up(const uint32_t table[4], RCODES nibbles) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), nibbles);
}
/* One by one: gathers take longer on most processors of this instruction set. */
INLINE RCODES codes_from_grid(const uint32_t *grid, RI index, RI more) {
    int32_t at[8];
    _mm256_storeu_si256((__m256i *)at, index);
    const __m256i words =
        _mm256_setr_epi32((int32_t)grid[at[0]], (int32_t)grid[at[1]], (int32_t)grid[at[2]], (int32_t)grid[at[3]],
                          (int32_t)grid[at[4]], (int32_t)grid[at[5]], (int32_t)grid[at[6]], (int32_t)grid[at[7]]);
    return _mm256_add_epi32(words, more);
}
INLINE __m128 two_entries(const uint32_t *grid, int32_t first, int32_t second) {
    const __m128 entry = _mm_castpd_ps(_mm_load_sd((const double *)(grid + 2 * first)));
    return _mm_loadh_pi(entry, (const __m64 *)(grid + 2 * second));
}
INLINE void codes_pair_from_grid(const uint32_t *grid, RI index, RI more, RCODES *codes) {
    int32_t at[8];
    _mm256_storeu_si256((__m256i *)at, index);
    const __m256 a = _mm256_set_m128(two_entries(grid, at[4], at[5]), two_entries(grid, at[0], at[1])),
                 b = _mm256_set_m128(two_entries(grid, at[6], at[7]), two_entries(grid, at[2], at[3]));
    codes[0] = _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), more);
    codes[1] = _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD)), more);
}
INLINE RCODES codes_signed(RCODES codes, RCODES plane, int bit, int zero) {
    const __m256i one = codes_set(1 << bit), negative = _mm256_cmpeq_epi8(_mm256_and_si256(plane, one), one);
    return _mm256_add_epi8(codes_set(zero), _mm256_sub_epi8(_mm256_xor_si256(codes, negative), negative));
}
INLINE __m256i at_least(__m256i bytes, int least) {
    return _mm256_cmpeq_epi8(_mm256_max_epu8(bytes, codes_set(least)), bytes);
}
INLINE RCODES codes_digit(RCODES bytes, int n) {
    for (; n; n--) bytes = _mm256_add_epi8(bytes, _mm256_add_epi8(bytes, bytes));
    return _mm256_sub_epi8(_mm256_sub_epi8(codes_set(0), at_least(bytes, 86)), at_least(bytes, 171));
}
INLINE __m256i broadcast_four(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return _mm256_set1_epi32(four);
}
INLINE RI ri_load_pairs(const uint8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }
INLINE RI ri_mul_pairs(RI a, int n) { return _mm256_mullo_epi16(a, _mm256_set1_epi16((short)n)); }
INLINE RI ri_pairs_dot(RI a, const int16_t *pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return _mm256_madd_epi16(a, _mm256_set1_epi32(both));
}
#ifdef __AVXVNNI__
INLINE RI dot(RI acc, const RCODES *w, const int8_t *a, int n, int bits) {
    (void)bits;
    UNROLL for (int j = 0; j < n; j++) acc = _mm256_dpbusd_avx_epi32(acc, w[j], broadcast_four(a + 4 * j));
    return acc;
}
INLINE RI dot_halves(const RCODES *w, const int8_t *a, RI pairs, int bits) {
    const RI first = _mm256_and_si256(pairs, ri_set(0xffff)), second = _mm256_srli_epi32(pairs, 16);
    const RI sum = _mm256_madd_epi16(dot(ri_set(0), w, a, 4, bits), first);
    return _mm256_dpwssd_avx_epi32(sum, dot(ri_set(0), w + 4, a + 16, 4, bits), second);
}
#else
/* Of each lane's two products. Wide codes are |code| * (sign(code) * a). */
INLINE __m256i sum_pairs(RCODES w, const int8_t *a, bool wide) {
    const __m256i x = broadcast_four(a);
    if (!wide) return _mm256_maddubs_epi16(w, x);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}
INLINE __m256i sum_words(const RCODES *w, const int8_t *a, int n, bool wide) {
    __m256i sums = sum_pairs(w[0], a, wide);
    UNROLL for (int j = 1; j < n; j++) sums = _mm256_add_epi16(sums, sum_pairs(w[j], a + 4 * j, wide));
    return sums;
}
/* Sums stay in 16 bits for as many columns as these hold, at 2 * 127 times the largest code each. What joins the two
 * words of a row multiplies them, too. */
INLINE RI dot_times(RI acc, const RCODES *w, const int8_t *a, int n, RI factors, int bits) {
    const int room = INT16_MAX / (2 * 127 * (bits == 8 ? 128 : (1 << bits) - 1)), together = room < n ? room : n;
    UNROLL for (int j = 0; j < n; j += together) acc =
        _mm256_add_epi32(acc, _mm256_madd_epi16(sum_words(w + j, a + 4 * j, together, bits == 8), factors));
    return acc;
}
INLINE RI dot(RI acc, const RCODES *w, const int8_t *a, int n, int bits) {
    return dot_times(acc, w, a, n, _mm256_set1_epi16(1), bits);
}
INLINE RI ri_pair(RI first, RI second) { return _mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xAA); }
INLINE RI dot_halves(const RCODES *w, const int8_t *a, RI pairs, int bits) {
    const RI sum = dot_times(ri_set(0), w, a, 4, ri_pair(pairs, pairs), bits);
    const RI second = _mm256_blend_epi16(_mm256_srli_epi32(pairs, 16), pairs, 0xAA);
    return dot_times(sum, w + 4, a + 16, 4, second, bits);
}
#endif
