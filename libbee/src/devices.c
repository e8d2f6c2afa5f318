#include "devices.h"

#include <stdarg.h>
#include <stdio.h>

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

bee_status fail_to_make(const Ops *ops, Backend *backend, bee_error *error, const char *format, ...) {
    const bee_status status = ops->device ? ops->device->status(backend, error) : BEE_OK;
    if (status) return status;
    char message[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return bee_fail(error, BEE_ERROR_MEMORY, "%s", message);
}
