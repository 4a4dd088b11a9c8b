/* Layer normalisation with AVX2. */

#if defined(__x86_64__)

#pragma GCC target("avx2,fma")
#include "avx2.h"

#define NORM norm_avx2

#include "norm.h"

#endif
