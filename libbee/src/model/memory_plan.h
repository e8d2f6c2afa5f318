/* What a model takes of a device's memory. */
#ifndef BEE_MEMORY_PLAN_H
#define BEE_MEMORY_PLAN_H

#include "bee.h"

/* BEE_OK where the plan fits what is free on the device, less `there`, which somebody has taken already; otherwise
 * BEE_ERROR_MEMORY with the numbers and what could be changed. */
bee_status plan_check(const bee_memory_plan *plan, uint64_t there, const bee_device_info *device, int32_t n_ctx,
                      bee_error *error);

#endif
