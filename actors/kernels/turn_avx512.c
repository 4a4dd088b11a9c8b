/* Rotary positions with AVX-512. */

#if defined(__x86_64__)

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#include "avx512.h"

#define TURN turn_avx512

#include "turn.h"

#endif
