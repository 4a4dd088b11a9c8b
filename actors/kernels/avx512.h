/* What attention.h asks of an instruction set, for AVX-512. */

#pragma once

#include <immintrin.h>
#include <stdint.h>

#define LANES 16
#define COLUMNS 4
#define LARGER _mm512_max_ps
#define all _mm512_set1_ps

static inline __attribute__((always_inline)) float sum_of(__m512 x) { return _mm512_reduce_add_ps(x); }
static inline __attribute__((always_inline)) float largest_of(__m512 x) { return _mm512_reduce_max_ps(x); }

/* 16 vectors of 16 units, rows to columns: by units, by pairs, then by quarters of a register, twice. */
static inline __attribute__((always_inline)) void turn(__m512 rows[16]) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = (__m512i)rows[i];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        rows[i] = (__m512)_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        rows[i + 8] = (__m512)_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        rows[i + 4] = (__m512)_mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        rows[i + 12] = (__m512)_mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* 0 to 255, rounded to the nearest, as bytes. */
static inline __attribute__((always_inline)) void put_bytes(uint8_t *to, __m512 x) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(x)));
}
