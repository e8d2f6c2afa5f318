#include "error.h"

#include <stdarg.h>
#include <stdio.h>

bee_status bee_fail(bee_error *error, bee_status status, const char *format, ...) {
    if (error) {
        error->status = status;
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

const char *bee_version(void) { return BEE_VERSION; }
