/* The parts of attention.h that are the same for products of float32 in any width. Included by a file that has said
 * NAME, after the header of its instruction set. */

#include "lanes.h"

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
