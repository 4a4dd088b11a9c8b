"""Reads the vectors of one version of a table as blocks, from the local cache or from its files.

A condition is applied first to partitions and to the statistics of files, then to rows, and only the vectors of the rows
that are left are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from actors import storage
from actors.errors import InvariantBroken
from actors.schema import ID, Shard
from actors.unit.table_files import data_folder, relative_path, run_of
from actors.vectors import VectorColumn
from pipeline.scan import FILE_BITS
from pipeline.scan.block import Block
from pipeline.scan.vector_cache import VectorCache, decoded
from pipeline.table import delta_table
from pipeline.table.commit import sized_files

if TYPE_CHECKING:
    from pipeline.scan.maxsim import Rows
    from pipeline.scan.row_groups import RowGroups

BATCH_ROWS = 65_536
_LATE_ROWS = 256  # of a batch with many vectors each, which take some 70 KB a page
_ENTRY_BYTES = 256  # of the other columns of a row in the cache, estimated
_ROW = "_row"


class TableScan:
    """Vectors of one version.

    Args:
        table: The open version.
        outputs: The columns of vectors.
        cache: The local cache; None reads the files at each scan.
        part: Number of this part and number of parts: every so-many-th file, for a scan by several processes.

    Attributes:
        dense: The column with one vector a row; None if there is none.
        multi: The column with many; None if there is none.
        schema: Columns of the version, without the vectors and their numbers.
        rows: Rows of the version.
    """

    def __init__(
        self,
        table: DeltaTable,
        outputs: Sequence[VectorColumn],
        cache: VectorCache | None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._table = table
        self.dense, self.multi = (
            next((output for output in outputs if output.kind == kind), None) for kind in ("dense", "multi")
        )
        self._cache = cache
        self._part, self._parts = part
        self._url = delta_table.place_of(table)
        with delta_table.asking(table):
            dataset = _with_known_ranges(table)
        self._dataset = dataset
        fragments = {fragment.path: fragment for fragment in dataset.get_fragments()}
        self._fragments = [fragments[path] for path in sorted(fragments)]  # in one order on all machines
        self._numbers = {fragment.path: number for number, fragment in enumerate(self._fragments)}
        self._shards = None if cache is None else self._list()
        self._mapped: dict[str, list[Block]] = {}
        self._groups: RowGroups | None = None  # made by the first search that needs it
        files = sized_files(table)
        self._file_rows = {path: file.rows for path, file in files.items()}
        vectors = {field.name for output in outputs for field in output.fields}
        self.schema = pa.schema([field for field in dataset.schema if field.name not in vectors])
        self.rows = sum(self._file_rows.values())

    def _list(self) -> dict[str, Shard]:
        """Return the objects of the table by path; a file that is missing is not in it."""
        shards = {relative_path(shard.path): shard for shard in storage.walk(data_folder(self._url))}
        for path in self._numbers:
            if path not in shards and run_of(path) is None:  # written by another tool
                shards[path] = storage.stat(storage.join(self._url, path))
        return shards

    def nearest(
        self,
        queries: pa.Array,
        k: int,
        *,
        condition: pc.Expression | None = None,
        columns: Sequence[str] | None = None,
        device: str = "auto",
        report: Callable[[int], None] = lambda _: None,
    ) -> pa.Table:
        """Return the `k` rows with the highest scores for each query by the dense column; see `top_k.nearest`.

        Args:
            queries: Query vectors, as an encoder returns them for the dense column.
            k: Rows per query.
            condition: A condition on the rows.
            columns: Columns to return, `ID` among them; None: all but the vectors.
            device: "cpu", "cuda" or "auto".
            report: Called with the number of rows after each block.

        Raises:
            StorageError: the store refused or failed, or a file is missing.
        """
        from pipeline.scan import top_k  # importing torch takes seconds
        from pipeline.scan.products import Queries

        vectors = Queries(_need(self.dense).matrix(queries), device=device)
        blocks: Iterable[Block] = self.blocks(condition)
        if columns is not None:
            blocks = (replace(block, rows=block.rows.select(columns)) for block in blocks)
        return top_k.nearest(vectors, blocks, k, report=report)

    def nearest_late(
        self,
        queries: pa.Array,
        k: int,
        *,
        candidates: pa.Table | None = None,
        condition: pc.Expression | None = None,
        report: Callable[[int], None] = lambda _: None,
    ) -> pa.Table:
        """Return the `k` rows with the highest scores for each query by late interaction; see `maxsim.nearest`.

        Args:
            queries: Query vectors, as an encoder returns them for the column of many vectors.
            k: Rows per query.
            candidates: A result of `nearest` whose rows alone are scored; None: all rows.
            condition: A condition on the rows, if all are scored.
            report: Called with the number of rows after each part.

        Raises:
            StorageError: the store refused or failed, or a file is missing.
        """
        from pipeline.scan.maxsim import LateQueries, nearest
        from pipeline.scan.row_groups import RowGroups

        column = _need(self.multi)
        if candidates is None:
            parts = self._late_rows(condition)
        else:
            if self._groups is None:
                self._groups = RowGroups(self._fragments, self._dataset.schema, column, self._cache, self._shards)
            parts = self._groups.rows_of(candidates, len(queries))
        with delta_table.asking(self._table):
            return nearest(LateQueries(queries, column), parts, k, report=report)

    def ids(self) -> Iterator[pa.ChunkedArray]:
        """Yield the ids of all rows, in parts; see `columns`."""
        return (part[ID] for part in self.columns([ID]))

    def columns(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield stored columns of all rows, in parts, from the files of the table.

        Raises:
            StorageError: the store refused or failed, or a file is missing.
        """
        with delta_table.asking(self._table):
            for fragment in self._fragments:
                for batch in fragment.to_batches(
                    schema=self._dataset.schema, columns=list(names), batch_size=BATCH_ROWS
                ):
                    yield pa.Table.from_batches([batch])

    def _late_rows(self, condition: pc.Expression | None) -> Iterator[Rows]:
        """Yield the rows that meet a condition with their many vectors, from the files of the table."""
        from pipeline.scan.maxsim import Rows

        column = _need(self.multi)
        names = [*self.schema.names, column.name]
        for fragment in self._dataset.get_fragments(filter=condition):
            number = self._numbers[fragment.path]
            if number % self._parts != self._part:
                continue
            place = number << FILE_BITS
            batches = fragment.to_batches(
                schema=self._dataset.schema, columns=names, filter=condition, batch_size=_LATE_ROWS
            )
            for batch in _joined(batches, _LATE_ROWS):
                places = np.arange(place, place + batch.num_rows)
                yield Rows(batch.drop_columns([column.name]), places, batch.column(column.name))
                place += batch.num_rows

    def blocks(self, condition: pc.Expression | None = None) -> Iterator[Block]:
        """Yield the rows that meet a condition, file by file, of a dense column; a block without such rows is left out.

        Raises:
            StorageError: the store refused or failed, or a file is missing.
        """
        with delta_table.asking(self._table):
            for fragment in self._dataset.get_fragments(filter=condition):
                if self._numbers[fragment.path] % self._parts != self._part:
                    continue
                for block in self._blocks_of(fragment):
                    selected = block if condition is None else _matching(block, condition)
                    if selected.rows.num_rows:
                        yield selected

    def _blocks_of(self, fragment: ds.Fragment) -> Iterable[Block]:
        mapped = self._mapped.get(fragment.path)
        if mapped is not None:
            return mapped
        first = self._numbers[fragment.path] << FILE_BITS
        column = _need(self.dense)
        names = [*self.schema.names, column.name]

        def read() -> Iterator[pa.RecordBatch]:
            batches = fragment.to_batches(schema=self._dataset.schema, columns=names, batch_size=BATCH_ROWS)
            yield from _joined(batches, BATCH_ROWS)

        shard = None if self._shards is None else self._shards.get(fragment.path)
        if self._cache is None or shard is None:
            return decoded(read, column, first)
        # The many vectors of a file, which are most of its bytes, are not in the entry.
        size_bytes = self._file_rows[fragment.path] * (4 * column.dim + _ENTRY_BYTES) if self.multi else None
        blocks = self._cache.blocks(shard, self.schema, column, first, read, size_bytes=size_bytes)
        if isinstance(blocks, list):
            self._mapped[fragment.path] = blocks
        return blocks


def _with_known_ranges(table: DeltaTable) -> ds.FileSystemDataset:
    """Return the files of a version with their partition values, and the ranges that the log has, to select files by.

    Not `to_pyarrow_dataset` alone: it takes a range that is missing in the log for one that no value is in, so a condition
    on such a column finds nothing.
    """
    dataset = table.to_pyarrow_dataset()
    fragments = []
    for file in delta_table.actions_of(table).to_pylist():
        known = pc.scalar(True)
        for field in dataset.schema:
            column, name = pc.field(field.name), field.name
            if f"partition.{name}" in file:
                value = file[f"partition.{name}"]
                known &= column.is_null() if value is None else column == pa.scalar(value).cast(field.type)
            elif file.get(f"min.{name}") is not None and file.get(f"max.{name}") is not None:
                least, most = (pa.scalar(file[f"{end}.{name}"]).cast(field.type) for end in ("min", "max"))
                known &= ((column >= least) & (column <= most)) | column.is_null()
        fragments.append(dataset.format.make_fragment(file["path"], dataset.filesystem, known))
    return ds.FileSystemDataset(fragments, dataset.schema, dataset.format, dataset.filesystem)


def _joined(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of at least so many rows, but for the last one; a file with many vectors has small row groups."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(each.num_rows for each in waiting) >= rows:
            yield _one(waiting)
            waiting = []
    if waiting:
        yield _one(waiting)


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Return batches as one; a single one is not copied."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _matching(block: Block, condition: pc.Expression) -> Block:
    """Return the rows of a block that meet a condition."""
    numbers = pa.array(np.arange(block.rows.num_rows))
    rows = pa.Table.from_batches([block.rows]).append_column(_ROW, numbers)
    matching = ds.dataset(rows).to_table(columns=[_ROW], filter=condition, use_threads=False)[_ROW].to_numpy()
    return block if len(matching) == len(numbers) else block.select(matching)


def _need(column: VectorColumn | None) -> VectorColumn:
    if column is None:
        raise InvariantBroken("a scan asked for a column of vectors that the table lacks.")
    return column
