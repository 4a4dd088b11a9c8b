/* The parts of attention.h that are the same for products of float32 in any width. Included by a file that has said
 * NAME, after the header of its instruction set. */

#include "lanes.h"

#define STEP 1

/* 2 ** x for x <= 0, to 2e-7 of it; what is below 2 ** -126 becomes that. Coefficients of Cephes' exp2f (Moshier). */
INLINE vec power_of_2(vec x) {
    const vec shift = all(12582912.0f); /* 1.5 * 2 ** 23: adding it rounds, and leaves the whole part in the low bits */
    x = LARGER(all(-126.0f), x);        /* not a number stays one: it comes second */
    const vec whole = x + shift;
    const vec f = x - (whole - shift);
    vec y = all(1.535336188319500e-4f) * f + 1.339887440266574e-3f;
    y = y * f + 9.618437357674640e-3f;
    y = y * f + 5.550332471162809e-2f;
    y = y * f + 2.402264791363012e-1f;
    y = y * f + 6.931472028550421e-1f;
    y = y * f + 1.0f;
    return (vec)((ints)y + ((ints)whole << 23));
}

INLINE vec multiply(vec sums, vec unit, vec units) {
    return sums + unit * units;
}

/* `wide` is always true: memory holds float32. */
INLINE void unit_row(const char *from, int wide, long width, float *out) {
    (void)wide;
    memcpy(out, from, 4 * width);
    for (; width % (2 * LANES); width++) out[width] = 0;
}

INLINE void interleave(const float *staged, long units, float *out) {
    (void)units;
    memcpy(out, staged, 8 * LANES);
}

INLINE void keep(float *weights, vec low, vec high) {
    store(weights, low);
    store(weights + LANES, high);
}

INLINE void put_row(const float *from, int wide, long width, char *out) {
    (void)wide;
    memcpy(out, from, 4 * width);
}

#include "attention.h"
