"""Many vectors a row, for late interaction: computed in the pass of the dense vector, then sorted and checked.

A micro-batch leaves the device as one flat array: the dense vectors of its rows, if they are asked for, then the vectors of
all its tokens. `LateRows` puts both into the order of the rows and drops the tokens that are not kept. The pipeline clusters
the vectors of pictures later, where it does not keep a GPU waiting (`actors.encoders.clusters`). A model without a dense head
has the encoding of the others as its dense vector (`actors.encoders.muvera`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors.batching.planner import ranges
from actors.encoders import muvera
from actors.encoders.build import LateFamily
from actors.encoders.finite import NO_DIRECTION, reasons_of
from actors.encoders.packed import PackedBatch
from actors.encoders.pooling import finish, pool
from actors.encoders.spec import ModelSpec
from actors.schema import GRID_H, GRID_W, PREFIX
from actors.vectors import Encoded, Floats, Ints, dense


class LateForward:
    """A family that computes all outputs of a spec at once; see `build.Family`."""

    def __init__(self, family: LateFamily, spec: ModelSpec) -> None:
        self._family, self._spec = family, spec

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns the dense vectors of the rows and the vectors of all tokens, float32 [numbers], marked as by `finish`."""
        hidden, vectors = self._family.forward_multi(batch)
        parts = [finish(vectors, vectors.shape[1])]
        if self._spec.makes("dense") and not self._spec.encodes_many:
            parts.insert(0, finish(pool(hidden, batch, self._spec.pooling), self._spec.dim))
        return torch.cat([part.reshape(-1) for part in parts])


class LateRows:
    """Outputs of rows, put into place micro-batch by micro-batch.

    Args:
        spec: The model.
        rows: The columns that the preparer made.
        ids: Their token ids.
        tasks: One per row; None: all have the spec's.
    """

    def __init__(self, spec: ModelSpec, rows: pa.Table, ids: pa.ListArray, tasks: Sequence[str | None] | None) -> None:
        self._spec = spec
        self._lengths = pc.list_value_length(ids).to_numpy().astype(np.int64)
        if spec.multi_keep == "all":
            self._starts, self._counts = np.zeros_like(self._lengths), self._lengths
        else:
            self._starts, self._counts = _content(rows, self._lengths)
        self._offsets = np.concatenate([[0], np.cumsum(self._counts)])
        *others, many = (column.dim for column in spec.outputs)
        self._dense = np.zeros((len(ids), others[0]), np.float32) if others else None
        self._many = np.empty((int(self._offsets[-1]), many), np.float32)
        self._is_query = np.zeros(len(ids), bool)
        self._kept: npt.NDArray[np.bool_] | None = None
        if spec.markers is not None:
            of_rows = [spec.task] * len(ids) if tasks is None else tasks
            self._is_query = np.array([task == spec.markers.query for task in of_rows], bool)
            self._kept = self._unskipped(ids, spec.markers.skipped)

    def _unskipped(self, ids: pa.ListArray, skipped: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Returns which of the vectors are not those of tokens that are skipped in texts that are no queries."""
        is_kept = np.isin(ids.flatten().to_numpy(), skipped, invert=True) | np.repeat(self._is_query, self._lengths)
        firsts = np.cumsum(self._lengths) - self._lengths
        kept: npt.NDArray[np.bool_] = is_kept[ranges(firsts + self._starts, self._counts)]
        return kept

    def fill(self, results: Iterable[tuple[Ints, Floats]]) -> None:
        """Puts results of `LateForward`, each with the numbers of its rows, into place."""
        for rows, values in results:
            self._put(rows, values)

    def _put(self, rows: Ints, values: Floats) -> None:
        if self._dense is not None and not self._spec.encodes_many:
            numbers = len(rows) * self._dense.shape[1]
            self._dense[rows] = values[:numbers].reshape(len(rows), -1)
            values = values[numbers:]
        vectors = values.reshape(-1, self._many.shape[1])
        lengths, counts = self._lengths[rows], self._counts[rows]
        firsts = np.cumsum(lengths) - lengths
        self._many[ranges(self._offsets[rows], counts)] = vectors[ranges(firsts + self._starts[rows], counts)]
        if self._dense is not None and self._spec.encodes_many:  # while a GPU computes the next micro-batches
            for row in rows.tolist():
                self._dense[row] = self._encoding(row)

    def _encoding(self, row: int) -> Floats:
        """Returns the encoding of the kept vectors of a row, float32 [muvera.DIM]; zeros without usable vectors."""
        place = slice(self._offsets[row], self._offsets[row + 1])
        vectors = self._many[place]
        is_usable = not reasons_of(vectors)
        if self._kept is not None:
            vectors = vectors[self._kept[place]]
        if not is_usable or not len(vectors):
            return np.zeros(muvera.DIM, np.float32)
        return muvera.encode(vectors, query=bool(self._is_query[row]))

    def encoded(self) -> Encoded:
        """Returns all outputs. A row has a reason if its dense vector or one of its many is not usable."""
        reasons = {} if self._dense is None or self._spec.encodes_many else reasons_of(self._dense)
        for vector, reason in reasons_of(self._many).items():
            reasons.setdefault(int(np.searchsorted(self._offsets, vector, side="right")) - 1, reason)
        vectors, offsets = self._many, self._offsets
        if self._kept is not None:
            vectors, offsets = vectors[self._kept], np.concatenate([[0], np.cumsum(self._kept)])[offsets]
        if self._spec.encodes_many:
            # A text that is cut where its prompt ends has none, if those of the prompt are not kept.
            reasons.update(dict.fromkeys(np.flatnonzero(np.diff(offsets) == 0).tolist(), NO_DIRECTION))
        many = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), dense(vectors))
        return Encoded((many,) if self._dense is None else (dense(self._dense), many), reasons)


def lists_of(many: pa.Array) -> list[Floats]:
    """Returns each row of an array of many vectors as float32 [n, dim]."""
    dim = many.type.value_type.list_size
    flat = many.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return np.split(flat, np.cumsum(pc.list_value_length(many).to_numpy())[:-1]) if len(many) else []


def _content(rows: pa.Table, lengths: Ints) -> tuple[Ints, Ints]:
    """Returns for each row the number of its tokens before its own content, and that of the content's."""
    if PREFIX not in rows.column_names:
        return np.zeros_like(lengths), lengths
    prefix = rows.column(PREFIX).to_numpy().astype(np.int64)
    content = lengths - prefix
    if GRID_H in rows.column_names:
        content = pc.coalesce(
            pc.multiply(rows.column(GRID_H), rows.column(GRID_W)), pa.chunked_array([content])
        ).to_numpy()
    return prefix, content
