"""Ladder: the same vectors with fewer dimensions and in smaller types, made in memory.

A vector is cut to its first dimensions and normalised, as `encoder.dim` does, and then stored in the smaller type and read
back. Queries are cut and keep float32, as a search of stored vectors has them. Only `binary`, the sign of each number,
compares bits with bits: its cosine is 1 - 2 x the share of bits that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from actors.errors import ConfigError
from actors.vectors import Floats
from actors.vectors.quantiser import MultiPrecision, quantise, round_mantissa

_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "binary": 0.125}  # of a number
PRECISIONS = tuple(_BYTES)


@dataclass(frozen=True, slots=True)
class Rung:
    """A number of dimensions and a type of their numbers."""

    dim: int
    precision: str

    @property
    def label(self) -> str:
        """Name of the row."""
        return f"{self.dim} x {self.precision}"

    @property
    def bytes_per_vector(self) -> float:
        """Size of a vector, in bytes."""
        return _BYTES[self.precision] * self.dim

    def stored(self, vectors: Floats) -> Floats:
        """Return vectors as a search reads them back, float32 [rows, dim], each of unit length."""
        return _unit(_quantised(_unit(vectors[:, : self.dim]), self.precision))

    def queries(self, vectors: Floats) -> Floats:
        """Return query vectors to compare with stored ones, float32 [rows, dim], each of unit length."""
        return self.stored(vectors) if self.precision == "binary" else _unit(vectors[:, : self.dim])


def rungs(dim: int, dims: Sequence[int] | None, precisions: Sequence[str] | None) -> tuple[Rung, ...]:
    """Return the rungs of a ladder, the largest vectors first; none if neither is given.

    Args:
        dim: Dimensions of the vectors.
        dims: Numbers of dimensions; None: all.
        precisions: Some of `PRECISIONS`; None: float32.

    Raises:
        ConfigError: a number of dimensions is larger than `dim`, or a precision does not exist.
    """
    if dims is None and precisions is None:
        return ()
    if wrong := [each for each in dims or () if not 1 <= each <= dim]:
        raise ConfigError(f"--dims {wrong[0]}: the vectors have {dim} dimensions; give numbers from 1 to {dim}")
    if unknown := [each for each in precisions or () if each not in PRECISIONS]:
        raise ConfigError(f"--precision {unknown[0]!r} is not known; give some of {','.join(PRECISIONS)}")
    named = dict.fromkeys(precisions or ("float32",))
    in_order = [each for each in PRECISIONS if each in named]
    return tuple(Rung(each, precision) for each in sorted(set(dims or (dim,)), reverse=True) for precision in in_order)


def _quantised(vectors: Floats, precision: str) -> Floats:
    """Return vectors as they are read back from a smaller type; an int8 vector has no scale."""
    if precision == "binary":
        return np.where(vectors > 0, np.float32(1), np.float32(-1))
    if precision == "bfloat16":
        return round_mantissa(vectors, "bfloat16")
    return quantise(vectors, cast("MultiPrecision", precision)).astype(np.float32)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
