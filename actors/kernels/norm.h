/* Layer normalisation of rows, with float32 statistics whatever the type in memory. Built once for each instruction set and
 * type, by a file that says NORM, the function's name, and, where memory does not hold float32, VALUE, the type in memory, and
 * how to get and put vectors of it. */

#include "lanes.h"

#ifndef VALUE
#define VALUE float
#define GET load
#define PUT store
#define GET_ONE *
#define PUT_ONE(to, value) (*(to) = (value))
#endif

/* (s - mean) / sqrt(variance + eps) * weight + bias, of each row s = x + residual.
 *
 * x, residual, out: [rows][width]; residual may be none. weight, bias: float32 [width].
 * Returns 0, or 1 where there is no memory for a row. */
int NORM(const VALUE *x, const VALUE *residual, int64_t rows, int64_t width, const float *weight, const float *bias,
         float eps, VALUE *out) {
    const long even = width / LANES * LANES;
    float *sum = malloc(4 * width);
    if (!sum) return 1;
    for (long row = 0; row < rows; row++, x += width, out += width) {
        const VALUE *r = residual ? residual + row * width : 0;
        vec totals[2] = {{0}, {0}};
        for (long i = 0; i < even; i += LANES) {
            vec s = GET(x + i);
            if (r) s += GET(r + i);
            store(sum + i, s);
            totals[i / LANES % 2] += s;
        }
        float total = sum_of(totals[0] + totals[1]);
        for (long i = even; i < width; i++) total += sum[i] = GET_ONE(x + i) + (r ? GET_ONE(r + i) : 0);
        const float mean = total / width;

        vec squares[2] = {{0}, {0}};
        for (long i = 0; i < even; i += LANES) {
            const vec s = load(sum + i) - mean;
            squares[i / LANES % 2] += s * s;
        }
        float spread = sum_of(squares[0] + squares[1]);
        for (long i = even; i < width; i++) spread += (sum[i] - mean) * (sum[i] - mean);
        const float over = 1 / sqrtf(spread / width + eps);

        for (long i = 0; i < even; i += LANES) PUT(out + i, (load(sum + i) - mean) * over * load(weight + i) + load(bias + i));
        for (long i = even; i < width; i++) PUT_ONE(out + i, (sum[i] - mean) * over * weight[i] + bias[i]);
    }
    free(sum);
    return 0;
}
