/* Rotary positions: the two halves of a head turned against each other, in float32 whatever the type in memory. Built once for each
 * instruction set and type, by a file that says TURN, the function's name, and what memory.h asks for. */

#include "memory.h"

/* (a, b) to (a * cos - b * sin, b * cos + a * sin) in place, where a and b are the halves of a head.
 *
 * x: heads side by side, `step` values from token to token. cos, sin: float32 [tokens][width / 2]. */
void TURN(VALUE *x, int64_t step, int64_t tokens, int64_t heads, int64_t width, const float *cos, const float *sin) {
    const long half = width / 2, even = half / LANES * LANES;
    for (long token = 0; token < tokens; token++, cos += half, sin += half)
        for (long head = 0; head < heads; head++) {
            VALUE *first = x + token * step + head * width, *second = first + half;
            for (long i = 0; i < even; i += LANES) {
                const vec a = GET(first + i), b = GET(second + i), c = load(cos + i), s = load(sin + i);
                PUT(first + i, a * c - b * s);
                PUT(second + i, b * c + a * s);
            }
            for (long i = even; i < half; i++) {
                const float a = GET_ONE(first + i), b = GET_ONE(second + i);
                PUT_ONE(first + i, a * cos[i] - b * sin[i]);
                PUT_ONE(second + i, b * cos[i] + a * sin[i]);
            }
        }
}
