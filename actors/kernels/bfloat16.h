/* bfloat16 in memory as vectors of float32, with AVX512-BF16. Comes after avx512.h. */

#pragma once

#include "lanes.h"

INLINE vec get(const uint16_t *from) {
    const __m256i half = _mm256_loadu_si256((const __m256i *)from);
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}

INLINE void put(uint16_t *to, vec x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

INLINE float get_one(const uint16_t *from) {
    return _mm_cvtss_f32((__m128)_mm_cvtsi32_si128((int)((uint32_t)*from << 16)));
}

INLINE void put_one(uint16_t *to, float x) {
    *to = (uint16_t)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(x)), 0);
}

#define VALUE uint16_t
#define GET get
#define PUT put
#define GET_ONE get_one
#define PUT_ONE put_one
