/* GELU where the result is rounded anyway. */

#pragma once

#include "lanes.h"

/* x * Phi(x), the exact GELU, to 5e-5 between -8 and 8: a hundredth of what rounding the result to a
 * byte or to bfloat16 leaves. Phi(x) is 0.5 + x * P(x * x), with P the minimax polynomial of degree 8 up to 4.25, beyond which Phi stays as it is there. */
INLINE vec gelu_of(vec x) {
    const vec inner = LARGER(all(-4.25f), -LARGER(all(-4.25f), -x));
    const vec square = inner * inner;
    vec p = all(4.54703324e-11f) * square - 4.51527304e-09f;
    p = p * square + 1.98614913e-07f;
    p = p * square - 5.14749718e-06f;
    p = p * square + 8.84889741e-05f;
    p = p * square - 1.07907702e-03f;
    p = p * square + 9.71877575e-03f;
    p = p * square - 6.619028e-02f;
    p = p * square + 3.98819208e-01f;
    return x * (p * inner + 0.5f);
}
