#include "bee.h"

const char *bee_version(void) { return BEE_VERSION; }
