/* Layer normalisation of rows, with float32 statistics whatever the type in memory. Built once for each instruction set and
 * type, by a file that says NORM, the function's name, and what memory.h asks for. */

#include "memory.h"

/* Rows that are normalised together: each step of one waits for the step before, so others fill the time. */
enum { TOGETHER = 4 };

INLINE void norm_rows(const VALUE *x, const VALUE *residual, long width, const float *weight, const float *bias, float eps,
                      VALUE *out, float *sums, int rows) {
    const long even = width / LANES * LANES;
    vec lanes[TOGETHER];
    float mean[TOGETHER], over[TOGETHER];
    UNROLL
    for (int r = 0; r < rows; r++) lanes[r] = (vec){0};
    for (long i = 0; i < even; i += LANES) {
        UNROLL
        for (int r = 0; r < rows; r++) {
            vec s = GET(x + r * width + i);
            if (residual) s += GET(residual + r * width + i);
            store(sums + r * width + i, s);
            lanes[r] += s;
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        float total = sum_of(lanes[r]);
        for (long i = even; i < width; i++) {
            const float s = GET_ONE(x + r * width + i) + (residual ? GET_ONE(residual + r * width + i) : 0);
            sums[r * width + i] = s;
            total += s;
        }
        mean[r] = total / width;
        lanes[r] = (vec){0};
    }
    for (long i = 0; i < even; i += LANES) {
        UNROLL
        for (int r = 0; r < rows; r++) {
            const vec s = load(sums + r * width + i) - mean[r];
            lanes[r] += s * s;
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        float squares = sum_of(lanes[r]);
        for (long i = even; i < width; i++) squares += (sums[r * width + i] - mean[r]) * (sums[r * width + i] - mean[r]);
        over[r] = 1 / sqrtf(squares / width + eps);
    }
    for (long i = 0; i < even; i += LANES) {
        const vec w = load(weight + i), b = load(bias + i);
        UNROLL
        for (int r = 0; r < rows; r++) PUT(out + r * width + i, (load(sums + r * width + i) - mean[r]) * over[r] * w + b);
    }
    for (long i = even; i < width; i++)
        for (int r = 0; r < rows; r++)
            PUT_ONE(out + r * width + i, (sums[r * width + i] - mean[r]) * over[r] * weight[i] + bias[i]);
}

/* (s - mean) / sqrt(variance + eps) * weight + bias, of each row s = x + residual.
 *
 * x, residual, out: [rows][width]; residual may be none. weight, bias: float32 [width].
 * Returns 0, or 1 where there is no memory for a few rows. */
int NORM(const VALUE *x, const VALUE *residual, int64_t rows, int64_t width, const float *weight, const float *bias,
         float eps, VALUE *out) {
    float *sums = malloc(4 * TOGETHER * width);
    if (!sums) return 1;
    for (long row = 0; row < rows;) {
        const int some = rows - row < TOGETHER ? 1 : TOGETHER;
        const VALUE *r = residual ? residual + row * width : 0;
        if (some == TOGETHER) norm_rows(x + row * width, r, width, weight, bias, eps, out + row * width, sums, TOGETHER);
        else norm_rows(x + row * width, r, width, weight, bias, eps, out + row * width, sums, 1);
        row += some;
    }
    free(sums);
    return 0;
}
