"""Reads the many vectors of single rows of a version: only the row groups that hold them, from the local cache or the files.

A row group of a table with many vectors has some MB, so that the candidates of a question need no whole files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from actors.schema import Shard
from actors.vectors import VectorColumn
from pipeline.scan import FILE_BITS
from pipeline.scan.maxsim import Rows
from pipeline.scan.top_k import EMPTY, PLACE, QUERY
from pipeline.scan.vector_cache import VectorCache

_AT_ONCE = 32  # row groups that are read at a time; a store answers many requests at once
_PART_BYTES = 1 << 26  # vectors of the rows that are scored together


class RowGroups:
    """Row groups of the files of a version. Threads may share it.

    Args:
        fragments: The files, in the order of the scan.
        schema: Columns of the version.
        column: The column of many vectors.
        cache: The local cache; None reads the files each time.
        shards: The files as objects, by path; None without a cache.
    """

    def __init__(
        self,
        fragments: Sequence[ds.ParquetFileFragment],
        schema: pa.Schema,
        column: VectorColumn,
        cache: VectorCache | None,
        shards: Mapping[str, Shard] | None,
    ) -> None:
        self._fragments, self._schema, self._column = fragments, schema, column
        self._cache, self._shards = cache, shards or {}
        self._ends: dict[int, npt.NDArray[np.int64]] = {}
        self._mapped: dict[tuple[int, int], pa.Array] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE, "row groups")

    def rows_of(self, candidates: pa.Table, queries: int) -> Iterator[Rows]:
        """Yield the rows of a result of `top_k.nearest` with their vectors, each row once, in parts of some MB.

        Args:
            candidates: The result.
            queries: Number of its queries.
        """
        places, first, row = np.unique(candidates[PLACE].to_numpy(), return_index=True, return_inverse=True)
        wanted = np.zeros((queries, len(places)), bool)
        wanted[candidates[QUERY].to_numpy(), row] = True
        rows = candidates.drop_columns(EMPTY.names).take(pa.array(first)).combine_chunks()
        start = 0
        for vectors in self._vectors_at(places):
            part = slice(start, start + len(vectors))
            (batch,) = rows.slice(start, len(vectors)).to_batches()
            yield Rows(batch, places[part], vectors, wanted[:, part])
            start = part.stop

    def _vectors_at(self, places: npt.NDArray[np.int64]) -> Iterator[list[pa.Array]]:
        """Yield the vectors of rows by their sorted places, each in an array of its own, in parts of some MB."""
        wanted: list[tuple[tuple[int, int], npt.NDArray[np.int64]]] = []
        files = places >> FILE_BITS
        numbered = np.unique(files).tolist()
        for file, ends in zip(numbered, self._pool.map(self._ends_of, numbered), strict=True):
            numbers = places[files == file] - (file << FILE_BITS)
            groups = np.searchsorted(ends, numbers, side="right")
            wanted += [
                ((file, group), numbers[groups == group] - (ends[group - 1] if group else 0))
                for group in np.unique(groups).tolist()
            ]
        waiting: list[pa.Array] = []
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            for vectors, (_, rows) in zip(self._read([key for key, _ in part]), part, strict=True):
                waiting += [vectors.slice(row, 1) for row in rows.tolist()]
            if sum(vectors.nbytes for vectors in waiting) > _PART_BYTES:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _ends_of(self, file: int) -> npt.NDArray[np.int64]:
        """Return the row after the last one of each row group of a file; its footer is read once."""
        if file not in self._ends:
            self._ends[file] = np.cumsum([group.num_rows for group in self._fragments[file].row_groups], dtype=np.int64)
        return self._ends[file]

    def _read(self, keys: Sequence[tuple[int, int]]) -> list[pa.Array]:
        """Return the vectors of row groups, by number of file and of row group."""
        found = {key: self._mapped[key] for key in keys if key in self._mapped}
        missing = [key for key in keys if key not in found]
        if missing:
            found.update(zip(missing, self._pool.map(self._read_one, missing), strict=True))
        return [found[key] for key in keys]

    def _read_one(self, key: tuple[int, int]) -> pa.Array:
        file, group = key
        fragment = self._fragments[file]

        def read() -> pa.Array:
            part = fragment.subset(row_group_ids=[group], schema=self._schema)
            column = part.to_table(schema=self._schema, columns=[self._column.name], use_threads=False).column(0)
            return column.combine_chunks().cast(self._column.type)

        shard = self._shards.get(fragment.path)
        if self._cache is None or shard is None:
            return read()
        vectors, mapped = self._cache.row_group(shard, group, self._column, read)
        if mapped:
            self._mapped[key] = vectors
        return vectors
