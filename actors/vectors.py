"""Vector columns: the outputs of a model, with the type, the stored form, the checks and the products of each.

Everything that writes, reads or compares vectors iterates over a model's outputs, so that nothing outside of this module
depends on their number, names or shape. A column of kind "dense" has one vector a row, and one of kind "multi" any number
of vectors, as late interaction needs. To Arrow, both are lists of float32, one or two levels deep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import InvariantBroken
from actors.schema import EMBEDDING
from actors.unit.rounding import Precision, round_mantissa

Kind = Literal["dense", "multi"]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

# Largest difference of a stored vector's squared length from 1; rounding to bfloat16 changes it by at most 0.008.
_SQUARE_SLACK = 0.02
# Key of the lineage that names the outputs of a model, unless it has a single dense one.
OUTPUTS = "outputs"


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """One output of a model, and its column in the table.

    Attributes:
        name: Name of the column.
        kind: "dense" or "multi".
        dim: Width of each vector.
        normalized: Its vectors have unit length, and a score is a cosine. False: they have any length, and the score of a
            dense column is their product.
    """

    name: str
    kind: Kind
    dim: int
    normalized: bool = True

    @property
    def type(self) -> pa.DataType:
        """Type in the table. Lists are not of fixed size: readers refuse a Delta table with that type in a file footer."""
        vector = pa.list_(pa.float32())
        return vector if self.kind == "dense" else pa.list_(vector)

    @property
    def leaf(self) -> str:
        """Path of the numbers in a Parquet file."""
        return self.name + ".list.element" * (1 if self.kind == "dense" else 2)

    def numbers(self, tokens: float) -> float:
        """Return the numbers of a row with so many tokens, at most: a multi column has a vector for each of them."""
        return self.dim * (1.0 if self.kind == "dense" else tokens)

    def stored(self, column: pa.ChunkedArray, precision: Precision) -> pa.ChunkedArray:
        """Return vectors as the table stores them: rounded, in plain lists.

        Raises:
            InvariantBroken: a vector is not finite.
        """
        return pa.chunked_array([_rounded(chunk, precision) for chunk in column.chunks], self.type)

    def finite(self, column: pa.ChunkedArray) -> Bools:
        """Return whether all numbers of each row are finite, bool [rows]. A row without vectors is finite."""
        return _finite(column.combine_chunks())

    def reusable(self, column: pa.ChunkedArray) -> Bools:
        """Return which stored rows can be reused, bool [rows]: finite, `dim` wide and of unit length within rounding.

        The first dense unit vector (1, 0, ...) is not reused, because older versions wrote it for texts without a vector.
        """
        array = column.combine_chunks()
        if self.kind == "dense":
            return self._unit(array, placeholder=self.dim > 1)
        counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        units = self._unit(array.flatten(), placeholder=False)
        usable: Bools = np.logical_and(counts > 0, _all_of_row(array, units))
        return usable

    def _unit(self, vectors: pa.Array, *, placeholder: bool) -> Bools:
        lengths = pc.fill_null(pc.list_value_length(vectors), -1).to_numpy(zero_copy_only=False)
        usable: Bools = lengths == self.dim
        values = (vectors if usable.all() else vectors.filter(pa.array(usable))).flatten()
        flat = values.to_numpy(zero_copy_only=False).reshape(-1, self.dim)  # a null becomes NaN
        squares = np.einsum("ij,ij->i", flat, flat)
        excluded = (flat[:, 0] == 1.0) & (squares == 1.0) if placeholder else False
        # A comparison with NaN is false.
        usable[usable] = (np.abs(squares - 1.0) < _SQUARE_SLACK) & ~excluded
        return usable

    def unit_rows(self, column: pa.Array) -> Floats:
        """Return one unit vector a row, float32 [rows, dim], normalized again because it was rounded before it was stored.

        A row without a vector of this width, as another tool may have added it, is NaN, so that it is near to nothing. Of a
        multi column it is the normalized mean of the row's vectors.
        """
        flat = self.matrix(column if self.kind == "dense" else column.flatten())
        if self.kind == "multi":
            flat = _of_rows(column, flat.T, np.add).T
        unit: Floats = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        return unit

    def matrix(self, vectors: pa.Array) -> Floats:
        """Return an array of single vectors as float32 [vectors, dim]; one of another width, or none, is NaN."""
        fit = pc.fill_null(pc.equal(pc.list_value_length(vectors), self.dim), False).to_numpy(zero_copy_only=False)
        fitting = vectors if fit.all() else vectors.filter(pa.array(fit))
        flat: Floats = fitting.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        if fit.all():
            return flat
        whole = np.full((len(fit), self.dim), np.nan, dtype=np.float32)
        whole[fit] = flat
        return whole

    def scores(self, queries: pa.Array, column: pa.Array) -> Floats:
        """Return the score of each query with each row, float32 [queries, rows]: the cosine.

        Between multi columns it is the sum, over the query's vectors, of the largest cosine with one of the row's.
        """
        if self.kind == "dense":
            return cast("Floats", _matrix(queries, self.dim) @ self.unit_rows(column).T)
        vectors = VectorColumn(self.name, "dense", self.dim).unit_rows(column.flatten())
        products = (_matrix(query.values, self.dim) @ vectors.T for query in queries)
        return np.stack([_of_rows(column, product, np.maximum).sum(axis=0) for product in products])


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors that a model made of some rows.

    Attributes:
        outputs: One list array per output of the model; a row has one item, or with chunking one per chunk.
        reasons: Number of an item without a usable vector, to the reason.
    """

    outputs: tuple[pa.Array, ...]
    reasons: Mapping[int, str] = field(default_factory=dict)


def dense(vectors: Floats) -> pa.FixedSizeListArray:
    """Return the rows of a matrix as an array of lists, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def reusable(rows: pa.Table, outputs: Sequence[VectorColumn]) -> Bools:
    """Return which rows have all vectors that a model makes, bool [rows]; see `VectorColumn.reusable`."""
    usable = np.ones(rows.num_rows, dtype=bool)
    for output in outputs:
        usable &= output.reusable(rows[output.name])
    return usable


def outputs_of(lineage: Mapping[str, Any]) -> tuple[VectorColumn, ...]:
    """Return the outputs of the model that a lineage describes."""
    named = [text.split(" ") for text in str(lineage.get(OUTPUTS, f"{EMBEDDING} dense {lineage['dim']}")).split(", ")]
    return tuple(VectorColumn(name, cast("Kind", kind), int(dim)) for name, kind, dim in named)


def lineage_of(outputs: Sequence[VectorColumn]) -> dict[str, str]:
    """Return what a lineage says about the outputs of a model; nothing of a single dense column, which all had once."""
    if [(column.name, column.kind) for column in outputs] == [(EMBEDDING, "dense")]:
        return {}
    return {OUTPUTS: ", ".join(f"{column.name} {column.kind} {column.dim}" for column in outputs)}


def _matrix(vectors: pa.Array, dim: int) -> Floats:
    matrix: Floats = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return matrix


def _of_rows(column: pa.Array, values: Floats, combine: np.ufunc) -> Floats:
    """Return the combined values of the vectors of each row, float32 [n, rows], of [n, vectors]; NaN without vectors."""
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    combined = np.full((len(values), len(column)), np.nan, dtype=np.float32)
    if counts.any():
        combined[:, counts > 0] = combine.reduceat(values, (np.cumsum(counts) - counts)[counts > 0], axis=1)
    return combined


def _rounded(array: pa.Array, precision: Precision) -> pa.Array:
    """Return lists of any depth as plain lists, with rounded numbers."""
    if not pa.types.is_nested(array.type):
        values = array.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise InvariantBroken("a vector that is not finite reached the writer.")
        return pa.array(round_mantissa(values, precision))
    # Rows of another tool that are kept may have no vector, or one of another width.
    offsets = np.zeros(len(array) + 1, dtype=np.int32)
    np.cumsum(pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False), out=offsets[1:])
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), _rounded(array.flatten(), precision), mask=mask)


def _finite(array: pa.Array) -> Bools:
    if pa.types.is_nested(array.type):
        return _all_of_row(array, _finite(array.flatten()))
    finite: Bools = np.isfinite(array.to_numpy(zero_copy_only=False))
    return finite


def _all_of_row(array: pa.Array, good: Bools) -> Bools:
    """Return for each list of an array whether all its items are good."""
    rows = np.ones(len(array), dtype=bool)
    if not good.all():
        rows[pc.list_parent_indices(array).to_numpy(zero_copy_only=False)[~good]] = False
    return rows
