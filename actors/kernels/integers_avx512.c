/* Around products of integers, with AVX-512. */

#if defined(__x86_64__)

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#include "avx512.h"

#define ROUND round_avx512
#define FINISH finish_avx512

#include "integers.h"

#endif
