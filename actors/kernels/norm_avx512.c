/* Layer normalisation with AVX-512. */

#if defined(__x86_64__)

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#include "avx512.h"

#define NORM norm_avx512

#include "norm.h"

#endif
