"""Upserts and deletes that bring a vector index from one version of a table to another, one file of the table at a time.

Used by the sinks: `pipeline.table.export` writes Parquet. An upsert is an added or changed row. If a changed document has
fewer chunks than before, its last chunks are among the deletes. No key is in both, so they may be applied in any order, and
repeatedly.

The keys of all changed rows are compared before the first change, in passes of bounded memory. Of each row of a changed file
one bit is kept: 125 MB for a billion rows. A sink that stops starts again at the position that it stored: versions do not
change, so the same changes follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from actors import storage
from actors.arguments import need_place, need_whole
from actors.errors import ConfigError
from pipeline.ledger.ledger import Ledger
from pipeline.table import delta_table
from pipeline.table.diff import Comparison, Side


@dataclass(frozen=True, slots=True)
class Change:
    """Upserts from one new file of the table, or deletes from one file that left it.

    Attributes:
        position: Where to start again once this change is applied.
        upserts: Whole rows, with vectors and partition columns; none if there are deletes.
        deletes: Keys: id, and in a table of chunks also chunk; none if there are upserts.
    """

    position: int
    upserts: pa.Table
    deletes: pa.Table


class _Chosen:
    """Chosen rows of one side, a bit a row."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._bits = np.zeros(side.starts[-1] // 8 + 1, dtype=np.uint8)

    def add(self, numbers: pa.ChunkedArray) -> None:
        """Choose rows by number."""
        rows = numbers.to_numpy()
        np.bitwise_or.at(self._bits, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))

    def read(self, file: int, names: list[str]) -> pa.Table:
        """Return the chosen rows of a file; a file without any is not read."""
        start, stop = self._side.starts[file : file + 2]
        bits = np.unpackbits(self._bits[start >> 3 : (stop >> 3) + 1], bitorder="little")
        mask: npt.NDArray[np.bool_] = bits[start & 7 :][: stop - start].astype(bool)
        schema = pa.schema([self._side.schema.field(name) for name in names])
        parts, row = [schema.empty_table()], 0
        for batch in self._side.read(self._side.files[file], names) if mask.any() else ():
            parts.append(batch.filter(pa.array(mask[row : row + batch.num_rows])))
            row += batch.num_rows
        return pa.concat_tables(parts)


class Changes:
    """Changes from one version of a table to another. Each iteration reads the files again.

    Args:
        url: URL of the table.
        since: The earlier version.
        version: The later version; None is the current one.
        start: Position to start from; 0 is the first change.

    Attributes:
        embedding_spec_changed: Whether the vectors are from another model or setting; an index must not mix them.
        outputs: The columns of vectors.
        fingerprint: Fingerprint of the later version's embedding spec.
        upsert_files: Number of positions with upserts; those with deletes follow.

    Raises:
        ConfigError: there is no table, or no such position.
        TableConflict: there is no such version, or a vacuum took some of its files.
    """

    def __init__(self, url: str, since: int, version: int | None = None, start: int = 0) -> None:
        old, new = delta_table.need_table(url, since), delta_table.need_table(url, version)
        self._comparison = Comparison(url, old, new, every_file=_may_repeat(url, new))
        self.since, self.version, self.start = since, int(new.version()), start
        self.embedding_spec_changed = self._comparison.embedding_spec_changed
        self.outputs = self._comparison.outputs
        embedding_spec = delta_table.embedding_spec_of(new)
        self.fingerprint = embedding_spec.fingerprint if embedding_spec else None
        self.upsert_files = len(self._comparison.new.files)
        positions = self.upsert_files + len(self._comparison.old.files)
        if not 0 <= start <= positions:
            raise ConfigError(
                f"the changes from version {since} to {self.version} of {url!r} have positions 0 to {positions}, not {start}; "
                f"start from a position that a change of the same two versions had"
            )

    def __iter__(self) -> Iterator[Change]:
        comparison = self._comparison
        upserts, deletes = _Chosen(comparison.new), _Chosen(comparison.old)
        for rows, new_rows in comparison.rows():
            removed = pc.equal(rows["change"], "removed")
            deletes.add(rows["number"].filter(removed))
            keys = rows.filter(pc.invert(removed)).select(comparison.keys)
            upserts.add(new_rows.join(keys, comparison.keys, join_type="left semi")["number"])
        names = comparison.new.schema.names
        no_upserts, no_deletes = comparison.new.schema.empty_table(), comparison.key_schema.empty_table()
        for file in range(self.start, self.upsert_files):
            if (rows := upserts.read(file, names)).num_rows:
                yield Change(file + 1, rows, no_deletes)
        for file in range(max(self.start - self.upsert_files, 0), len(comparison.old.files)):
            key_names = [name for name in comparison.keys if name in comparison.old.schema.names]
            if (rows := deletes.read(file, key_names)).num_rows:
                keys = pa.table(comparison.key_columns(rows), schema=comparison.key_schema)
                yield Change(self.upsert_files + file + 1, no_upserts, keys)


def iter_changes(table: str | Path, since: int, version: int | None = None, *, start: int = 0) -> Changes:
    """Return an iterable of the changes from version `since` to a later one, with that version's number and fingerprint.

    A sink applies each change and stores `version` and `position`. Given both, as `version` and `start`, another call goes
    on there. After the last change the index holds `version`.

    Args:
        table: URI of the table.
        since: Version of the index.
        version: The version to bring it to; None is the current one.
        start: Position of the last change that was applied.

    Raises:
        ConfigError: there is no table, or no such position, or an argument is of another type.
        TableConflict: there is no such version, or a vacuum took some of its files.
    """
    url, since = storage.absolute(need_place(table, "table")), need_whole(since, "since")
    version = None if version is None else need_whole(version, "version")
    return Changes(url, since, version, need_whole(start, "start"))


def _may_repeat(url: str, table: DeltaTable) -> bool:
    """Return whether several rows may have one id: then a file that both versions have may hold a row of a changed id."""
    state = delta_table.state_of(table)
    description = None if state is None else Ledger(url, state.run).description()
    if description is None:  # not known any more
        return True
    source = description.job["source"]
    return source["id"] is not None and not source["unique_ids"]
