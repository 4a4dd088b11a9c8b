"""Blobs: the many vectors of a row as one binary value, row-major [n, dim], little-endian, without a header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.arguments import need_whole
from actors.errors import ConfigError
from actors.vectors.quantiser import MultiPrecision, dtype_of

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def blobs(vectors: npt.NDArray[Any], counts: Ints, nulls: npt.NDArray[np.bool_]) -> pa.Array:
    """Return binary values, without a copy of the vectors.

    Args:
        vectors: [sum of counts, dim], quantised, those of a row after those of the row before.
        counts: int64 [rows], the number of vectors of each row.
        nulls: bool [rows], true for a row that is null.
    """
    data = np.ascontiguousarray(vectors)
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts * data.shape[1] * data.itemsize, out=offsets[1:])
    valid = pa.array(~nulls).buffers()[1] if nulls.any() else None
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(counts), buffers).cast(pa.binary())


def unpack(column: pa.Array, dim: int, precision: MultiPrecision) -> tuple[npt.NDArray[Any], Ints]:
    """Return the vectors in binary values, [n, dim] as they are stored, and the number of vectors of each row, int64 [rows].

    A row that is null, or whose bytes are no whole number of vectors, has none. Vectors of other rows are not copied.
    """
    dtype = dtype_of(precision)
    width = dim * dtype.itemsize
    lengths = pc.fill_null(pc.binary_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    fit = (lengths >= 0) & (lengths % width == 0)
    whole = (column if fit.all() else column.filter(pa.array(fit))).cast(pa.large_binary())
    _, places, data = whole.buffers()
    offsets = np.frombuffer(places, np.int64, len(whole) + 1, whole.offset * 8) if len(whole) else np.zeros(1, np.int64)
    numbers = int(offsets[-1] - offsets[0]) // dtype.itemsize
    flat = np.frombuffer(data or b"", dtype, numbers, int(offsets[0])) if numbers else np.zeros(0, dtype)
    return flat.reshape(-1, dim), np.where(fit, lengths // width, 0)


def unit_vectors(stored: npt.NDArray[Any]) -> Floats:
    """Return vectors as float32 of unit length. One that is all zeros stays so, and one that is not finite is NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        vectors = stored.astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        vectors /= np.maximum(np.where(np.isfinite(lengths), lengths, np.nan), 1e-12)[:, None]
    return vectors


def vectors_of(
    column: pa.Array | pa.ChunkedArray | Sequence[bytes | None] | Any,
    *,
    dim: int = 128,
    precision: MultiPrecision = "int8",
) -> list[Floats]:
    """Return the vectors of each row of a column of blobs, float32 [n, dim] of unit length; of a null row [0, dim].

    Args:
        column: The column `embedding_multi` from pyarrow, Polars or pandas, or a list of its values.
        dim: Width of a vector.
        precision: `table.multi.precision` of the job that wrote the table.

    Raises:
        ConfigError: `dim` or `precision` is invalid, the column is not binary, or the bytes of a row are no whole number of
            vectors.
    """
    need_whole(dim, "dim", least=1)
    if precision not in get_args(MultiPrecision):
        raise ConfigError(f"precision is {precision!r}; it must be one of {', '.join(get_args(MultiPrecision))}")
    try:
        values = column.to_arrow() if hasattr(column, "to_arrow") else column  # a Series of Polars
        parts = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        arrays = [(part if isinstance(part, pa.Array) else pa.array(part)).cast(pa.large_binary()) for part in parts]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError) as error:
        raise ConfigError(
            f"the column does not hold blobs ({str(error)[:200]}); give the binary column embedding_multi. A table of layout list has "
            f"lists of numbers, which need no conversion"
        ) from None
    rows: list[Floats] = []
    for array in arrays:
        stored, counts = unpack(array, dim, precision)
        lengths = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != counts * dim * dtype_of(precision).itemsize)
        if len(wrong):
            raise ConfigError(
                f"row {len(rows) + int(wrong[0])} has {lengths[wrong[0]]:,} bytes, which is no whole number of {precision} "
                f"vectors of {dim} numbers; give the dim and the precision of the table, which `vectide status` prints"
            )
        rows += np.split(unit_vectors(stored), np.cumsum(counts)[:-1]) if len(counts) else []
    return rows
