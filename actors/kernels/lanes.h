/* Vectors of float32 as the kernels use them, in GCC's own notation for any width. Comes after the header of an
 * instruction set, which says LANES, LARGER and all. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
