/* CUDA on the host: what the kernels and the backend use of the language and of the runtime library, so that the very
 * same sources can be compiled by a C++ compiler and tested on any machine. Nothing here is fast.
 *
 * The threads of a block are fibers of one system thread. They run one after the other, each until it waits for others:
 * at a barrier, a shuffle, a matrix instruction. `emulated_order` changes who comes first, so that a missing barrier
 * shows as another result. Streams are lazy: work is queued, and done when somebody waits for it, so that a read which
 * does not wait sees old data. Of a kernel that may overlap with the one before it a block begins, until it waits,
 * before that one. Fresh device memory holds NaN, and so does the shared memory of a block that begins. Copies into it
 * arrive at once in every other block, and in the others when their thread waits for them, not before. Vectors and
 * copies must be aligned as the hardware asks. A thread that counts blocks must have fenced what the others wrote since
 * they met. Sums of matrix instructions come in the order of their terms, or with BEE_EMULATED_SUMS as the hardware of
 * a generation makes them (emulate.cpp).
 *
 * One grid runs at a time, whichever system thread it belongs to.
 *
 * Kernels keep to this: all threads of a warp take part in every warp-wide function, and all shared memory is declared
 * with __shared__ or SHARED_MEMORY. */
#ifndef BEE_CUDA_EMULATE_H
#define BEE_CUDA_EMULATE_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

/* ---- the language ------------------------------------------------------------------------------- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
/* All in one place, so that they can be poisoned. */
#define __shared__ static __attribute__((section("bee_shared")))
#define SHARED_MEMORY(name) unsigned char *const name = emulated_shared_memory()

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct EmulatedThread {
    dim3 thread, block, block_size, grid_size;
};
extern EmulatedThread *emulated_thread __attribute__((visibility("hidden")));

unsigned char *emulated_shared_memory();
/* 0: fibers start in the order of their threads; 1: in the opposite order; others: shuffled. */
extern int emulated_order;

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffff);
void __threadfence();

void emulated_copy_async(void *shared, const void *global);
void emulated_copies_commit();
void emulated_copies_wait(int left); /* until at most so many of the thread's groups are under way */

/* Every lane gives `bytes` (at most 32) and sees those of all 32, one beside the other, until its next exchange. */
const void *emulated_exchange(const void *mine, size_t bytes);
unsigned emulated_lane();

template <class T> T __shfl_sync(unsigned, T value, int source, int width = 32) {
    const unsigned lane = emulated_lane();
    const T *all = (const T *)emulated_exchange(&value, sizeof value);
    return all[(lane & ~(unsigned)(width - 1)) + ((unsigned)source & (unsigned)(width - 1))];
}
template <class T> T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
    const unsigned lane = emulated_lane();
    return ((const T *)emulated_exchange(&value, sizeof value))[lane ^ (unsigned)mask];
}
template <class T> T __shfl_down_sync(unsigned, T value, unsigned delta, int = 32) {
    const unsigned lane = emulated_lane();
    const T *all = (const T *)emulated_exchange(&value, sizeof value);
    return all[lane + delta < 32 ? lane + delta : lane];
}
unsigned __ballot_sync(unsigned mask, int predicate);
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffff; }

/* Of device memory: others count on what was written before, which must have been fenced. */
void emulated_check_fence(const void *at);

template <class T, class U> T atomicAdd(T *at, U value) {
    emulated_check_fence(at);
    const T old = *at;
    *at = (T)(old + value);
    return old;
}
template <class T, class U> T atomicMax(T *at, U value) {
    const T old = *at;
    if ((T)value > old) *at = (T)value;
    return old;
}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline float __int_as_float(int bits) { return __uint_as_float((unsigned)bits); }
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}

/* ---- the runtime library ------------------------------------------------------------------------ */

typedef enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureInvalidated = 901,
} cudaError_t;
typedef enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3
} cudaMemcpyKind;
typedef struct EmulatedStream *cudaStream_t;
typedef struct EmulatedEvent *cudaEvent_t;
typedef struct EmulatedGraph *cudaGraph_t;
typedef struct EmulatedGraph *cudaGraphExec_t;
typedef enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 } cudaStreamCaptureMode;
typedef struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
} cudaDeviceProp;
typedef enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 } cudaLaunchAttributeID;
typedef struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        int programmaticStreamSerializationAllowed;
    } val;
} cudaLaunchAttribute;
typedef struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
} cudaLaunchConfig_t;
enum { cudaHostAllocDefault = 0, cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaEventDefault = 0 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };

/* In place of NVML. */
bool memory_without_context(const cudaDeviceProp *card, size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaMalloc(void **out, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);

void emulated_enqueue_grid(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, bool overlaps,
                           std::function<void()> kernel);
/* Of a card: sizes of grids and blocks, and 48 KiB of shared memory, of which the kernel's own variables take a part,
 * unless a function asked for up to 99. With BEE_CUDA_CARVEOUT=1 all must have a preferred split of shared memory and
 * cache. A launch that is refused is the last error. */
cudaError_t emulated_launch(const void *kernel, dim3 grid, dim3 block, size_t shared_bytes, bool overlaps);
cudaError_t emulated_function_attribute(const void *kernel, int attribute, int value);

/* As the runtime library's: the arguments are copied at the launch. */
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                               Arguments &&...arguments) {
    const dim3 grid = config->gridDim, block = config->blockDim;
    const size_t shared = config->dynamicSmemBytes;
    const bool overlaps = config->numAttrs && config->attrs->val.programmaticStreamSerializationAllowed;
    const cudaError_t error = emulated_launch((const void *)kernel, grid, block, shared, overlaps);
    if (error != cudaSuccess) return error;
    emulated_enqueue_grid(config->stream, grid, block, shared, overlaps, std::bind(kernel, (Parameters)(arguments)...));
    return cudaSuccess;
}
typedef struct cudaFuncAttributes {
    int ptxVersion;
} cudaFuncAttributes;
template <class Kernel> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, Kernel) {
    return out->ptxVersion = 90, cudaSuccess;
}
template <class Kernel> cudaError_t cudaFuncSetAttribute(Kernel kernel, int attribute, int value) {
    return emulated_function_attribute((const void *)kernel, attribute, value);
}

/* Last, because structures above have members of these names. */
#define threadIdx (emulated_thread->thread)
#define blockIdx (emulated_thread->block)
#define blockDim (emulated_thread->block_size)
#define gridDim (emulated_thread->grid_size)

#endif
