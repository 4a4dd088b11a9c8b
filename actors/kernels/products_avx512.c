/* Products of rows of bfloat16 with vectors, and of rows of int8, with AVX-512. */

#if defined(__x86_64__)

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#include "avx512.h"

static inline __attribute__((always_inline)) __m512 widen(const uint16_t *from) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
}

static inline __attribute__((always_inline)) __m512 widen_bytes(const int8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
}

#define PRODUCTS products_avx512
#define SELECT select_avx512
#define SEARCH search_avx512
#define MAXSIM maxsim_avx512
#define GROUP 12

#include "products.h"
#include "search.h"
#include "maxsim.h"

#endif
