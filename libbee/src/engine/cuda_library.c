#define _GNU_SOURCE
#include "cuda_library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

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

const CudaLibrary *cuda_library(bee_error *error) {
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

bee_status bee_device_describe(bee_device device, bee_device_info *out, bee_error *error) {
    *out = (bee_device_info){.name = "CPU"};
    if (device == BEE_DEVICE_CPU) return BEE_OK;
    if (device != BEE_DEVICE_CUDA)
        return bee_fail(error, BEE_ERROR_ARGUMENT, "device is %d; a device is CPU or CUDA", (int)device);
    bee_error local;
    if (!error) error = &local;
    const CudaLibrary *library = cuda_library(error);
    return library ? library->describe(out, error) : error->status;
}
