/* Which instruction sets kernels were compiled for, and which of them this processor and its system can run. */
#ifndef BEE_INSTRUCTION_SETS_H
#define BEE_INSTRUCTION_SETS_H

#include "bee.h"
#include "kernels.h"

/* Those of an instruction set, or the best. NULL where it is not available: the error says what is. */
const Kernels *choose_kernels(const char *wanted, bee_error *error);

#endif
