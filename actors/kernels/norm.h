/* Layer normalisation of rows, with float32 statistics whatever the type in memory. Built once for each instruction set and
 * type, by a file that says NORM, the function's name, VALUE, the type in memory, and how to get and put vectors of it. */

#include "lanes.h"

/* (x - mean) / sqrt(variance + eps) * weight + bias, of each row.
 *
 * x, out: [rows][width]; may be the same. weight, bias: float32 [width]. */
void NORM(const VALUE *x, int64_t rows, int64_t width, const float *weight, const float *bias, float eps, VALUE *out) {
    const long even = width / LANES * LANES;
    for (long row = 0; row < rows; row++, x += width, out += width) {
        vec sums[2] = {{0}, {0}};
        long i = 0;
        for (; i + 2 * LANES <= even; i += 2 * LANES) {
            sums[0] += GET(x + i);
            sums[1] += GET(x + i + LANES);
        }
        if (i < even) sums[0] += GET(x + i);
        float total = sum_of(sums[0] + sums[1]);
        for (i = even; i < width; i++) total += GET_ONE(x + i);
        const float mean = total / width;

        vec squares[2] = {{0}, {0}};
        for (i = 0; i + 2 * LANES <= even; i += 2 * LANES) {
            const vec a = GET(x + i) - mean, b = GET(x + i + LANES) - mean;
            squares[0] += a * a;
            squares[1] += b * b;
        }
        if (i < even) {
            const vec a = GET(x + i) - mean;
            squares[0] += a * a;
        }
        float spread = sum_of(squares[0] + squares[1]);
        for (i = even; i < width; i++) spread += (GET_ONE(x + i) - mean) * (GET_ONE(x + i) - mean);
        const float over = 1 / sqrtf(spread / width + eps);

        for (i = 0; i < even; i += LANES) PUT(out + i, (GET(x + i) - mean) * over * load(weight + i) + load(bias + i));
        for (i = even; i < width; i++) PUT_ONE(out + i, (GET_ONE(x + i) - mean) * over * weight[i] + bias[i]);
    }
}
