/* What the machine allows: the rates that a pass runs against. */
#ifndef BEE_RATES_H
#define BEE_RATES_H

#include "kernels.h"
#include "ops.h"
#include "threads.h"

/* Measures with all threads of the pool at once, in some tenths of a second. False where memory ran out. */
bool rates_measure(ThreadPool *pool, const Kernels *kernels, uint64_t reread_bytes, Rates *out);

#endif
