"""Reads the vectors of one version of a table as blocks, from the local cache or from its files.

A condition is applied first to partitions and to the statistics of files, then to rows, and only the vectors of the rows
that are left are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from actors import storage
from actors.schema import ID, Shard
from actors.unit.table_files import data_folder, relative_path, run_of
from actors.vectors import VectorColumn
from pipeline.scan.block import Block
from pipeline.scan.vector_cache import VectorCache, decoded
from pipeline.table import delta_table
from pipeline.table.commit import sized_files

BATCH_ROWS = 65_536
_FILE_BITS = 40  # positions in the scan: the number of the file above, the row in the file below
_ROW = "_row"


class TableScan:
    """Vectors of one version.

    Args:
        table: The open version.
        outputs: The columns of vectors; the first one is scanned.
        cache: The local cache; None reads the files at each scan.
        part: Number of this part and number of parts: every so-many-th file, for a scan by several processes.

    Attributes:
        schema: Columns of the version, without the vectors.
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
        self._column = outputs[0]
        self._cache = cache
        self._part, self._parts = part
        self._url = delta_table.place_of(table)
        with delta_table.asking(table):
            dataset = _with_known_ranges(table)
        self._dataset = dataset
        self._numbers = {fragment.path: number for number, fragment in enumerate(dataset.get_fragments())}
        self._shards = None if cache is None else self._list()
        self._mapped: dict[str, list[Block]] = {}
        vectors = {output.name for output in outputs}
        self.schema = pa.schema([field for field in dataset.schema if field.name not in vectors])
        self.rows = sum(file.rows for file in sized_files(table).values())

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
        """Return the `k` rows with the highest scores for each query; see `top_k.nearest`.

        Args:
            queries: Query vectors, as an encoder returns them for the scanned column.
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

        if self._column.kind == "dense":
            vectors = Queries(self._column.matrix(queries), device=device)
            blocks: Iterable[Block] = self.blocks(condition)
            if columns is not None:
                blocks = (replace(block, rows=block.rows.select(columns)) for block in blocks)
            return top_k.nearest(vectors, blocks, k, report=report)
        batches = self._batches([*(columns or self.schema.names), self._column.name], condition)
        return top_k.nearest_of_batches(queries, batches, k, self._column, report=report)

    def ids(self) -> Iterator[pa.ChunkedArray]:
        """Yield the ids of all rows, in parts, from the files of the table.

        Raises:
            StorageError: the store refused or failed, or a file is missing.
        """
        for batch in self._batches([ID]):
            yield pa.chunked_array([batch.column(ID)])

    def _batches(self, names: list[str], condition: pc.Expression | None = None) -> Iterator[pa.RecordBatch]:
        """Yield columns of the rows that meet a condition, from the files of the table."""
        with delta_table.asking(self._table):
            for fragment in self._dataset.get_fragments(filter=condition):
                if self._numbers[fragment.path] % self._parts == self._part:
                    yield from fragment.to_batches(
                        schema=self._dataset.schema, columns=names, filter=condition, batch_size=BATCH_ROWS
                    )

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
        first = self._numbers[fragment.path] << _FILE_BITS
        names = [*self.schema.names, self._column.name]

        def read() -> Iterator[pa.RecordBatch]:
            yield from fragment.to_batches(schema=self._dataset.schema, columns=names, batch_size=BATCH_ROWS)

        shard = None if self._shards is None else self._shards.get(fragment.path)
        if self._cache is None or shard is None:
            return decoded(read, self._column, first)
        blocks = self._cache.blocks(shard, self.schema, self._column, first, read)
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


def _matching(block: Block, condition: pc.Expression) -> Block:
    """Return the rows of a block that meet a condition."""
    numbers = pa.array(np.arange(block.rows.num_rows))
    rows = pa.Table.from_batches([block.rows]).append_column(_ROW, numbers)
    matching = ds.dataset(rows).to_table(columns=[_ROW], filter=condition, use_threads=False)[_ROW].to_numpy()
    return block if len(matching) == len(numbers) else block.select(matching)
