/* Products of rows of bfloat16 with one vector, with AVX2. */

#if defined(__x86_64__)

#pragma GCC target("avx2,fma")
#include "avx2.h"

static inline __attribute__((always_inline)) __m256 widen(const uint16_t *from) {
    return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
}

#define PRODUCTS products_avx2
#define SELECT select_avx2
#define SEARCH search_avx2
#define GROUP 6

#include "products.h"
#include "search.h"

#endif
