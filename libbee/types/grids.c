#include "types/grids.h"

#include "types/grid_data.h"
