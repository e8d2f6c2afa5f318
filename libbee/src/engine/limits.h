/* What passes need, beside what the machine allows. */
#ifndef BEE_LIMITS_H
#define BEE_LIMITS_H

#include "state.h"

bee_pass_needs pass_needs(const Ops *ops, const Model *model);

#endif
