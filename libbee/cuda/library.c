#define _GNU_SOURCE
#include "library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices.h"
#include "error.h"
#include "work_sizes.h"

/* Where libbee lies, its companion lies too. */
static bool find_library(char *path, size_t size) {
    const char *named = getenv("BEE_CUDA_LIBRARY");
    if (named && *named) return snprintf(path, size, "%s", named) < (int)size;
    Dl_info self;
    if (!dladdr((const void *)bee_version, &self) || !self.dli_fname) return false;
    const char *slash = strrchr(self.dli_fname, '/');
    const int folder = slash ? (int)(slash - self.dli_fname) + 1 : 0;
    return snprintf(path, size, "%.*slibbee_cuda.so", folder, self.dli_fname) < (int)size;
}

/* Loads it, once: the file that the environment variable BEE_CUDA_LIBRARY names, or libbee_cuda.so beside this library.
 * NULL with BEE_ERROR_DEVICE where it is not there. It stays loaded. */
static const CudaLibrary *load_library(bee_error *error) {
    char path[4096];
    if (!find_library(path, sizeof path)) {
        bee_fail(error, BEE_ERROR_DEVICE, "the path of libbee_cuda.so cannot be found");
        return NULL;
    }
    /* The system counts: loading what is loaded gives the same handle. */
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        bee_fail(error, BEE_ERROR_DEVICE,
                 "the CUDA library is missing or cannot be loaded (%s); it is built with libbee where nvcc is found: "
                 "install the CUDA toolkit and then this package anew, or use the CPU",
                 dlerror());
        return NULL;
    }
    CudaLibraryFunction function;
    *(void **)&function = dlsym(handle, "bee_cuda_library");
    const CudaLibrary *library = function ? function() : NULL;
    if (library && !strcmp(library->version, bee_version())) return library;
    bee_fail(error, BEE_ERROR_DEVICE, "%s is not the CUDA library of libbee %s: install the package anew", path,
             bee_version());
    return NULL;
}

/* ---- the device --------------------------------------------------------------------------------- */

static bee_status describe(bee_device_info *out, bee_error *error) {
    bee_error local;
    if (!error) error = &local;
    const CudaLibrary *library = load_library(error);
    return library ? library->describe(out, error) : error->status;
}

static const Ops *operations(bee_error *error) {
    const CudaLibrary *library = load_library(error);
    return library ? library->ops : NULL;
}

static Backend *backend_new(int n_threads, const char *instruction_set, bee_error *error) {
    (void)n_threads;
    (void)instruction_set;
    const CudaLibrary *library = load_library(error);
    return library ? library->backend_new(error) : NULL;
}

static void backend_free(Backend *backend) {
    if (backend) load_library(NULL)->backend_free(backend);
}

static const char *instruction_set(const Backend *backend) {
    (void)backend;
    return "cuda";
}

static int n_threads(const Backend *backend) {
    (void)backend;
    return 1;
}

static const char *note(const Backend *backend) { return load_library(NULL)->note(backend); }

/* ---- bytes -------------------------------------------------------------------------------------- */

/* Kernels, their local memory and the driver's own: seen to be 300 to 500 MB. With a backend what is left are kernels
 * that have not run yet. */
enum { DRIVER_BYTES = 512 << 20, DRIVER_BYTES_TO_COME = 64 << 20 };

/* Products split over their columns: at most 511 blocks of 64 rows, for each of those that run together. */
static const uint64_t PARTIAL_BYTES = 4ull * 511 * 64 * BEE_MAX_PASS_ROWS * sizeof(float) + (1 << 20);

static uint64_t matrix_bytes(TensorType type, int rows, int columns) {
    const DeviceWeight weight = device_weight_layout(type, rows, columns);
    return device_bytes(device_weight_bytes(&weight));
}

static uint64_t experts_bytes(TensorType type, int rows, int columns, int n) {
    const DeviceWeight weight = device_weight_layout(type, rows, columns);
    return device_bytes((size_t)n * device_weight_bytes(&weight)) + device_bytes((size_t)n * sizeof(float));
}

static uint64_t buffer_bytes(uint64_t bytes) { return device_bytes(bytes); }

static uint64_t operand_bytes(int columns) {
    const OperandSizes s = operand_sizes(columns, BEE_MAX_PASS_ROWS);
    return device_bytes(s.codes) + device_bytes(s.scales) + 2 * (device_bytes(s.halves) + device_bytes(s.factors)) +
           device_bytes(s.values);
}

static uint64_t partial_results(const CacheShape *shape, int n_ctx) {
    return device_bytes(attention_bytes(shape->n_head, shape->query_columns, attention_chunks(shape, n_ctx)));
}

/* The largest head's rows are kept where log-probabilities are asked for. Of what is small, some lies in pages that
 * nothing else fills. */
static uint64_t shared_bytes(int n_head_rows, int n_ff, int n_layers) {
    static const uint64_t SMALL_PIECES = 8 << 20;
    return PARTIAL_BYTES + 2 * device_bytes(STAGING_BYTES) + SMALL_PIECES +
           device_bytes(BEE_MAX_PASS_ROWS * padded(n_head_rows) * sizeof(float)) +
           device_bytes(gate_bytes(n_head_rows > n_ff ? n_head_rows : n_ff)) +
           MOST_GRAPHS * graph_bytes(LAYER_KERNELS * n_layers + OTHER_KERNELS);
}

static uint64_t bytes_taken(const Backend *backend) { return load_library(NULL)->bytes_taken(backend); }

const Device bee_cuda_device = {
    .kind = BEE_DEVICE_CUDA,
    .own_memory = true,
    .gates_alike = true,
    .describe = describe,
    .ops = operations,
    .backend_new = backend_new,
    .backend_free = backend_free,
    .instruction_set = instruction_set,
    .n_threads = n_threads,
    .note = note,
    .matrix_bytes = matrix_bytes,
    .experts_bytes = experts_bytes,
    .buffer_bytes = buffer_bytes,
    .operand_bytes = operand_bytes,
    .attention_bytes = partial_results,
    .shared_bytes = shared_bytes,
    .driver_bytes = DRIVER_BYTES,
    .driver_bytes_to_come = DRIVER_BYTES_TO_COME,
    .bytes_taken = bytes_taken,
};
