/* Activations as the matrix instructions want them, and how a group of 32 columns of one token gets there.
 *
 * Tokens are taken 8 at a time, columns in groups of 32; columns are padded with zeros to whole pairs of groups.
 *
 *   codes    int8   [token / 8][group][lane][2 x 4]     lane = 4 (token % 8) + t: columns 4 t .. + 3, 4 t + 16 .. + 19
 *   scales   float2 [token / 8][group][token % 8]       x = scale * code; and scale * (sum of the group's codes)
 *   halves   uint16 [token / 8][group][2 steps of 16 columns][lane][2 parts][4]
 *                                                       lane = 4 (token % 8) + t: columns 2 t, 2 t + 1, + 8, + 9 of the
 *                                                       step; x = scale * (part 0 + part 1), both float16 or bfloat16
 *   factors  float  [token / 8][group][token % 8]       the halves' scale, a power of two
 *   values   float  [token][columns]
 *
 * A weight reads one of these forms; an operand has those that its readers ask for. */
#ifndef BEE_CUDA_OPERAND_H
#define BEE_CUDA_OPERAND_H

#include "device.h"
#include "types/types.h"

enum { GROUP = 32 };

/* Flags of an operand's formats. */
enum { FORMAT_CODES = 1, FORMAT_VALUES = 2, FORMAT_F16 = 8, FORMAT_BF16 = 16 };

/* Pointers into device memory; goes to kernels by value. */
typedef struct DeviceOperand {
    int columns;
    int n_groups; /* even */
    int max_rows; /* a multiple of 8 */
    int formats;
    int8_t *codes;
    float2 *scales;
    uint16_t *f16, *bf16;
    float *f16_factors, *bf16_factors;
    float *values;
} DeviceOperand;

static inline __host__ __device__ size_t operand_group(const DeviceOperand *o, int token, int group) {
    return (size_t)(token / 8) * (size_t)o->n_groups + (size_t)group;
}

/* The form that a weight of this type reads. */
static inline int weight_format(TensorType type) {
    return traits_of(type).bits ? FORMAT_CODES
           : type == TYPE_F16   ? FORMAT_F16
           : type == TYPE_BF16  ? FORMAT_BF16
                                : FORMAT_VALUES;
}

/* The same operand from a token on that is a multiple of 8. */
static inline DeviceOperand operand_from(const DeviceOperand *o, int token) {
    DeviceOperand part = *o;
    const size_t groups = operand_group(o, token, 0);
    part.max_rows -= token;
    if (part.codes) part.codes += groups * 256, part.scales += groups * 8;
    if (part.f16) part.f16 += groups * 512, part.f16_factors += groups * 8;
    if (part.bf16) part.bf16 += groups * 512, part.bf16_factors += groups * 8;
    if (part.values) part.values += (size_t)token * (size_t)o->columns;
    return part;
}

static __device__ __forceinline__ uint16_t bf16_from_float(float x) {
    if (x != x) return 0x7fc0; /* a device's NaN has all bits set: rounding would carry it to -0 */
    const unsigned bits = __float_as_uint(x);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Column `lane` of a group becomes two 16-bit numbers, whose sum keeps 16 bits of it or more, relative to the group's
 * largest. */
static __device__ __forceinline__ void store_halves(const DeviceOperand *o, bool bfloat, int token, int group, float x,
                                                    float largest) {
    const int lane = lane_of(), step = lane / 16, in_step = lane % 16;
    const size_t at = operand_group(o, token, group);
    /* A power of two that brings the largest to [1, 2); NaN and infinity stay what they are. */
    const unsigned exponent = __float_as_uint(largest) >> 23 & 0xff;
    const bool usual = exponent > 0 && exponent < 254;
    const float scale = usual ? __uint_as_float(exponent << 23) : 1.0f;
    const float inverse = usual ? __uint_as_float((254 - exponent) << 23) : 1.0f;
    const float y = x * inverse;
    const uint16_t high = bfloat ? bf16_from_float(y) : half_from_float(y);
    const float rest = y - (bfloat ? bf16_to_float(high) : float_from_half(high));
    const uint16_t low = bfloat ? bf16_from_float(rest) : half_from_float(rest);
    const int owner = 4 * (token % 8) + in_step % 8 / 2, place = in_step / 8 * 2 + in_step % 2;
    uint16_t *out = (bfloat ? o->bf16 : o->f16) + ((at * 2 + (size_t)step) * WARP_SIZE + (size_t)owner) * 8 + place;
    out[0] = high;
    out[4] = low;
    float *const factors = bfloat ? o->bf16_factors : o->f16_factors;
    if (lane == 0) factors[at * 8 + (size_t)(token % 8)] = scale;
}

/* A warp stores a group: lane i gives column i. Columns beyond the operand's must be zero. As the CPU backend's
 * store_group, bit for bit. */
static __device__ __forceinline__ void store_group(const DeviceOperand *o, int token, int group, float x) {
    const int lane = lane_of();
    const float largest = warp_max(fabsf(x));
    if (o->formats & FORMAT_CODES) {
        const size_t at = operand_group(o, token, group);
        const float inverse = largest > 0x1p-119f ? 127.0f / largest : 0.0f;
        /* warp_max drops NaN: a group that holds one must not pass for a sound one. */
        const bool finite = __all_sync(0xffffffffu, fabsf(x) <= 3.402823466e38f);
        const int code = finite ? (int)rintf(x * inverse) : 0;
        int total = code;
        for (int step = 16; step; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
        const int owner = 4 * (token % 8) + lane % 16 / 4;
        o->codes[(at * WARP_SIZE + (size_t)owner) * 8 + (size_t)(lane / 16 * 4 + lane % 4)] = (int8_t)code;
        const float scale = finite ? largest / 127.0f : NAN;
        if (lane == 0) o->scales[at * 8 + (size_t)(token % 8)] = make_float2(scale, scale * (float)total);
    }
    if (o->formats & FORMAT_F16) store_halves(o, false, token, group, x, largest);
    if (o->formats & FORMAT_BF16) store_halves(o, true, token, group, x, largest);
    if ((o->formats & FORMAT_VALUES) && group * GROUP + lane < o->columns)
        o->values[(size_t)token * (size_t)o->columns + (size_t)(group * GROUP + lane)] = x;
}

#endif
