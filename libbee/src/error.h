/* Error reporting: fill the caller's bee_error and return its status. */
#ifndef BEE_ERROR_H
#define BEE_ERROR_H

#include "bee.h"

/* Writes a printf-style message; returns `status`, so that `return bee_fail(...)` reads well. */
bee_status bee_fail(bee_error *error, bee_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
