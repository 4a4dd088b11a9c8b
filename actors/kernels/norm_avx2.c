/* Layer normalisation with AVX2. */

#if defined(__x86_64__)

#pragma GCC target("avx2,fma")
#include "avx2.h"

#define NORM norm_avx2
#define VALUE float
#define GET load
#define PUT store
#define GET_ONE *
#define PUT_ONE(to, value) (*(to) = (value))

#include "norm.h"

#endif
