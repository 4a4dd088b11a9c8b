"""Vector columns: the outputs of a model, with the type, the stored form, the checks and the products of each.

Everything that writes, reads or compares vectors iterates over a model's outputs, so that nothing outside of this folder
depends on their number, names or shape. A column of kind "dense" has one vector a row, and one of kind "multi" any number
of vectors, as late interaction needs. A model makes lists of float32, one or two levels deep. The table stores a dense
column as such lists too, and a column of many vectors as blobs or as lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import InvariantBroken
from actors.schema import EMBEDDING
from actors.vectors.blobs import Floats, Ints, blobs, unit_vectors, unpack
from actors.vectors.quantiser import INT8_MAX, Layout, MultiPrecision, Precision, dtype_of, quantise, round_mantissa

Kind = Literal["dense", "multi"]
Bools = npt.NDArray[np.bool_]

# Largest difference of a stored vector's squared length from 1; rounding to bfloat16 changes it by at most 0.008.
_SQUARE_SLACK = 0.02
# Key of the lineage that names the outputs of a model, unless it has a single dense one.
OUTPUTS = "outputs"
# Key of the lineage that says how many vectors are stored: precision and layout.
MULTI_STORED = "multi_stored"


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """One output of a model, and its column in the table.

    Attributes:
        name: Name of the column.
        kind: "dense" or "multi".
        dim: Width of each vector.
        precision: Type of the stored numbers of a multi column. A dense one has the precision that `stored` is given.
        layout: Form of a multi column in the table: "blob", one binary value a row (`blobs`), or "list", lists of lists.
        normalized: Vectors have unit length, and the score of a dense column is the cosine. False: they may have any
            length, and the score is the product.
    """

    name: str
    kind: Kind
    dim: int
    precision: MultiPrecision = "float32"
    layout: Layout = "list"
    normalized: bool = True

    @property
    def single(self) -> bool:
        """True if a row has one unit vector, which can be cut and compared with any other row's."""
        return self.kind == "dense" and self.normalized

    @property
    def type(self) -> pa.DataType:
        """Type in the table. Lists are not of fixed size: readers refuse a Delta table with that type in a file footer."""
        if self.number is None:
            return pa.binary()
        return pa.list_(self.number) if self.kind == "dense" else pa.list_(pa.list_(self.number))

    @property
    def number(self) -> pa.DataType | None:
        """Type of the numbers in lists; None for blobs. Delta Lake has no float16, so lists have such numbers as float32."""
        if self.layout == "blob":
            return None
        return pa.int8() if self.precision == "int8" else pa.float32()

    @property
    def vector_bytes(self) -> int:
        """Size of a vector in a blob."""
        return self.dim * dtype_of(self.precision).itemsize

    @property
    def leaf(self) -> str:
        """Path of the numbers in a Parquet file."""
        levels = 0 if self.layout == "blob" else 1 if self.kind == "dense" else 2
        return self.name + ".list.element" * levels

    @property
    def count_name(self) -> str | None:
        """Name of the column with the number of vectors of each row; None for a dense column."""
        return None if self.kind == "dense" else f"{self.name}_n"

    @property
    def fields(self) -> list[pa.Field]:
        """Columns of the table that belong to this output, the vectors first."""
        counts = [] if self.count_name is None else [pa.field(self.count_name, pa.int32())]
        return [pa.field(self.name, self.type), *counts]

    def stored_as(self, precision: MultiPrecision, layout: Layout) -> VectorColumn:
        """Return a multi column with this form in the table; a dense column has one form only."""
        return self if self.kind == "dense" else replace(self, precision=precision, layout=layout)

    def numbers(self, tokens: float) -> float:
        """Return the numbers of a row with so many tokens, at most: a multi column has a vector for each of them."""
        return self.dim * (1.0 if self.kind == "dense" else tokens)

    def stored(self, column: pa.ChunkedArray, precision: Precision) -> pa.ChunkedArray:
        """Return vectors as the table stores them: quantised, in plain lists or blobs. Stored ones keep their bytes.

        Args:
            column: Vectors from the model, or from the table.
            precision: Precision of a dense column.

        Raises:
            InvariantBroken: a vector is not finite.
        """
        if not self.finite(column).all():
            raise InvariantBroken("a vector that is not finite reached the writer.")
        return pa.chunked_array([self._stored(chunk, precision) for chunk in column.chunks], self.type)

    def _stored(self, array: pa.Array, precision: Precision) -> pa.Array:
        if self.kind == "dense":
            return _rounded(array, partial(round_mantissa, precision=precision))
        if self.layout == "list" and self.precision != "int8":
            return _rounded(array, lambda values: quantise(values, self.precision).astype(np.float32, copy=False))
        if array.type == self.type:
            return array
        counts = _counts(array)
        vectors = array.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        quantised = quantise(vectors, self.precision)
        if self.layout == "blob":
            return blobs(quantised, counts, array.is_null().to_numpy(zero_copy_only=False))
        offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * self.dim)
        return _lists(counts, pa.ListArray.from_arrays(offsets, pa.array(quantised.reshape(-1))), array)

    def counts(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the number of vectors of each row of a stored multi column, int32; null where the row is null."""
        parts = [
            pa.array(
                unpack(chunk, self.dim, self.precision)[1] if self.layout == "blob" else _counts(chunk),
                pa.int32(),
                mask=chunk.is_null().to_numpy(zero_copy_only=False),
            )
            for chunk in column.chunks
        ]
        return pa.chunked_array(parts, pa.int32())

    def finite(self, column: pa.ChunkedArray) -> Bools:
        """Return whether all numbers of each row are finite, bool [rows]. A row without vectors is finite."""
        return _of_chunks(self._finite, column)

    def _finite(self, array: pa.Array) -> Bools:
        if pa.types.is_nested(array.type):
            return _finite(array)
        stored, counts = self.values(array)
        return _all_of_row(counts, np.isfinite(stored).all(axis=1))

    def reusable(self, column: pa.ChunkedArray) -> Bools:
        """Return which stored rows can be reused, bool [rows]: finite, `dim` wide and of unit length within rounding.

        If vectors are not normalized, any length but 0 will do.
        The first dense unit vector (1, 0, ...) is not reused, because older versions wrote it for texts without a vector.
        An int8 vector is as the quantiser makes it.
        """
        return _of_chunks(self._reusable, column)

    def _reusable(self, array: pa.Array) -> Bools:
        if self.kind == "dense":
            return self._unit(self.matrix(array), placeholder=self.normalized and self.dim > 1)
        stored, counts = self.values(array)
        if self.precision == "int8":
            least, most = stored.min(axis=1).astype(np.float32), stored.max(axis=1)
            units = np.maximum(-least, most) == INT8_MAX
        else:
            units = self._unit(stored.astype(np.float32, copy=False), placeholder=False)
        usable: Bools = (counts > 0) & _all_of_row(counts, units)
        return usable

    def _unit(self, vectors: Floats, *, placeholder: bool) -> Bools:
        squares = np.einsum("ij,ij->i", vectors, vectors)
        # A comparison with NaN is false.
        usable: Bools = np.abs(squares - 1.0) < _SQUARE_SLACK if self.normalized else (squares > 0) & (squares < np.inf)
        return usable & ~((vectors[:, 0] == 1.0) & (squares == 1.0)) if placeholder else usable

    def values(self, array: pa.Array) -> tuple[npt.NDArray[Any], Ints]:
        """Return the vectors of a multi column as they are stored, [n, dim], and how many each row has, int64 [rows].

        In lists, one of another width is NaN.
        """
        if self.layout == "blob":
            return unpack(array, self.dim, self.precision)
        return self.matrix(array.flatten()), _counts(array)

    def ragged(self, column: pa.Array) -> tuple[Floats, Ints]:
        """Return the vectors of all rows, float32 [n, dim] of unit length, and where each row begins, int64 [rows + 1].

        A row has no vectors if it is null, or if one of them is not finite or not `dim` wide.

        Args:
            column: A stored column, or vectors from the model.
        """
        blob = self.layout == "blob" and not pa.types.is_nested(column.type)
        stored, counts = unpack(column, self.dim, self.precision) if blob else (self._flat(column), _counts(column))
        if self.kind == "dense":
            counts = np.ones(len(column), np.int64)
        vectors = unit_vectors(stored)
        whole = _all_of_row(counts, ~np.isnan(vectors[:, 0]))
        if not whole.all():
            vectors, counts = vectors[np.repeat(whole, counts)], np.where(whole, counts, 0)
        return vectors, np.concatenate([[0], np.cumsum(counts)])

    def _flat(self, column: pa.Array) -> Floats:
        return self.matrix(column if self.kind == "dense" else column.flatten())

    def unit_rows(self, column: pa.Array) -> Floats:
        """Return one unit vector a row, float32 [rows, dim], normalized again because it was rounded before it was stored.

        A row without a vector of this width, as another tool may have added it, is NaN, so that it is near to nothing. Of a
        multi column it is the normalized mean of the row's vectors.
        """
        if self.kind == "dense":
            flat = self.matrix(column)
        else:
            vectors, offsets = self.ragged(column)
            flat = _sums(offsets, vectors)
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


def has_many(outputs: Iterable[VectorColumn]) -> bool:
    """Return whether one of these columns has many vectors a row."""
    return any(output.kind == "multi" for output in outputs)


def outputs_of(lineage: Mapping[str, Any]) -> tuple[VectorColumn, ...]:
    """Return the outputs of the model that a lineage describes."""
    named = [text.split(" ") for text in str(lineage.get(OUTPUTS, f"{EMBEDDING} dense {lineage['dim']}")).split(", ")]
    precision, layout = str(lineage.get(MULTI_STORED, "float32 list")).split(" ")
    return tuple(
        VectorColumn(name, cast("Kind", kind), int(dim), normalized=not flags).stored_as(
            cast("Any", precision), cast("Any", layout)
        )
        for name, kind, dim, *flags in named
    )


def lineage_of(outputs: Sequence[VectorColumn]) -> dict[str, str]:
    """Return what a lineage says about the outputs of a model; nothing of a single dense column, which all had once."""
    if [(column.name, column.kind, column.normalized) for column in outputs] == [(EMBEDDING, "dense", True)]:
        return {}
    return {OUTPUTS: ", ".join(map(_in_words, outputs))}


def _in_words(column: VectorColumn) -> str:
    return f"{column.name} {column.kind} {column.dim}" + ("" if column.normalized else " unnormalized")


def _sums(offsets: Ints, vectors: Floats) -> Floats:
    """Return the sum of the vectors of each row, float32 [rows, dim]; NaN without vectors."""
    filled = np.diff(offsets) > 0
    sums = np.full((len(filled), vectors.shape[1]), np.nan, dtype=np.float32)
    if filled.any():
        sums[filled] = np.add.reduceat(vectors, offsets[:-1][filled], axis=0)
    return sums


def _counts(lists: pa.Array) -> Ints:
    counts: Ints = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return counts


def _lists(counts: Ints, items: pa.Array, like: pa.Array) -> pa.Array:
    """Return a plain list of so many items for each row, null where a row of `like` is."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), items, mask=like.is_null() if like.null_count else None)


def _rounded(array: pa.Array, rounded: Callable[[Floats], Floats]) -> pa.Array:
    """Return lists of any depth as plain lists, with rounded numbers."""
    if not pa.types.is_nested(array.type):
        return pa.array(rounded(array.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)))
    # Rows of another tool that are kept may have no vector, or one of another width.
    return _lists(_counts(array), _rounded(array.flatten(), rounded), array)


def _of_chunks(judge: Callable[[pa.Array], Bools], column: pa.ChunkedArray) -> Bools:
    """Return a judgement of each row. Chunks are not combined: together they may be too large for an Arrow array."""
    return np.concatenate([np.zeros(0, dtype=bool), *map(judge, column.chunks)])


def _finite(array: pa.Array) -> Bools:
    if pa.types.is_nested(array.type):
        return _all_of_row(_counts(array), _finite(array.flatten()))
    finite: Bools = np.isfinite(array.to_numpy(zero_copy_only=False))
    return finite


def _all_of_row(counts: Ints, good: Bools) -> Bools:
    """Return for each row, with so many items, whether all of them are good."""
    rows = np.ones(len(counts), dtype=bool)
    if not good.all():
        rows[np.repeat(np.arange(len(counts)), counts)[~good]] = False
    return rows
