/* Sixteen lanes in one zmm register: AVX-512 F/BW/DQ/VL and VNNI.
 *
 * The simd_*.h files offer the same few operations, and kernels.c is written against them alone:
 *   VF       16 floats            VI       16 int32
 *   RCODES   weight codes: 4 successive columns of each of STEP_ROWS rows
 *   RF, RI   a float or int32 of each of STEP_ROWS rows; VF and VI where these are 16
 * HIGH_NIBBLE is the factor that `codes_high` leaves in the codes; WIDE_ZERO the zero point of 8-bit codes that `dot`
 * leaves to its caller. The registers hold the sums of STEP_ROWS rows and REGISTER_TOKENS tokens beside their operands,
 * or CHAINS sums of integers. */
#include <immintrin.h>

#define ISA_NAME "avx512"
#define ISA_KERNELS bee_kernels_avx512
#define STEP_ROWS 16
#define REGISTER_TOKENS 16
#define TWO_CHAINS_BELOW 4
#define CHAINS 16
#define FLOAT_SUMS 24
#define MAX_QUERIES 8
#define HIGH_NIBBLE 16
#define WIDE_ZERO 128
#define BIASED_DOTS 1
#define TOKENS_TOGETHER (TILE_SUMS ? 1 : 2)
#define SCALED_CODES 1
#define ADDED_HALVES 1

typedef __m512 VF;
typedef __m512i VI;
typedef __m512i RCODES;

INLINE VF vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, VF a) { _mm512_storeu_ps(p, a); }
INLINE VF vf_set(float a) { return _mm512_set1_ps(a); }
INLINE VF vf_add(VF a, VF b) { return _mm512_add_ps(a, b); }
INLINE VF vf_sub(VF a, VF b) { return _mm512_sub_ps(a, b); }
INLINE VF vf_mul(VF a, VF b) { return _mm512_mul_ps(a, b); }
INLINE VF vf_div(VF a, VF b) { return _mm512_div_ps(a, b); }
INLINE VF vf_fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
INLINE VF vf_max(VF a, VF b) { return _mm512_max_ps(a, b); }
INLINE VF vf_abs(VF a) { return _mm512_abs_ps(a); }
INLINE VF vf_round(VF a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE VF vf_scale2(VF a, VF n) { return _mm512_scalef_ps(a, n); }
INLINE VF vf_from_vi(VI a) { return _mm512_cvtepi32_ps(a); }
INLINE VF vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void vf_store_f16(uint16_t *p, VF a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE VF vf_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
/* Lanes from `n` on become `fill`. */
INLINE VF vf_keep(VF a, int n, float fill) {
    return _mm512_mask_blend_ps((__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1), _mm512_set1_ps(fill), a);
}
INLINE float vf_sum(VF a) { return _mm512_reduce_add_ps(a); }
INLINE float vf_largest(VF a) { return _mm512_reduce_max_ps(a); }

INLINE VI vi_set(int32_t a) { return _mm512_set1_epi32(a); }
INLINE VI vi_add(VI a, VI b) { return _mm512_add_epi32(a, b); }
/* Rounds to the nearest int8 and writes 16 of them; saturates: NaN becomes -128. */
INLINE void vf_store_int8(int8_t *p, VF a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
}
INLINE bool vf_finite(VF a) { return !_mm512_fpclass_ps_mask(a, 0x01 | 0x08 | 0x10 | 0x80); } /* NaN or infinity */
/* Sums of codes 0-15 and 16-31. */
INLINE void sum_halves(const int8_t *p, int32_t sums[2]) {
    const __m256i codes = _mm256_loadu_si256((const __m256i *)p);
    const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), codes);
    const __m256i eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4E));
    const __m256i all = _mm256_add_epi32(eights, _mm256_shuffle_epi32(eights, 0xB1));
    sums[0] = _mm256_cvtsi256_si32(all);
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(all, 1));
}

/* Integers of each row: bytes and the like without a sign; (a >> shift) & mask; and the floats that bits are. */
INLINE VI ri_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE VI ri_load_int8(const uint8_t *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE VI ri_load_u8(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE VI ri_load_u16(const uint8_t *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
INLINE VI ri_left(VI a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
INLINE VI ri_bits(VI a, int shift, int mask) {
    return _mm512_and_si512(_mm512_srli_epi32(a, (unsigned)shift), _mm512_set1_epi32(mask));
}
INLINE VI ri_largest(VI a, VI b) { return _mm512_max_epi32(a, b); }
INLINE VF rf_from_bits(VI a) { return _mm512_castsi512_ps(a); }

INLINE RCODES codes_set(int code) { return _mm512_set1_epi8((char)code); }
INLINE RCODES codes_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE RCODES codes_low(const uint8_t *p) { return _mm512_and_si512(codes_load(p), _mm512_set1_epi8(0x0F)); }
INLINE RCODES codes_high(const uint8_t *p) { return _mm512_and_si512(codes_load(p), _mm512_set1_epi8((char)0xF0)); }
/* High nibbles, without a factor. */
INLINE RCODES codes_upper(const uint8_t *p) {
    return _mm512_and_si512(_mm512_srli_epi16(codes_load(p), 4), _mm512_set1_epi8(0x0F));
}
/* (codes shifted left by `left`, or right where that is negative) & mask; the same beside `low`. */
INLINE RCODES codes_moved(RCODES codes, int left) {
    return left > 0   ? _mm512_slli_epi16(codes, (unsigned)left)
           : left < 0 ? _mm512_srli_epi16(codes, (unsigned)-left)
                      : codes;
}
INLINE RCODES codes_part(RCODES codes, int left, int mask) {
    return _mm512_and_si512(codes_moved(codes, left), _mm512_set1_epi8((char)mask));
}
INLINE RCODES codes_join(RCODES low, RCODES upper, int left, int mask) {
    return _mm512_ternarylogic_epi64(low, codes_moved(upper, left), _mm512_set1_epi8((char)mask), 0xF8);
}
/* A table's code of each nibble. */
INLINE RCODES codes_look_up(const uint32_t table[4], RCODES nibbles) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), nibbles);
}
/* Four codes of each row from a grid, each row's word of `more` added. */
INLINE RCODES codes_from_grid(const uint32_t *grid, VI index, VI more) {
    return _mm512_add_epi32(_mm512_i32gather_epi32(index, grid, 4), more);
}
/* Of entries of two words. */
INLINE void codes_pair_from_grid(const uint32_t *grid, VI index, VI more, RCODES *codes) {
    UNROLL for (int i = 0; i < 2; i++) codes[i] = codes_from_grid(grid + i, vi_add(index, index), more);
}
/* zero + code, or zero - code where bit `bit` of the plane is set. */
INLINE RCODES codes_signed(RCODES codes, RCODES plane, int bit, int zero) {
    const __mmask64 negative = _mm512_test_epi8_mask(plane, _mm512_set1_epi8((char)(1 << bit)));
    return _mm512_mask_sub_epi8(_mm512_add_epi8(codes_set(zero), codes), negative, codes_set(zero), codes);
}
/* Digit n of bytes that hold five to the base of 3: (byte * 3^n mod 256) * 3 / 256. */
INLINE RCODES codes_digit(RCODES bytes, int n) {
    for (; n; n--) bytes = _mm512_add_epi8(bytes, _mm512_add_epi8(bytes, bytes));
    const __mmask64 two = _mm512_cmpge_epu8_mask(bytes, codes_set(171)),
                    one = _mm512_cmpge_epu8_mask(bytes, codes_set(86));
    return _mm512_mask_mov_epi8(_mm512_maskz_mov_epi8(one, codes_set(1)), two, codes_set(2));
}
/* acc[row] += sum over four columns. With the intrinsic, compilers broadcast the four numbers by an instruction of its
 * own, and twice as many instructions leave half the room to look ahead in; so it is for emulated intrinsics alone. */
INLINE VI dot_four(VI acc, RCODES w, const int8_t *a) {
    typedef int32_t __attribute__((may_alias, aligned(1))) Four;
    const Four *four = (const Four *)a;
#if defined(__AVX512VNNI__)
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*four));
    return acc;
#else
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(*four));
#endif
}
/* acc[row] += sum over 4 n columns of code[row][column] * a[column]; n is 1, 4 or 8. `bits` is the codes' width. */
INLINE VI dot(VI acc, const RCODES *w, const int8_t *a, int n, int bits) {
    (void)bits;
    if (TILE_SUMS) return _mm512_add_epi32(acc, _mm512_loadu_si512(a));
    UNROLL for (int j = 0; j < n; j++) acc = dot_four(acc, w[j], a + 4 * j);
    return acc;
}

/* Pairs of int16 of each row: from bytes with a sign; times n; times a pair, and added. */
INLINE VI ri_load_pairs(const uint8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
INLINE VI ri_mul_pairs(VI a, int n) { return _mm512_mullo_epi16(a, _mm512_set1_epi16((short)n)); }
INLINE VI ri_pairs_dot(VI a, const int16_t *pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return _mm512_madd_epi16(a, _mm512_set1_epi32(both));
}
/* The first or the second of each pair, in both places; codes times that, below 256: nothing is carried. */
INLINE VI ri_twice(VI pairs, int second) {
    return second ? _mm512_or_si512(_mm512_srli_epi32(pairs, 16), _mm512_and_si512(pairs, vi_set((int)0xffff0000)))
                  : _mm512_or_si512(_mm512_slli_epi32(pairs, 16), _mm512_and_si512(pairs, vi_set(0xffff)));
}
INLINE RCODES codes_times(RCODES codes, VI twice) { return _mm512_mullo_epi16(codes, twice); }
/* Of 32 columns, whose halves count as often as a pair of each row says. A half's sum fits 16 bits: `bits` is 2 or 3.
 */
INLINE VI dot_halves(const RCODES *w, const int8_t *a, VI pairs, int bits) {
    const VI first = _mm512_and_si512(pairs, vi_set(0xffff)), second = _mm512_srli_epi32(pairs, 16);
    const VI sum = _mm512_madd_epi16(dot(vi_set(0), w, a, 4, bits), first);
    return _mm512_dpwssd_epi32(sum, dot(vi_set(0), w + 4, a + HALF_STEP, 4, bits), second);
}

INLINE VI add_halves(VI sum, const RCODES *w, const int8_t *a, VI pairs) {
    const VI first = _mm512_and_si512(pairs, vi_set(0xffff)), second = _mm512_srli_epi32(pairs, 16);
    sum = _mm512_dpwssd_epi32(sum, dot(vi_set(0), w, a, 4, 3), first);
    return _mm512_dpwssd_epi32(sum, dot(vi_set(0), w + 4, a + HALF_STEP, 4, 3), second);
}

/* ---- with VBMI: tables of bytes in registers (PLANAR_GRIDS) ---- */

#if defined(BEE_ISA_AVX512_VBMI)
#define PLANAR_GRIDS 1

/* Entries of a table of 128 bytes, by the low 7 bits of `index`, or of 256. */
INLINE RCODES codes_from_table(const uint8_t *table, int bits, RCODES index) {
    const RCODES low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), index, _mm512_loadu_si512(table + 64));
    if (bits == 7) return low;
    const RCODES high =
        _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), index, _mm512_loadu_si512(table + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}
/* Entries of a table of 64 bytes, or of 16 of them, by the low 6 or 4 bits of `index`: no others count. */
INLINE RCODES codes_of_six_bits(const uint32_t table[16], RCODES index) {
    return _mm512_permutexvar_epi8(index, _mm512_loadu_si512(table));
}
INLINE RCODES codes_of_four_bits(const uint32_t table[4], RCODES index) {
    return _mm512_permutexvar_epi8(index, _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)));
}
/* The bits of `b` where the mask has them, others of `a`. */
INLINE RCODES codes_with(RCODES a, RCODES b, int mask) {
    return _mm512_ternarylogic_epi64(a, b, _mm512_set1_epi8((char)mask), 0xD8);
}
/* Of 32 bytes: those bits from `first` on, of the last 32 entries from first + 4 on. What is above them is of others.
 */
INLINE RCODES codes_of_nibbles(const uint8_t *p, int first) {
    const __m512i places =
        _mm512_inserti64x4(_mm512_set1_epi16((short)first), _mm256_set1_epi16((short)(first + 4)), 1);
    return _mm512_srlv_epi16(_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p)), places);
}
/* Bytes 0 of a and b, bytes 2, ...; bytes 1, 3, ... */
INLINE RCODES codes_even(RCODES a, RCODES b) {
    return _mm512_mask_blend_epi8(0xAAAAAAAAAAAAAAAAu, a, _mm512_slli_epi16(b, 8));
}
INLINE RCODES codes_odd(RCODES a, RCODES b) {
    return _mm512_mask_blend_epi8(0xAAAAAAAAAAAAAAAAu, _mm512_srli_epi16(a, 8), b);
}
/* `code` where a mask of 64 bits is 1. */
INLINE RCODES codes_where_set(const uint8_t *mask, int code) {
    uint64_t bits;
    memcpy(&bits, mask, sizeof bits);
    return _mm512_maskz_mov_epi8(_cvtu64_mask64(bits), codes_set(code));
}
/* Of each 16 numbers: 0, 4, 8, 12, 1, 5, ...; 64 numbers. */
INLINE void transpose_fours(const int8_t *x, int8_t *out) {
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    _mm512_storeu_si512(out, _mm512_shuffle_epi8(_mm512_loadu_si512(x), order));
}
#endif
