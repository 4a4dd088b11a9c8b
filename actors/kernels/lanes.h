/* Vectors of float32 as the kernels use them, in GCC's own notation for any width. Comes after the header of an
 * instruction set, which says LANES, LARGER and all, and after STEP where that is not 1. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef STEP
#define STEP 1
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

static const float LOG2E = 1.44269504f;

INLINE vec load(const void *from) { return *(const loose *)from; }
INLINE void store(void *to, vec x) { *(loose *)to = x; }

/* 0, 1, 2 and so on. */
INLINE ints numbers(void) {
    ints x;
    UNROLL
    for (int i = 0; i < LANES; i++) x[i] = i;
    return x;
}

/* 2 ** x for x <= 0; what is below 2 ** -126 becomes that. To 2e-7 of it, with the coefficients of Cephes' exp2f
 * (Moshier); where weights are rounded to bfloat16 anyway, to 4e-6. */
INLINE vec power_of_2(vec x) {
    const vec shift = all(12582912.0f); /* 1.5 * 2 ** 23: adding it rounds, and leaves the whole part in the low bits */
    x = LARGER(all(-126.0f), x);        /* not a number stays one: it comes second */
    const vec whole = x + shift;
    const vec f = x - (whole - shift);
    vec y;
    if (STEP == 1) {
        y = all(1.535336188319500e-4f) * f + 1.339887440266574e-3f;
        y = y * f + 9.618437357674640e-3f;
    } else {
        y = all(9.6181291e-3f);
    }
    y = y * f + 5.550332471162809e-2f;
    y = y * f + 2.402264791363012e-1f;
    y = y * f + 6.931472028550421e-1f;
    y = y * f + 1.0f;
    return (vec)((ints)y + ((ints)whole << 23));
}
