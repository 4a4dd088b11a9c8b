/* Rotary positions of bfloat16, with AVX512-BF16. */

#if defined(__x86_64__)

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#include "avx512.h"
#include "bfloat16.h"

#define TURN turn_avx512_bf16

#include "turn.h"

#endif
