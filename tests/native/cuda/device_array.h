/* Arrays in the device's memory; on the emulation fresh ones hold NaN. */
#ifndef BEE_TESTS_CUDA_DEVICE_ARRAY_H
#define BEE_TESTS_CUDA_DEVICE_ARRAY_H

#include "must.h"

#include <vector>

static cudaStream_t stream;

template <class T> struct DeviceArray {
    T *at = nullptr;
    size_t n = 0;
    explicit DeviceArray(size_t count) : n(count) { MUST(cudaMalloc((void **)&at, (n ? n : 1) * sizeof(T))); }
    explicit DeviceArray(const std::vector<T> &values) : DeviceArray(values.size()) { put(values); }
    DeviceArray(const DeviceArray &) = delete;
    ~DeviceArray() { cudaFree(at); }
    void put(const std::vector<T> &values) {
        if (values.empty()) return;
        MUST(cudaMemcpyAsync(at, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, stream));
        MUST(cudaStreamSynchronize(stream));
    }
    std::vector<T> get() const {
        std::vector<T> values(n);
        if (n) MUST(cudaMemcpyAsync(values.data(), at, n * sizeof(T), cudaMemcpyDeviceToHost, stream));
        MUST(cudaStreamSynchronize(stream));
        return values;
    }
};

static inline void set_order(int order) {
#if defined(BEE_EMULATE)
    emulated_order = order;
#else
    (void)order;
#endif
}

#endif
