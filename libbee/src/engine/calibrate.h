/* What passes and drafts cost on this machine, from which drafts are chosen. */
#ifndef BEE_CALIBRATE_H
#define BEE_CALIBRATE_H

#include "state.h"

/* Fills the engine's costs: with what is known, or else by running passes and drafts. */
bee_status calibrate(bee_engine *engine, const bee_costs *known, bee_error *error);

#endif
