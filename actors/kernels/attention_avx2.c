/* Attention with AVX2: products of float32. Sixteen registers hold one tile of six queries, not two. */

#if defined(__x86_64__)

#pragma GCC target("avx2,fma")
#include "avx2.h"

#define NAME attend_avx2
#define WEIGH_BLOCK(weights, values, count, sums, full)                                    \
    do {                                                                                   \
        weigh(weights, values, count, sums, full, TILE);                                   \
        weigh((weights) + TILE * (KEYS / STEP), values, count, (sums) + TILE * (full), full, TILE); \
    } while (0)

#include "floats.h"

#endif
