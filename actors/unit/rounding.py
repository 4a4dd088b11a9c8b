"""Rounding of vectors before they are stored, so that they compress.

Used by the writer. Values stay float32 for every reader; only low mantissa bits are cleared, which zstd with
BYTE_STREAM_SPLIT then stores in almost nothing: about 1.8 bytes a value at float16's 10 bits, 1.4 at bfloat16's 7.
Rounding the mantissa alone keeps float32's exponent, so small values do not fall into half precision's subnormals.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Precision = Literal["float32", "float16", "bfloat16"]

_DROPPED_BITS = {"float32": 0, "float16": 13, "bfloat16": 16}


def round_mantissa(vectors: npt.NDArray[np.float32], precision: Precision) -> npt.NDArray[np.float32]:
    """Round float32 values, to nearest and ties to even, to the mantissa bits of `precision`.

    Args:
        vectors: float32 of any shape, finite.
        precision: Whose mantissa bits to keep: 23, 10 or 7.

    Returns:
        float32 of the same shape; the same array when `precision` is float32.
    """
    dropped = _DROPPED_BITS[precision]
    if dropped == 0:
        return vectors
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    half = np.uint32((1 << (dropped - 1)) - 1)
    lowest_kept = (bits >> np.uint32(dropped)) & np.uint32(1)
    rounded = (bits + half + lowest_kept) & np.uint32(0xFFFFFFFF ^ ((1 << dropped) - 1))
    return rounded.view(np.float32)
