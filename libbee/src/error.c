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
        /* A message may quote a path or a file's text; a control character there must not begin a line of its own. */
        for (char *c = error->message; *c; c++)
            if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?';
    }
    return status;
}
