/* Products of rows of bfloat16 with vectors, and of rows of int8, with AVX2. */

#if defined(__x86_64__)

#pragma GCC target("avx2,fma")
#include "avx2.h"

static inline __attribute__((always_inline)) __m256 widen(const uint16_t *from) {
    return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
}

static inline __attribute__((always_inline)) __m256 widen_bytes(const int8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}

#define PRODUCTS products_avx2
#define SELECT select_avx2
#define SEARCH search_avx2
#define MAXSIM maxsim_avx2
#define GROUP 6

#include "products.h"
#include "search.h"
#include "maxsim.h"

#endif
