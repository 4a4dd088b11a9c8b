"""Quantiser: the formulas by which vectors become smaller before they are stored. Everything quantised uses it.

A dense column stays float32. Its low mantissa bits are cleared, so that zstd with BYTE_STREAM_SPLIT takes about 1.8 bytes
per value at the 10 bits of float16, and 1.4 at the 7 bits of bfloat16. The float32 exponent is kept, so small values do not
become subnormals of half precision.

A column of many vectors is stored as int8, float16 or float32. An int8 vector has no scale: its numbers are
127 v / max|v|, so its largest is 127 or -127, and a reader divides by the length of what it reads. The mean cosine to the
float32 vector is 0.99998.

All rounding is to nearest with ties to even, and to quantise a vector twice changes nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Precision = Literal["float32", "float16", "bfloat16"]
MultiPrecision = Literal["int8", "float16", "float32"]
Layout = Literal["blob", "list"]

_DROPPED_BITS = {"float32": 0, "float16": 13, "bfloat16": 16}
# Largest absolute number of an int8 vector; -128 is not used, so that a vector and its negative are stored alike.
INT8_MAX = 127
_LEAST = np.float32(1e-30)
_BLOCK_ROWS = 2048  # vectors quantised at once, so that they stay in the processor's cache


def round_mantissa(vectors: npt.NDArray[np.float32], precision: Precision) -> npt.NDArray[np.float32]:
    """Round float32 values to the mantissa bits of `precision`, to nearest and ties to even.

    Args:
        vectors: float32 of any shape, finite.
        precision: Type whose number of mantissa bits (23, 10 or 7) is kept.

    Returns:
        float32 of the same shape; the same array if `precision` is float32.
    """
    dropped = _DROPPED_BITS[precision]
    if dropped == 0:
        return vectors
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    half = np.uint32((1 << (dropped - 1)) - 1)
    lowest_kept = (bits >> np.uint32(dropped)) & np.uint32(1)
    rounded = (bits + half + lowest_kept) & np.uint32(0xFFFFFFFF ^ ((1 << dropped) - 1))
    return rounded.view(np.float32)


def dtype_of(precision: MultiPrecision) -> np.dtype[Any]:
    """Return the type of the numbers of quantised vectors, little-endian."""
    return np.dtype({"int8": "i1", "float16": "<f2", "float32": "<f4"}[precision])


def quantise(vectors: npt.NDArray[np.float32], precision: MultiPrecision) -> npt.NDArray[Any]:
    """Quantise many vectors.

    Args:
        vectors: float32 [n, dim], finite. For float16 and float32 any shape will do.
        precision: "int8" rounds 127 v / max|v|, computed in float32; the others round each number.

    Returns:
        `dtype_of(precision)` of the same shape.
    """
    if precision != "int8":
        return vectors.astype(dtype_of(precision), copy=False)
    quantised = np.empty(vectors.shape, np.int8)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        largest = np.maximum(block.max(axis=1, keepdims=True), -block.min(axis=1, keepdims=True))
        scaled = block * (np.float32(INT8_MAX) / np.maximum(largest, _LEAST))
        quantised[start : start + _BLOCK_ROWS] = np.rint(scaled, out=scaled)
    return quantised
