/* MaxSim of rows of int8 vectors. Comes after search.h and `widen_bytes`; GROUP is as there. */

#pragma once

#include "lanes.h"

/* For first <= row < last: the largest cosine of each query with one of the row's vectors, minus infinity if it has none.
 *
 * rows[i] has counts[i] vectors of int8 [dim]. queries is [groups, dim, GROUP], of length 1, and out [last][groups * GROUP].
 * dim is a multiple of LANES. It returns 0, or -1 without memory. */
int MAXSIM(const int8_t *const *rows, const int64_t *counts, int64_t first, int64_t last, int64_t dim, const float *queries,
           int64_t groups, float *out) {
    enum { WIDTH = 2 * LANES };
    float *columns = aligned_alloc(64, (size_t)((dim * WIDTH + groups * GROUP * LANES + 15) / 16 * 64));
    if (!columns) return -1;
    float *best = columns + dim * WIDTH;
    for (int64_t row = first; row < last; row++) {
        for (int64_t q = 0; q < groups * GROUP; q++) store(best + q * LANES, all(-INFINITY));
        for (int64_t i = 0; i < counts[row]; i += WIDTH) {
            const int64_t count = counts[row] - i < WIDTH ? counts[row] - i : WIDTH;
            vec squares[2] = {all(0), all(0)};
            for (int half = 0; half < 2; half++)
                for (int64_t j = 0; j < dim; j += LANES) {
                    vec part[LANES];
                    UNROLL
                    for (int k = 0; k < LANES; k++) {
                        const int64_t vector = half * LANES + k;
                        part[k] = vector < count ? widen_bytes(rows[row] + (i + vector) * dim + j) : all(0);
                    }
                    turn(part);
                    UNROLL
                    for (int k = 0; k < LANES; k++) {
                        store(columns + (j + k) * WIDTH + half * LANES, part[k]);
                        squares[half] += part[k] * part[k];
                    }
                }
            float scale[WIDTH], shift[WIDTH];
            store(scale, squares[0]);
            store(scale + LANES, squares[1]);
            for (int64_t j = 0; j < WIDTH; j++) {
                scale[j] = scale[j] > 0 ? 1 / sqrtf(scale[j]) : 0;
                shift[j] = j < count ? 0 : -INFINITY;
            }
            const vec scale_a = load(scale), scale_b = load(scale + LANES);
            const vec shift_a = load(shift), shift_b = load(shift + LANES);
            for (int64_t group = 0; group < groups; group++) {
                vec left[GROUP], right[GROUP];
                products_of(columns, queries + group * dim * GROUP, dim, left, right);
                UNROLL
                for (int q = 0; q < GROUP; q++) {
                    float *mine = best + (group * GROUP + q) * LANES;
                    const vec larger = LARGER(left[q] * scale_a + shift_a, right[q] * scale_b + shift_b);
                    store(mine, LARGER(load(mine), larger));
                }
            }
        }
        for (int64_t q = 0; q < groups * GROUP; q++) out[row * groups * GROUP + q] = largest_of(load(best + q * LANES));
    }
    free(columns);
    return 0;
}
