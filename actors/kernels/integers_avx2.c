/* Around products of integers, with AVX2. */

#if defined(__x86_64__)

#pragma GCC target("avx2,fma")
#include "avx2.h"

#define ROUND round_avx2
#define FINISH finish_avx2

#include "integers.h"

#endif
