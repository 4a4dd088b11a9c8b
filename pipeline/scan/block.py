"""Vectors of some rows of a table in the form that a scan reads, with the other columns of these rows.

A float32 value is split without loss: `high` is the value rounded to bfloat16, which the scan multiplies, and `low` is the
rest of its bits, which only the final scores of a few rows need. `low` takes one byte per value for a table of precision
float16, none for bfloat16, and two bytes for float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.vectors import VectorColumn

# The low bits of values of precision float16 (10 bits of mantissa) are a multiple of 2 to this power.
_FLOAT16_SHIFT = 13
# Column names of a stored block.
_HIGH, _LOW, _INVERSE_NORM = "_high", "_low", "_inverse_norm"


@dataclass(frozen=True)
class Block:
    """Rows of a table.

    Attributes:
        first: Position of the first row in the order of the scan; a file's rows follow each other.
        rows: The other columns.
        high: uint16 [n, dim], the bits of bfloat16.
        low: int8 or int16 [n, dim], or None if all are zero.
        inverse_norms: float32 [n], 1 / length; NaN for a row without a finite vector of this width.
        mapped: True if the rows are a mapped file, which takes no memory of its own.
        normalized: The vectors have unit length but for rounding; False: their products count as they are.
        numbers: int64 [n], positions of the rows after `first`; None: 0, 1, ...
    """

    first: int
    rows: pa.RecordBatch
    high: npt.NDArray[np.uint16]
    low: npt.NDArray[np.int8] | npt.NDArray[np.int16] | None
    inverse_norms: npt.NDArray[np.float32]
    mapped: bool = False
    normalized: bool = True
    numbers: npt.NDArray[np.int64] | None = None

    @cached_property
    def unfit(self) -> npt.NDArray[np.int64]:
        """Rows without a finite vector, int64 [n], in order. Computed once, because each scan asks for it."""
        return np.flatnonzero(np.isnan(self.inverse_norms))

    @cached_property
    def factors(self) -> npt.NDArray[np.float32]:
        """What products with a row are multiplied by, float32 [n]: 1 / length, or 1 if they count as they are."""
        return self.inverse_norms if self.normalized else 0 * self.inverse_norms + 1  # NaN stays NaN

    @cached_property
    def longest(self) -> float:
        """The largest length of a vector times its factor."""
        return 1.0 if self.normalized else float(np.nanmax(1 / self.inverse_norms, initial=0))

    @cached_property
    def spread(self) -> float:
        """The largest difference of a factor from 1. Computed once, because each scan asks for it."""
        return float(np.nanmax(np.abs(self.factors - 1), initial=0))

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the stored vectors of some rows, float64 [rows, dim], normalized again if they had unit length.

        They were rounded before they were stored.
        """
        bits = self.high[rows].astype(np.uint32) << np.uint32(16)
        if self.low is not None:
            low = self.low[rows].astype(np.int32)
            bits += (low << _FLOAT16_SHIFT if self.low.dtype == np.int8 else low).view(np.uint32)
        vectors = bits.view(np.float32).astype(np.float64)
        if not self.normalized:
            return vectors
        unit: npt.NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit

    def select(self, rows: npt.NDArray[np.int64]) -> Block:
        """Return some rows of this block, in order."""
        low = None if self.low is None else self.low[rows]
        taken, norms = self.rows.take(pa.array(rows)), self.inverse_norms[rows]
        numbers = self.places(rows) - self.first
        return Block(self.first, taken, self.high[rows], low, norms, normalized=self.normalized, numbers=numbers)

    def places(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the positions of some rows in the order of the scan."""
        return self.first + (rows if self.numbers is None else self.numbers[rows])

    @classmethod
    def of(cls, batch: pa.RecordBatch, column: VectorColumn, first: int) -> Block:
        """Split a batch of rows of a table.

        Args:
            batch: Rows with all columns. A row without a finite vector of the column's width, as another tool may have added
                it, gets NaN in `inverse_norms`.
            column: The dense column of vectors.
            first: Position of the first row in the order of the scan.
        """
        vectors = np.ascontiguousarray(column.matrix(batch.column(column.name)))
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        fit = np.isfinite(norms) & (norms < np.finfo(np.float32).max)
        if not fit.all():
            vectors = np.where(fit[:, None], vectors, np.float32(0))
        inverse = np.where(fit, 1 / np.maximum(norms, 1e-12), np.nan).astype(np.float32)
        bits = vectors.view(np.uint32)
        high = ((bits + np.uint32(1 << 15)) >> np.uint32(16)).astype(np.uint16)
        rest = (bits - (high.astype(np.uint32) << np.uint32(16))).view(np.int32)
        low: npt.NDArray[np.int8] | npt.NDArray[np.int16] | None = None
        if np.any(rest & ((1 << _FLOAT16_SHIFT) - 1)):
            low = rest.astype(np.int16)
        elif rest.any():
            low = (rest >> _FLOAT16_SHIFT).astype(np.int8)
        return cls(first, batch.drop_columns([column.name]), high, low, inverse, normalized=column.normalized)

    def stored(self, low: np.dtype[np.int8] | np.dtype[np.int16] | None) -> pa.RecordBatch | None:
        """Return the block as one batch, with low parts of this type; None if the type does not hold them."""
        parts = self.low
        if parts is not None and (low is None or low.itemsize < parts.dtype.itemsize):
            return None
        columns = [*self.rows.columns, _packed(self.high), pa.array(self.inverse_norms)]
        names = [*self.rows.schema.names, _HIGH, _INVERSE_NORM]
        if low is not None:
            wide = np.zeros(self.high.shape, low) if parts is None else parts
            if wide.dtype != low:
                wide = (wide.astype(np.int16) << _FLOAT16_SHIFT).astype(low)
            columns.append(_packed(wide))
            names.append(_LOW)
        return pa.RecordBatch.from_arrays(columns, names)

    @classmethod
    def from_stored(cls, batch: pa.RecordBatch, column: VectorColumn, first: int) -> Block:
        """Return the block of a batch of `stored` in a mapped file, without a copy."""
        high: npt.NDArray[np.uint16] = _unpacked(batch.column(_HIGH), np.uint16)
        low: npt.NDArray[np.int8] | npt.NDArray[np.int16] | None = None
        if _LOW in batch.schema.names:
            part = batch.column(_LOW)
            low = _unpacked(part, np.int8 if part.type.byte_width == high.shape[1] else np.int16)
        names = [name for name in batch.schema.names if name not in (_HIGH, _LOW, _INVERSE_NORM)]
        inverse = batch.column(_INVERSE_NORM).to_numpy()
        return cls(first, batch.select(names), high, low, inverse, mapped=True, normalized=column.normalized)


def _packed(values: npt.NDArray[np.generic]) -> pa.Array:
    """Return the rows of a matrix as binary values of one width."""
    contiguous = np.ascontiguousarray(values)
    width = contiguous.shape[1] * contiguous.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(contiguous), [None, pa.py_buffer(contiguous)])


def _unpacked(column: pa.Array, dtype: type[np.generic]) -> npt.NDArray[Any]:
    width, itemsize = column.type.byte_width, np.dtype(dtype).itemsize
    flat = np.frombuffer(column.buffers()[1], dtype, len(column) * width // itemsize, column.offset * width)
    return flat.reshape(len(column), width // itemsize)
