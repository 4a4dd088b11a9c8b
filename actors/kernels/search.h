/* Products of rows of bfloat16 with many vectors of float32, of which only the highest are written. Comes after the header
 * of an instruction set, `widen` and products.h; GROUP is the number of queries that are multiplied at a time. */

#pragma once

#include "lanes.h"

/* Turns rows of bfloat16 into columns of float32, [dim][2 * LANES]; missing rows are zeros. */
INLINE void columns_of(const uint16_t *rows, int64_t count, int64_t dim, float *out) {
    const int64_t whole = dim / LANES * LANES;
    for (int half = 0; half < 2; half++) {
        const int64_t first = half * LANES;
        for (int64_t j = 0; j < whole; j += LANES) {
            vec part[LANES];
            UNROLL
            for (int i = 0; i < LANES; i++) part[i] = first + i < count ? widen(rows + (first + i) * dim + j) : all(0);
            turn(part);
            UNROLL
            for (int i = 0; i < LANES; i++) store(out + (j + i) * 2 * LANES + first, part[i]);
        }
        for (int64_t j = whole; j < dim; j++)
            for (int i = 0; i < LANES; i++)
                out[j * 2 * LANES + first + i] = first + i < count ? float_of(rows[(first + i) * dim + j]) : 0;
    }
}

/* Computes the products of a group of queries, [dim, GROUP], with 2 * LANES columns: left with the first LANES of them. */
INLINE void products_of(const float *columns, const float *group, int64_t dim, vec *left, vec *right) {
    UNROLL
    for (int q = 0; q < GROUP; q++) left[q] = right[q] = all(0);
    for (int64_t j = 0; j < dim; j++) {
        const vec a = load(columns + j * 2 * LANES), b = load(columns + j * 2 * LANES + LANES);
        UNROLL
        for (int q = 0; q < GROUP; q++) {
            const vec x = all(group[j * GROUP + q]);
            left[q] += a * x;
            right[q] += b * x;
        }
    }
}

/* Finds the pairs of a query and a row with factors[row] * (rows[row] . query) >= lowest[query], for first <= row < last.
 *
 * queries is [groups, dim, GROUP], and lowest [groups * GROUP] without -inf; a row whose factor is NaN is never found. The
 * kernel writes query, row and product of each pair; there must be room for all. It returns their number, or -1 without
 * memory. */
int64_t SEARCH(const uint16_t *rows, int64_t first, int64_t last, int64_t dim, const float *factors, const float *queries,
               int64_t groups, const float *lowest, int32_t *query, int32_t *row, float *value) {
    enum { WIDTH = 2 * LANES };
    float *columns = aligned_alloc(64, (size_t)(dim * WIDTH * (int64_t)sizeof(float)));
    if (!columns) return -1;
    int64_t found = 0;
    for (int64_t i = first; i < last; i += WIDTH) {
        const int64_t count = last - i < WIDTH ? last - i : WIDTH;
        float scale[WIDTH], shift[WIDTH];
        for (int64_t j = 0; j < WIDTH; j++) {
            const int fits = j < count && factors[i + j] == factors[i + j];
            scale[j] = fits ? factors[i + j] : 0;
            shift[j] = fits ? 0 : -INFINITY;
        }
        columns_of(rows + i * dim, count, dim, columns);
        for (int64_t group = 0; group < groups; group++) {
            vec left[GROUP], right[GROUP];
            products_of(columns, queries + group * dim * GROUP, dim, left, right);
            const vec scale_a = load(scale), scale_b = load(scale + LANES);
            const vec shift_a = load(shift), shift_b = load(shift + LANES);
            UNROLL
            for (int q = 0; q < GROUP; q++) {
                const vec a = left[q] * scale_a + shift_a, b = right[q] * scale_b + shift_b;
                const float low = lowest[group * GROUP + q];
                if (!(largest_of(LARGER(a, b)) >= low)) continue;
                float values[WIDTH];
                store(values, a);
                store(values + LANES, b);
                for (int64_t j = 0; j < count; j++) {
                    if (!(values[j] >= low)) continue;
                    query[found] = (int32_t)(group * GROUP + q);
                    row[found] = (int32_t)(i + j);
                    value[found++] = values[j];
                }
            }
        }
    }
    free(columns);
    return found;
}
