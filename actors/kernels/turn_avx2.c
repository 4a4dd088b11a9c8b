/* Rotary positions with AVX2. */

#if defined(__x86_64__)

#pragma GCC target("avx2,fma")
#include "avx2.h"

#define TURN turn_avx2

#include "turn.h"

#endif
