/* GELU of bfloat16, with AVX512-BF16. */

#if defined(__x86_64__)

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#include "avx512.h"
#include "bfloat16.h"
#include "gelu.h"

/* Of `count` values, in place. */
void gelu_avx512_bf16(uint16_t *x, int64_t count) {
    const long even = count / LANES * LANES;
    for (long i = 0; i < even; i += LANES) put(x + i, gelu_of(get(x + i)));
    for (long i = even; i < count; i++) put_one(x + i, gelu_of(all(get_one(x + i)))[0]);
}

#endif
