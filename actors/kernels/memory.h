/* How values lie in memory, where loops are built for several types: float32, unless a file has said VALUE, the type, and how to
 * get and put vectors of it. */

#pragma once

#include "lanes.h"

#ifndef VALUE
#define VALUE float
#define GET load
#define PUT store
#define GET_ONE *
#define PUT_ONE(to, value) (*(to) = (value))
#endif
