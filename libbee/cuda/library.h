/* libbee_cuda: the CUDA backend, in a library of its own that is loaded when somebody asks for a card. */
#ifndef BEE_CUDA_LIBRARY_H
#define BEE_CUDA_LIBRARY_H

#include "ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What libbee_cuda offers: its one exported function, `bee_cuda_library`, returns it. */
typedef struct CudaLibrary {
    const char *version; /* of libbee: both are built together */
    const Ops *ops;
    /* The card that a backend would use. BEE_ERROR_DEVICE: driver, device or capability is missing. */
    bee_status (*describe)(bee_device_info *out, bee_error *error);
    Backend *(*backend_new)(bee_error *error);
    void (*backend_free)(Backend *backend);
    uint64_t (*bytes_taken)(const Backend *backend); /* of the device's memory, now */
    const char *(*note)(const Backend *backend);     /* as a Device's */
} CudaLibrary;

typedef const CudaLibrary *(*CudaLibraryFunction)(void);

#ifdef __cplusplus
}
#endif

#endif
