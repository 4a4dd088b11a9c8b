/* What stands around a product of 8-bit integers: states to bytes before it, bytes' sums to states after it. Built once
 * for each instruction set, by a file that says ROUND and FINISH, the functions' names.
 *
 * One pass over memory where torch's own operations take five to eight. */

#include "gelu.h"

static const float SMALLEST = 1e-12f;

/* Each row to 0..255 between its own smallest and largest: x is about out * scale + offset.
 *
 * x: float32 [rows][width]. out: bytes [rows][width]. scale, offset: float32 [rows]; not numbers, where a value of the
 * row is not finite, so that what is made of the row is not either. */
void ROUND(const float *x, int64_t rows, int64_t width, uint8_t *out, float *scale, float *offset) {
    const long even = width / LANES * LANES;
    for (long row = 0; row < rows; row++, x += width, out += width) {
        /* Several at once, since each waits for the one before it. */
        vec least[4], most[4], wrong[4];
        UNROLL
        for (int k = 0; k < 4; k++) {
            least[k] = all(-INFINITY); /* of the negated values */
            most[k] = all(-INFINITY);
            wrong[k] = all(0);
        }
        long at = 0;
        for (; at + 4 * LANES <= even; at += 4 * LANES) {
            UNROLL
            for (int k = 0; k < 4; k++) {
                const vec y = load(x + at + k * LANES);
                least[k] = LARGER(least[k], -y);
                most[k] = LARGER(most[k], y);
                wrong[k] += y * 0;
            }
        }
        for (; at < even; at += LANES) {
            const vec y = load(x + at);
            least[0] = LARGER(least[0], -y);
            most[0] = LARGER(most[0], y);
            wrong[0] += y * 0;
        }
        float low = -largest_of(LARGER(LARGER(least[0], least[1]), LARGER(least[2], least[3])));
        float high = largest_of(LARGER(LARGER(most[0], most[1]), LARGER(most[2], most[3])));
        float nothing = sum_of((wrong[0] + wrong[1]) + (wrong[2] + wrong[3]));
        for (long i = even; i < width; i++) {
            low = fminf(low, x[i]);
            high = fmaxf(high, x[i]);
            nothing += x[i] * 0;
        }
        const float step = fmaxf((high - low) / 255, SMALLEST), over = 1 / step;
        for (long i = 0; i < even; i += LANES) put_bytes(out + i, (load(x + i) - low) * over);
        for (long i = even; i < width; i++) out[i] = (uint8_t)lrintf((x[i] - low) * over);
        scale[row] = step + nothing;
        offset[row] = low + nothing;
    }
}

INLINE void finish_rows(float *y, long rows, long width, const float *scale, const float *offset, const float *sums,
                        const float *bias, const float *residual, int gelu) {
    const long even = width / LANES * LANES;
    for (long row = 0; row < rows; row++, y += width) {
        const float *r = residual ? residual + row * width : 0;
        for (long i = 0; i < even; i += LANES) {
            vec x = load(y + i) * scale[row] + load(sums + i) * offset[row];
            if (bias) x += load(bias + i);
            if (r) x += load(r + i);
            store(y + i, gelu ? gelu_of(x) : x);
        }
        for (long i = even; i < width; i++) {
            float x = y[i] * scale[row] + sums[i] * offset[row];
            if (bias) x += bias[i];
            if (r) x += r[i];
            y[i] = gelu ? gelu_of(all(x))[0] : x;
        }
    }
}

/* y * scale + offset * sums + bias + residual, then GELU, in place.
 *
 * y, residual: float32 [rows][width]. scale, offset: [rows]. sums, bias: [width]. bias and residual may be none. */
void FINISH(float *y, int64_t rows, int64_t width, const float *scale, const float *offset, const float *sums,
            const float *bias, const float *residual, int gelu) {
    if (gelu) finish_rows(y, rows, width, scale, offset, sums, bias, residual, 1);
    else if (residual) finish_rows(y, rows, width, scale, offset, sums, bias, residual, 0);
    else finish_rows(y, rows, width, scale, offset, sums, bias, 0, 0);
}
