/* Attention of packed rows on a CPU: one algorithm, built once for each instruction set by a file that includes this.
 *
 * Such a file says, before it includes this one:
 *   NAME        what the function is called
 *   STEP        values of a unit: 1, products of float32, or 2, products of pairs of bfloat16, added up in float32
 *   unit_row    (token, wide, width, out): a token's values as units, with zeros up to a multiple of 2 * LANES values
 *   multiply    (sums, unit, units): sums + unit * units, unit by unit
 *   interleave  (units of STEP tokens, out): the values of one dimension beside each other
 *   power_of_2  (x): 2 ** x for x <= 0, as exactly as weights are kept; of what is not a number, that
 *   keep        (weights, low, high): 2 * LANES weights as units
 *   put_row     (values, wide, width, out): a token's values as they are in memory
 *   WEIGH_BLOCK `weigh` for BLOCK queries, in as many calls as the registers want
 * and the header of its instruction set:
 *   LANES       float32 values of a register
 *   COLUMNS     registers of scores that a tile is wide, so that a tile of 6 rows fits into all of them
 *   LARGER, all (a value in every lane), sum_of, largest_of, turn
 *
 * Each head of key and value of each row by itself, with all query heads that share it. Its keys are turned around, so that
 * one vector holds one dimension of LANES keys, and its values are copied together; then come the queries, twelve at once,
 * against blocks of keys that stay in the first cache, with the softmax of Milakov and Gimelshein, "Online normalizer
 * calculation for softmax" (2018), which FlashAttention (Dao et al. 2022) uses too. Nothing is as large as length * length.
 * The queries of a token come one after the other, so that twelve of them are of few tokens: if attention is causal, they
 * leave out nearly all keys that come after them.
 */

#include "lanes.h"

enum {
    TILE = 6,                /* queries of a tile */
    BLOCK = 2 * TILE,        /* queries that go over the keys together */
    PANEL = COLUMNS * LANES, /* keys of a tile */
    KEYS = 512               /* keys of a block: their scores against BLOCK queries are 24 KiB */
};

static const float LOWEST = -1e30f; /* a score that counts for nothing; no infinity, whose differences are not numbers */

static long smaller(long a, long b) { return a < b ? a : b; }

/* Keys of one head, out[panel][units][PANEL keys, fewer in the last]; `staged` is room for LANES tokens. */
INLINE void pack_keys(const char *from, long step, int wide, long length, long width, long units, long padded,
                      float *staged, float *out) {
    for (long j = 0; j < padded; j += LANES) {
        const long panel = j / PANEL * PANEL, keys = smaller(padded - panel, PANEL);
        for (long i = 0; i < LANES; i++)
            if (j + i < length) unit_row(from + (j + i) * step, wide, width, staged + i * units);
            else memset(staged + i * units, 0, 4 * units);
        for (long u = 0; u < units; u += LANES) {
            vec r[LANES];
            UNROLL
            for (int i = 0; i < LANES; i++) r[i] = load(staged + i * units + u);
            turn(r);
            UNROLL
            for (int i = 0; i < LANES; i++) store(out + panel * units + (u + i) * keys + j - panel, r[i]);
        }
    }
}

/* Values of one head, out[pair of vectors of dimensions][units of keys][2 * LANES]. */
INLINE void pack_values(const char *from, long step, int wide, long length, long width, long full, long count,
                        float *staged, float *out) {
    const long units = full / STEP;
    for (long j = 0; j < count; j++) {
        for (long i = 0; i < STEP; i++)
            if (j * STEP + i < length) unit_row(from + (j * STEP + i) * step, wide, width, staged + i * units);
            else memset(staged + i * units, 0, 4 * units);
        for (long d = 0; d < full; d += 2 * LANES)
            interleave(staged + d / STEP, units, out + (d * count + j * 2 * LANES));
    }
}

/* x where it is there, else what counts for nothing. */
INLINE vec only(ints there, vec x) { return (vec)(((ints)x & there) | ((ints)all(LOWEST) & ~there)); }

/* Scores of TILE queries and `columns` vectors of keys, whose units are `step` apart; the largest ones by lane, too. Key `first`
 * is the first one, and query i attends to keys before `ends[i]`; without `ends`, each query attends to all of them. */
INLINE void score(const float *queries, long units, const float *keys, long step, float *out, vec *largest,
                  const int32_t *ends, long first, int columns) {
    vec s[TILE][COLUMNS];
    UNROLL
    for (int i = 0; i < TILE; i++) {
        UNROLL
        for (int c = 0; c < columns; c++) s[i][c] = (vec){0};
    }
    for (long u = 0; u < units; u++) {
        vec k[COLUMNS];
        UNROLL
        for (int c = 0; c < columns; c++) k[c] = load(keys + u * step + c * LANES);
        UNROLL
        for (int i = 0; i < TILE; i++) {
            const vec q = all(queries[i * units + u]);
            UNROLL
            for (int c = 0; c < columns; c++) s[i][c] = multiply(s[i][c], q, k[c]);
        }
    }
    if (ends) {
        UNROLL
        for (int i = 0; i < TILE; i++) {
            UNROLL
            for (int c = 0; c < columns; c++) s[i][c] = only(numbers() < ends[i] - (int32_t)(first + c * LANES), s[i][c]);
        }
    }
    UNROLL
    for (int i = 0; i < TILE; i++) {
        UNROLL
        for (int c = 0; c < columns; c++) {
            store(out + i * KEYS + c * LANES, s[i][c]);
            largest[i] = LARGER(largest[i], s[i][c]);
        }
    }
}

/* sums[rows][2 * LANES] += weights[rows][count units] * values[count units][2 * LANES] */
INLINE void weigh(const float *weights, const float *values, long count, float *sums, long full, int rows) {
    vec o[BLOCK][2];
    UNROLL
    for (int i = 0; i < rows; i++) {
        o[i][0] = load(sums + i * full);
        o[i][1] = load(sums + i * full + LANES);
    }
    for (long j = 0; j < count; j++) {
        const vec low = load(values + j * 2 * LANES), high = load(values + j * 2 * LANES + LANES);
        UNROLL
        for (int i = 0; i < rows; i++) {
            const vec w = all(weights[i * (KEYS / STEP) + j]);
            o[i][0] = multiply(o[i][0], w, low);
            o[i][1] = multiply(o[i][1], w, high);
        }
    }
    UNROLL
    for (int i = 0; i < rows; i++) {
        store(sums + i * full, o[i][0]);
        store(sums + i * full + LANES, o[i][1]);
    }
}

/* Scale scores of one query against `here` keys, of which it attends to `real`, and add a bias; the largest by lane. */
INLINE vec biased(float *scores, long here, long real, float factor, const float *bias) {
    vec most = all(LOWEST);
    for (long j = 0; j < here; j += LANES) {
        vec x = load(scores + j) * factor + load(bias + j);
        if (j + LANES > real) x = only(numbers() < (int32_t)(real - j), x);
        store(scores + j, x);
        most = LARGER(most, x);
    }
    return most;
}

/* Scores to weights, 2 ** (score * factor - top); their sum by lane. */
INLINE vec weights_of(const float *scores, long here, float factor, float top, float *weights) {
    vec sum = {0};
    for (long j = 0; j < here; j += 2 * LANES) {
        const vec low = power_of_2(load(scores + j) * factor - top);
        const vec high = power_of_2(load(scores + j + LANES) * factor - top);
        sum += low + high;
        keep(weights + j / STEP, low, high);
    }
    return sum;
}

/* A head of key and value, and the query heads that read it. */
typedef struct {
    const char *query, *key, *value; /* of the first token */
    const float *bias;               /* [2 * length - 1], for key minus query; or none */
    char *out;
    long query_step, key_step, value_step, out_step; /* bytes from token to token */
    long query_next, key_next, value_next;           /* bytes to where the head that comes after this one begins */
    long length, width;
    long share; /* query heads, which lie side by side */
    int causal;
    int wide; /* float32 in memory, else bfloat16 */
    float scale;
} Head;

/* Fetch some tokens of the head that comes next. The heads of a token lie side by side, but the tokens of a head so far apart that
 * the processor does not guess them. Behind the last head there may be nothing: a prefetch may point anywhere. */
INLINE void fetch(const char *next, long step, long first, long last, long bytes) {
    for (long token = first; token < last; token++)
        for (long byte = 0; byte < bytes; byte += 64) __builtin_prefetch(next + token * step + byte, 0, 2);
}

static long padded_to(long size, long multiple) { return (size + multiple - 1) / multiple * multiple; }

/* float32 values that one head needs beside it. */
static long room(long length, long width) {
    const long full = padded_to(width, 2 * LANES), keys = padded_to(length, LANES);
    return 2 * full * keys / STEP + 2 * full + (2 * BLOCK + LANES) * full + 2 * BLOCK * KEYS + 2 * keys + 4 * LANES;
}

static void attend_head(const Head *head, float *scratch) {
    const long length = head->length, width = head->width, full = padded_to(width, 2 * LANES), units = full / STEP;
    const long padded = padded_to(length, LANES), count = (length + STEP - 1) / STEP;
    const long share = head->share, bytes = width * (head->wide ? 4 : 2);
    float *keys = scratch, *values = keys + units * padded, *queries = values + full * count;
    float *sums = queries + BLOCK * units, *scores = sums + BLOCK * full, *weights = scores + BLOCK * KEYS;
    float *staged = weights + BLOCK * KEYS / STEP, *bias = staged + LANES * units;
    const float factor = head->scale * LOG2E;

    pack_keys(head->key, head->key_step, head->wide, length, width, units, padded, staged, keys);
    pack_values(head->value, head->value_step, head->wide, length, width, full, count, staged, values);
    if (head->bias) {
        for (long i = 0; i < 2 * length - 1; i++) bias[i] = head->bias[i] * LOG2E;
        memset(bias + 2 * length - 1, 0, 4 * 2 * LANES); /* padded keys are read with what stands here */
    }
    for (long start = 0; start < length * share; start += BLOCK) {
        const long rows = smaller(length * share - start, BLOCK);
        const long first = start / share;
        const int half = rows <= TILE;
        float largest[BLOCK], total[BLOCK];
        int32_t ends[BLOCK]; /* keys before here are attended to */
        char *outs[BLOCK];
        long token = first, place = start % share;
        for (long i = 0; i < BLOCK; i++) {
            const char *query = head->query + token * head->query_step + place * bytes;
            unit_row(query, head->wide, width, queries + i * units);
            ends[i] = (int32_t)(head->causal ? token + 1 : length);
            outs[i] = head->out + token * head->out_step + place * bytes;
            largest[i] = LOWEST;
            total[i] = 0;
            if (i + 1 < rows && ++place == share) { /* tiles are full; what is too much is thrown away */
                place = 0;
                token++;
            }
        }
        const long last = token + 1, end = ends[BLOCK - 1];
        fetch(head->query + head->query_next, head->query_step, first, last, share * bytes);
        fetch(head->key + head->key_next, head->key_step, first, last, bytes);
        fetch(head->value + head->value_next, head->value_step, first, last, bytes);
        memset(sums, 0, 4 * BLOCK * full);
        for (long from = 0; from < end; from += KEYS) {
            const long here = smaller(padded_to(end - from, LANES), KEYS);
            const long real = smaller(end - from, KEYS);
            vec lanes[BLOCK];
            for (int i = 0; i < BLOCK; i++) lanes[i] = all(LOWEST);
            for (int tile = 0; tile < (half ? 1 : 2); tile++) {
                const float *q = queries + tile * TILE * units;
                const int32_t *e = ends + tile * TILE;
                const long whole = smaller(here, e[0] - from); /* the first query has the lowest end */
                vec *l = lanes + tile * TILE;
                float *s = scores + tile * TILE * KEYS;
                long j = 0;
                for (; j + PANEL <= whole; j += PANEL)
                    score(q, units, keys + (from + j) * units, PANEL, s + j, l, 0, 0, COLUMNS);
                for (; j < here; j += PANEL) {
                    const long at = from + j, step = smaller(padded - at, PANEL);
                    const float *k = keys + at * units;
                    switch ((here - j) / LANES) {
                        case 1: score(q, units, k, step, s + j, l, e, at, 1); break;
                        case 2: score(q, units, k, step, s + j, l, e, at, 2 < COLUMNS ? 2 : COLUMNS); break;
                        case 3: score(q, units, k, step, s + j, l, e, at, 3 < COLUMNS ? 3 : COLUMNS); break;
                        default: score(q, units, k, step, s + j, l, e, at, COLUMNS); break;
                    }
                }
            }
            if (here % (2 * LANES)) /* weights are made of two vectors at a time */
                for (long i = 0; i < rows; i++) store(scores + i * KEYS + here, all(LOWEST));
            /* Step by step for all queries, so that no step waits for the one before it. */
            if (head->bias)
                for (long i = 0; i < rows; i++)
                    lanes[i] = biased(scores + i * KEYS, here, ends[i] - from, factor, bias + length - 1 - start - i + from);
            const float rest = head->bias ? 1 : factor; /* of the scaling, that is still to be done */
            float fade[BLOCK];
            for (long i = 0; i < rows; i++) {
                const float top = fmaxf(largest_of(lanes[i]) * rest, largest[i]);
                fade[i] = from ? exp2f(largest[i] - top) : 0;
                largest[i] = top;
            }
            for (long i = 0; i < rows; i++)
                lanes[i] = weights_of(scores + i * KEYS, here, rest, largest[i], weights + i * (KEYS / STEP));
            for (long i = 0; i < rows; i++) total[i] = total[i] * fade[i] + sum_of(lanes[i]);
            if (from)
                for (long i = 0; i < rows; i++)
                    for (long d = 0; d < full; d += LANES) store(sums + i * full + d, load(sums + i * full + d) * fade[i]);
            const long part = (real + STEP - 1) / STEP;
            for (long d = 0; d < full; d += 2 * LANES) {
                const float *v = values + d * count + from / STEP * 2 * LANES;
                if (half) weigh(weights, v, part, sums + d, full, TILE);
                else WEIGH_BLOCK(weights, v, part, sums + d, full);
            }
        }
        for (long i = 0; i < rows; i++) {
            const float over = 1 / total[i];
            for (long d = 0; d < full; d += LANES) store(sums + i * full + d, load(sums + i * full + d) * over);
            put_row(sums + i * full, head->wide, width, outs[i]);
        }
    }
}

/* Rows one after the other, query heads `first_head` to `last_head` of each. Pointers are to the first token's first head.
 *
 * steps: bytes from token to token of query, key and value; the heads of a token lie side by side.
 * heads: of the query, a multiple of `groups`, heads of key and value. causal: no token attends to later ones.
 * scale: factor on the scores, above 0. lengths: tokens of each row. bias: [heads][2 * length - 1], a head `bias_step` values
 * behind the one before, only where all rows have one length; or none. out: [tokens][heads][width], wide like the rest.
 * Returns 0, or 1 where there is no memory. */
int NAME(const char *query, const char *key, const char *value, const int64_t steps[3], int wide, const int64_t *lengths,
         int64_t rows, int64_t heads, int64_t groups, int64_t width, float scale, int causal, const float *bias,
         int64_t bias_step, char *out, int64_t first_head, int64_t last_head) {
    const long bytes = width * (wide ? 4 : 2), per_group = heads / groups;
    long longest = 0;
    for (long row = 0; row < rows; row++)
        if (lengths[row] > longest) longest = lengths[row];
    float *scratch = aligned_alloc(64, padded_to(4 * room(longest, width), 64));
    if (!scratch) return 1;
    long token = 0;
    for (long row = 0; row < rows; token += lengths[row++])
        for (long h = first_head, end; h < last_head; h = end) {
            const long group = h / per_group;
            end = bias ? h + 1 : smaller((group + 1) * per_group, last_head); /* each head has a bias of its own */
            const long next = end < last_head ? end : first_head, tokens = end < last_head ? 0 : lengths[row];
            const long on = (next / per_group - group) * bytes;
            const Head head = {
                .query = query + token * steps[0] + h * bytes,
                .key = key + token * steps[1] + group * bytes,
                .value = value + token * steps[2] + group * bytes,
                .bias = bias ? bias + h * bias_step : 0,
                .out = out + (token * heads + h) * bytes,
                .query_step = steps[0],
                .key_step = steps[1],
                .value_step = steps[2],
                .out_step = heads * bytes,
                .query_next = (next - h) * bytes + tokens * steps[0],
                .key_next = on + tokens * steps[1],
                .value_next = on + tokens * steps[2],
                .length = lengths[row],
                .width = width,
                .share = end - h,
                .causal = causal,
                .wide = wide,
                .scale = scale,
            };
            attend_head(&head, scratch);
        }
    free(scratch);
    return 0;
}
