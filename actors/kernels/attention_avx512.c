/* Attention with AVX-512: products of float32. */

#if defined(__x86_64__)

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#include "avx512.h"

#define NAME attend_avx512
#define WEIGH_BLOCK(weights, values, count, sums, full) weigh(weights, values, count, sums, full, BLOCK)

#include "floats.h"

#endif
