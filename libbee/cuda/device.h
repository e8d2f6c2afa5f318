/* What kernels and backend are compiled against: CUDA, or its emulation on the host (-DBEE_EMULATE). */
#ifndef BEE_CUDA_DEVICE_H
#define BEE_CUDA_DEVICE_H

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(BEE_EMULATE)
#include "emulate.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]
#endif

enum { WARP_SIZE = 32 };

/* ---- launches -----------------------------------------------------------------------------------
 *
 * Where it is allowed, a kernel may begin while the one before it in the stream still runs (programmatic dependent
 * launch, compute capability 9.0 and up), so that launches and first copies cost no time of their own:
 *
 *   kernel      ..... rows of blocks ... last blocks |
 *   the next             launch, weights on their way, wait for the grid before | ...
 *
 * So every kernel of a pass calls begin_grid before it touches memory, or its two halves with nothing between them but
 * reads of what no kernel of a pass writes. All blocks wait, so that the end of a grid is the end of all before it.
 * Loads must not be those for memory that is constant while the kernel runs (__ldg): it is not. */

typedef struct LaunchOverlap {
    bool allowed, next; /* next: the launch before was a kernel, and nothing else was queued since */
} LaunchOverlap;
inline thread_local LaunchOverlap launch_overlap;

/* With BEE_CUDA_CARVEOUT=1, the kernel's multiprocessors have as much shared memory as they can, as those of all
 * others: between kernels that want different splits a multiprocessor may have to run empty. */
void ask_for_shared_memory(const void *kernel);

/* Queues a kernel; what goes wrong shows in cudaGetLastError, or at the next wait. */
template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
            Arguments... arguments) {
    ask_for_shared_memory((const void *)kernel);
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config = {grid, block, shared_bytes, stream, &overlap, launch_overlap.next ? 1u : 0u};
    cudaLaunchKernelEx(&config, kernel, (Parameters)arguments...);
    launch_overlap.next = launch_overlap.allowed;
}

#if defined(BEE_EMULATE)
static inline void let_next_grid_begin() {}
void wait_for_grid_before();
#else
static __device__ __forceinline__ void let_next_grid_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/* Until it has ended and all it wrote can be seen. */
static __device__ __forceinline__ void wait_for_grid_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

static __device__ __forceinline__ void begin_grid() {
    let_next_grid_begin();
    wait_for_grid_before();
}

/* ---- numbers ------------------------------------------------------------------------------------ */

/* float16 as bits, so that host and device share one type. Rounding to nearest, ties to even. */
#if defined(BEE_EMULATE)
float emulated_float_from_half(uint16_t half);
uint16_t emulated_half_from_float(float value);
static inline float float_from_half(uint16_t half) { return emulated_float_from_half(half); }
static inline uint16_t half_from_float(float value) { return emulated_half_from_float(value); }
#else
static __device__ __forceinline__ float float_from_half(uint16_t half) { return __half2float(__ushort_as_half(half)); }
static __device__ __forceinline__ uint16_t half_from_float(float value) {
    return __half_as_ushort(__float2half_rn(value));
}
#endif

/* A fused product and sum, and neither fused: -fmad=false keeps the compiler from choosing. */
static __device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }

static __device__ __forceinline__ float bf16_to_float(uint16_t bits) { return __uint_as_float((unsigned)bits << 16); }

/* ---- a warp ------------------------------------------------------------------------------------- */

static __device__ __forceinline__ int lane_of() { return (int)(threadIdx.x % WARP_SIZE); }

/* The same in every lane; lanes are put together in one fixed order. */
static __device__ __forceinline__ float warp_sum(float x) {
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

static __device__ __forceinline__ float warp_max(float x) {
    for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

/* ---- matrix instructions ------------------------------------------------------------------------
 *
 * Fragments as PTX lays them out; lane = 4 g + t. A is 16 rows, B 8 columns, C 16 x 8:
 *
 *   8-bit, 32 deep    a[0]: row g,     k 4 t .. 4 t + 3         b[0]: k 4 t .. 4 t + 3,      column g
 *                     a[1]: row g + 8, the same                 b[1]: k 4 t + 16 .. 4 t + 19, column g
 *                     a[2]: row g,     k 4 t + 16 .. 4 t + 19
 *                     a[3]: row g + 8, the same
 *   8-bit, 16 deep    a[0], a[1] and b[0] alone
 *   16-bit, 16 deep   the same with k 2 t, 2 t + 1 in place of 4 t .., and + 8 in place of + 16
 *   C                 c[0], c[1]: row g, columns 2 t, 2 t + 1;  c[2], c[3]: row g + 8
 *
 * d = a b + c. The 8-bit ones are exact; the others add in an order of the hardware's own, which no other column
 * changes. */
#if defined(BEE_EMULATE)
void mma_s8_k32(int *d, const unsigned *a, const unsigned *b, const int *c);
void mma_s8_k16(int *d, const unsigned *a, unsigned b, const int *c);
void mma_f16_k16(float *d, const unsigned *a, const unsigned *b, const float *c);
void mma_bf16_k16(float *d, const unsigned *a, const unsigned *b, const float *c);
#else
static __device__ __forceinline__ void mma_s8_k32(int *d, const unsigned *a, const unsigned *b, const int *c) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
static __device__ __forceinline__ void mma_s8_k16(int *d, const unsigned *a, unsigned b, const int *c) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
static __device__ __forceinline__ void mma_f16_k16(float *d, const unsigned *a, const unsigned *b, const float *c) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
static __device__ __forceinline__ void mma_bf16_k16(float *d, const unsigned *a, const unsigned *b, const float *c) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
#endif

/* ---- copies into shared memory, under way while the thread goes on ----------------------------------- */

#if defined(BEE_EMULATE)
static inline void copy_async(void *shared, const void *global) { emulated_copy_async(shared, global); }
static inline void copies_commit() { emulated_copies_commit(); }
template <int LEFT> static inline void copies_wait() { emulated_copies_wait(LEFT); }
#else
/* 16 bytes, both sides aligned; past the first-level cache. */
static __device__ __forceinline__ void copy_async(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
}
static __device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Until at most LEFT of this thread's groups are under way. Others' copies need a barrier behind it. */
template <int LEFT> static __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
#endif

#endif
