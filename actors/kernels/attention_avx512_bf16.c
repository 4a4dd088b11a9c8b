/* Attention with AVX512-BF16: products of pairs of bfloat16. States in memory are bfloat16, or float32 and rounded. */

#if defined(__x86_64__)

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#include "avx512.h"

#define NAME attend_avx512_bf16
#define STEP 2

#include "lanes.h"

/* 2 ** x for x <= 0, to 8e-5 of it where rounding to bfloat16 leaves 4e-3: a minimax polynomial of degree 3 for what is above
 * the whole part, and the whole part goes to the exponent. */
INLINE __m512 power_of_2(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 y = all(7.80243363e-02f) * f + 2.26067150e-01f;
    y = y * f + 6.95833542e-01f;
    y = y * f + 9.99925217e-01f;
    return _mm512_scalef_ps(y, x);
}

INLINE __m512 multiply(__m512 sums, __m512 unit, __m512 units) {
    return _mm512_dpbf16_ps(sums, (__m512bh)unit, (__m512bh)units);
}

INLINE void unit_row(const char *from, int wide, long width, float *out) {
    for (long d = 0; d < width; d += 32) {
        const long left = width - d;
        __m512i x;
        if (wide) {
            const float *f = (const float *)from + d;
            const __mmask16 low = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
            const __mmask16 high = left >= 32 ? 0xffff : left <= 16 ? 0 : (__mmask16)((1u << (left - 16)) - 1);
            x = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, f + 16), _mm512_maskz_loadu_ps(low, f));
        } else {
            const __mmask32 some = left >= 32 ? 0xffffffffu : (1u << left) - 1;
            x = _mm512_maskz_loadu_epi16(some, (const short *)from + d);
        }
        _mm512_storeu_si512(out + d / 2, x);
    }
}

/* (a[d], b[d]) for 32 dimensions of two tokens. */
INLINE void interleave(const float *staged, long units, float *out) {
    const __m512i a = _mm512_loadu_si512(staged), b = _mm512_loadu_si512(staged + units);
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                           36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(a, first, b));
    _mm512_storeu_si512(out + 16, _mm512_permutex2var_epi16(a, second, b));
}

INLINE void keep(float *weights, __m512 low, __m512 high) {
    _mm512_storeu_si512(weights, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

INLINE void put_row(const float *from, int wide, long width, char *out) {
    for (long d = 0; d < width; d += 16) {
        const __mmask16 some = width - d >= 16 ? 0xffff : (__mmask16)((1u << (width - d)) - 1);
        const __m512 x = _mm512_loadu_ps(from + d);
        if (wide) _mm512_mask_storeu_ps((float *)out + d, some, x);
        else _mm256_mask_storeu_epi16((short *)out + d, some, (__m256i)_mm512_cvtneps_pbh(x));
    }
}

#define WEIGH_BLOCK(weights, values, count, sums, full) weigh(weights, values, count, sums, full, BLOCK)

#include "attention.h"

#endif
