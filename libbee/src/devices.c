#include "devices.h"

#include "error.h"

static const Device *const devices[] = {&bee_cpu_device, &bee_cuda_device};

const Device *device_of(bee_device kind) {
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (devices[i]->kind == kind) return devices[i];
    return NULL;
}

bee_status bee_device_describe(bee_device kind, bee_device_info *out, bee_error *error) {
    const Device *device = device_of(kind);
    *out = (bee_device_info){.name = ""};
    if (!device) return bee_fail(error, BEE_ERROR_ARGUMENT, "device is %d; a device is CPU or CUDA", (int)kind);
    return device->describe(out, error);
}
