/* Products of rows of bfloat16 with one vector of float32. Comes after the header of an instruction set and `widen`. */

#pragma once

#include "lanes.h"

/* out[i] = factors[i] * (rows[i] . query), for first <= i < last; sums are float32. */
void PRODUCTS(const uint16_t *rows, int64_t first, int64_t last, int64_t dim, const float *query, const float *factors,
              float *out) {
    const int64_t quads = dim / (4 * LANES) * (4 * LANES), whole = dim / LANES * LANES;
    for (int64_t i = first; i < last; i++) {
        const uint16_t *row = rows + i * dim;
        vec a = all(0), b = all(0), c = all(0), d = all(0);
        int64_t j = 0;
        for (; j < quads; j += 4 * LANES) {
            a += widen(row + j) * load(query + j);
            b += widen(row + j + LANES) * load(query + j + LANES);
            c += widen(row + j + 2 * LANES) * load(query + j + 2 * LANES);
            d += widen(row + j + 3 * LANES) * load(query + j + 3 * LANES);
        }
        for (; j < whole; j += LANES) a += widen(row + j) * load(query + j);
        float sum = sum_of((a + b) + (c + d));
        for (; j < dim; j++) {
            const uint32_t bits = (uint32_t)row[j] << 16;
            float value;
            memcpy(&value, &bits, sizeof value);
            sum += value * query[j];
        }
        out[i] = sum * factors[i];
    }
}
