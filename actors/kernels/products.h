/* Products of rows of bfloat16 with one vector of float32, and a search in scores. Comes after the header of an instruction set and `widen`. */

#pragma once

#include "lanes.h"

static inline float float_of(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* out[i] = factors[i] * (rows[i] . query), for first <= i < last; sums are float32. */
void PRODUCTS(const uint16_t *rows, int64_t first, int64_t last, int64_t dim, const float *query, const float *factors,
              float *out) {
    const int64_t quads = dim / (4 * LANES) * (4 * LANES), whole = dim / LANES * LANES;
    for (int64_t i = first; i < last; i++) {
        const uint16_t *row = rows + i * dim;
        vec a = all(0), b = all(0), c = all(0), d = all(0);
        int64_t j = 0;
        for (; j < quads; j += 4 * LANES) {
            __builtin_prefetch((const char *)(row + j) + 4096);  /* the processor itself stops at the end of a page */
            a += widen(row + j) * load(query + j);
            b += widen(row + j + LANES) * load(query + j + LANES);
            c += widen(row + j + 2 * LANES) * load(query + j + 2 * LANES);
            d += widen(row + j + 3 * LANES) * load(query + j + 3 * LANES);
        }
        for (; j < whole; j += LANES) a += widen(row + j) * load(query + j);
        float sum = sum_of((a + b) + (c + d));
        for (; j < dim; j++) sum += float_of(row[j]) * query[j];
        out[i] = sum * factors[i];
    }
}

/* Finds the scores that are not below the threshold of their query.
 *
 * scores is [queries, rows], bfloat16 or float32 (wide), without NaN. The kernel writes query, row and value of each score
 * that it finds, in this order; there must be room for all. It returns their number. */
int64_t SELECT(const void *scores, int wide, int64_t queries, int64_t rows, const float *lowest, int32_t *query,
               int32_t *row, float *value) {
    enum { PART = 8 * LANES };
    int64_t found = 0;
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t first = 0; first < rows; first += PART) {
            float part[PART];
            const int64_t count = rows - first < PART ? rows - first : PART, at = i * rows + first;
            const float *values = (const float *)scores + at;
            if (!wide) {
                for (int64_t j = 0; j < count; j++) part[j] = float_of(((const uint16_t *)scores)[at + j]);
                values = part;
            }
            if (count == PART) {
                vec largest = load(values);
                UNROLL
                for (int j = 1; j < 8; j++) largest = LARGER(largest, load(values + j * LANES));
                if (largest_of(largest) < lowest[i]) continue;
            }
            for (int64_t j = 0; j < count; j++) {
                if (values[j] < lowest[i]) continue;
                query[found] = (int32_t)i;
                row[found] = (int32_t)(first + j);
                value[found++] = values[j];
            }
        }
    }
    return found;
}
