/* The parts of attention.h that are the same for products of float32 in any width. Included by a file that has said
 * NAME and LANES. */

#include <string.h>

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float loose_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline __attribute__((always_inline)) floats multiply(floats sums, floats unit, floats units) {
    return sums + unit * units;
}

/* `wide` is always true: memory holds float32. */
static inline __attribute__((always_inline)) void unit_row(const char *from, int wide, long width, float *out) {
    (void)wide;
    memcpy(out, from, 4 * width);
    for (; width % (2 * LANES); width++) out[width] = 0;
}

static inline __attribute__((always_inline)) void interleave(const float *staged, long units, float *out) {
    (void)units;
    memcpy(out, staged, 8 * LANES);
}

static inline __attribute__((always_inline)) void keep(float *weights, floats low, floats high) {
    *(loose_floats *)weights = low;
    *(loose_floats *)(weights + LANES) = high;
}

static inline __attribute__((always_inline)) void put_row(const float *from, int wide, long width, char *out) {
    (void)wide;
    memcpy(out, from, 4 * width);
}

#include "attention.h"
