"""Reads a unit: good rows as one Arrow table with text, id and content hash, bad rows set aside, none lost.

Called in a worker by the first stage of the dataflow, and by planning for a sample. `rows_read == table rows + bad rows`
always. Work is vectorised; Python looks at single values only where a column turns out to have a bad one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.errors import DataError, InvariantBroken
from actors.progress_counter import count_progress
from actors.schema import ID, POSITION, SHARD, Piece, QuarantinedRow, Shard, Unit
from actors.source import hive
from actors.source.blank import blank_rows
from actors.source.columns import Misfits, fitted, id_strings
from actors.source.content_hash import content_hashes
from actors.source.formats import FORMATS, Format, Wanted
from actors.source.formats.base import BATCH_BYTES, BATCH_ROWS
from actors.source.spec import TEXT, SourceSpec, check_source, corpus_root

__all__ = ["TEXT", "ReadResult", "SourceSpec", "check_source", "corpus_root", "read_sample", "read_unit"]

_FETCHES = 8
_IDS = "\0ids"  # no source column has this name


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a unit came to.

    Attributes:
        table: `SourceSpec.schema()`: id, the kept columns, `_text`, `_task` if a task column is named, `_hash`,
            `_shard`, `_position`; in the order of the source.
        bad: The rows set aside.
        rows_read: Rows met in the source: those of the table and the bad ones.
    """

    table: pa.Table
    bad: list[QuarantinedRow]
    rows_read: int


def read_unit(unit: Unit, source: SourceSpec) -> ReadResult:
    """Read all pieces of a unit.

    Raises:
        DataError: a shard cannot be read, or lacks a text, id or task column.
        SourceChanged: a shard is not the one that was planned.
        StorageError: the store failed.
    """
    return _read(_items(unit.pieces, source), source)


def read_sample(shard: Shard, source: SourceSpec, *, rows: int) -> ReadResult:
    """The first rows of a shard, at least `rows` where there are as many; cheap, and not checked for a change."""

    def some() -> Iterator[tuple[Shard, pa.Table | QuarantinedRow]]:
        each = FORMATS[source.format]
        left = rows
        for item in each.read(each.head(shard, rows), source.wanted()):
            part = item.slice(0, left) if isinstance(item, pa.Table) else item
            left -= part.num_rows if isinstance(part, pa.Table) else 1
            yield shard, part
            if left <= 0:
                return

    return _read(some(), source)


def _items(pieces: Iterable[Piece], source: SourceSpec) -> Iterator[tuple[Shard, pa.Table | QuarantinedRow]]:
    """Tables and bad rows of all pieces, in order."""
    each: Format = FORMATS[source.format]
    wanted = source.wanted()
    pieces = tuple(pieces)
    if not each.whole_file or len(pieces) < 2 or storage.is_local(pieces[0].shard.path):
        for piece in pieces:
            yield from ((piece.shard, item) for item in each.read(piece, wanted))
        return
    # Many small objects of a store: a request takes longer than its bytes, so several are under way.
    with ThreadPoolExecutor(_FETCHES) as pool:
        for piece, items in zip(pieces, pool.map(lambda one: list(each.read(one, wanted)), pieces), strict=True):
            yield from ((piece.shard, item) for item in items)


def _read(items: Iterable[tuple[Shard, pa.Table | QuarantinedRow]], source: SourceSpec) -> ReadResult:
    wanted = source.wanted()
    good: list[pa.Table] = []
    bad: list[QuarantinedRow] = []
    held: list[pa.Table] = []
    rows_read = 0
    for shard, item in items:
        count_progress()
        if isinstance(item, QuarantinedRow):
            rows_read += 1
            bad.append(item)
            continue
        rows_read += item.num_rows
        table = _whole(item, shard, wanted, source.folders)
        # Small tables, as documents are, are worked on together.
        size = sum(each.num_rows for each in held)
        if held and (size >= BATCH_ROWS or not table.schema.equals(held[0].schema) or _bytes(held) >= BATCH_BYTES):
            good.append(_finish(pa.concat_tables(held), source, bad))
            held = []
        held.append(table)
    if held:
        good.append(_finish(pa.concat_tables(held), source, bad))
    table = pa.concat_tables([source.schema().empty_table(), *good])
    if source.unique_ids:
        table = _without_repeats(table, bad)
    if rows_read != table.num_rows + len(bad):
        raise InvariantBroken(f"{rows_read} rows were read, but {table.num_rows} kept and {len(bad)} set aside.")
    return ReadResult(table, bad, rows_read)


def _bytes(tables: list[pa.Table]) -> int:
    return sum(table.nbytes for table in tables)


def _whole(table: pa.Table, shard: Shard, wanted: Wanted, folders: hive.Columns) -> pa.Table:
    """A format's table with all wanted columns, null where the shard lacks one, those of its folders, and its path."""
    count = table.num_rows
    columns = {
        name: table.column(name) if name in table.column_names else pa.nulls(count, kind)
        for name, kind in wanted.types.items()
    }
    if folders:
        columns |= hive.values(folders, shard, count)
    return pa.table({**columns, POSITION: table.column(POSITION), SHARD: pa.repeat(shard.path, count)})


class _Rows:
    """A batch on its way: columns of one length, from which bad rows are taken."""

    def __init__(self, table: pa.Table, bad: list[QuarantinedRow]) -> None:
        self.columns: dict[str, pa.Array] = {name: _one(table.column(name)) for name in table.column_names}
        self.bad = bad

    def __len__(self) -> int:
        return len(self.columns[POSITION])

    def set_aside(self, rows: Misfits) -> None:
        """Move rows, by index, to the bad ones."""
        if not rows:
            return
        ids = self.columns.get(_IDS)
        for index, (reason, error) in sorted(rows.items()):
            shard, position = self.columns[SHARD][index].as_py(), self.columns[POSITION][index].as_py()
            name = ids[index].as_py() if ids is not None else None
            self.bad.append(QuarantinedRow(shard, position, name, reason, error))
        keep = np.ones(len(self), dtype=bool)
        keep[list(rows)] = False
        mask = pa.array(keep)
        self.columns = {name: column.filter(mask) for name, column in self.columns.items()}


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _finish(table: pa.Table, source: SourceSpec, bad: list[QuarantinedRow]) -> pa.Table:
    """One batch as `SourceSpec.schema()`; bad rows go to `bad`."""
    rows = _Rows(table, bad)
    kept = dict(source.keep)
    misfits: Misfits = {}
    for name in dict.fromkeys([*source.text, *kept, *([source.task] if source.task else [])]):
        with _naming(name, rows):
            rows.columns[name], wrong = fitted(rows.columns[name], kept.get(name, pa.string()))
        misfits = {**wrong, **misfits}
    if source.id is None:
        rows.columns[_IDS] = _ids_of_places(rows.columns[SHARD], rows.columns[POSITION], source.root)
    else:
        with _naming(source.id, rows):
            rows.columns[_IDS], wrong = id_strings(rows.columns[source.id])
        if source.id not in (*source.text, *kept):
            del rows.columns[source.id]
        misfits = {**wrong, **misfits}
    rows.set_aside(misfits)
    rows.set_aside(_without_id(rows.columns[_IDS]))
    rows.set_aside(_all_null([rows.columns[name] for name in source.text]))
    rows.columns[TEXT] = _joined([rows.columns[name] for name in source.text])
    rows.set_aside(_blank(rows.columns[TEXT]))

    tasks = rows.columns[source.task] if source.task else None
    columns = [rows.columns[_IDS], *(rows.columns[name] for name in kept), rows.columns[TEXT]]
    columns += [tasks] if tasks is not None else []
    columns += [content_hashes(rows.columns[TEXT], tasks), rows.columns[SHARD], rows.columns[POSITION]]
    return pa.table(columns, schema=source.schema())


@contextmanager
def _naming(column: str, rows: _Rows) -> Iterator[None]:
    """Says which column of which shard is of a type that is never right."""
    try:
        yield
    except pa.ArrowNotImplementedError as error:
        shard = rows.columns[SHARD][0].as_py()
        raise DataError(
            f"the column {column!r} of {shard!r} is {rows.columns[column].type}, which is not what the run was planned "
            f"with: {error}. Cast it in the source, or leave the file out"
        ) from error


def _ids_of_places(paths: pa.StringArray, positions: pa.Int64Array, root: str) -> pa.StringArray:
    """`<path below the corpus's folder>:<position>`: the same wherever the corpus is mounted."""
    prefix = root.rstrip("/") + "/"
    if not pc.all(pc.starts_with(paths, prefix)).as_py():
        raise InvariantBroken(f"a shard such as {paths[0].as_py()!r} is not below the corpus's folder {root!r}.")
    return pc.binary_join_element_wise(pc.utf8_slice_codeunits(paths, len(prefix)), positions.cast(pa.string()), ":")


def _without_id(ids: pa.StringArray) -> Misfits:
    missing = pc.fill_null(pc.equal(pc.binary_length(ids), 0), True)
    return dict.fromkeys(_true(missing), ("missing_id", "the row has no id, and an id column is named"))


def _all_null(parts: list[pa.StringArray]) -> Misfits:
    null = reduce(pc.and_, (part.is_null() for part in parts))
    return dict.fromkeys(_true(null), ("null_text", "every text column is null"))


def _joined(parts: list[pa.StringArray]) -> pa.StringArray:
    """The text of each row: its parts joined by a blank line, null parts left out. A row must have a part: Arrow's
    join leaves out rows that have none, and so moves those behind them."""
    joined = parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\n\n", null_handling="skip")
    if len(joined) != len(parts[0]) or joined.null_count:
        raise InvariantBroken(f"{len(parts[0])} rows have {len(joined) - joined.null_count} texts.")
    return joined


def _blank(texts: pa.StringArray) -> Misfits:
    error = "the text is empty or nothing but white space and characters that show nothing"
    return dict.fromkeys(blank_rows(texts).tolist(), ("empty_text", error))


def _true(mask: pa.BooleanArray) -> list[int]:
    """Indices of what is true."""
    indices: list[int] = pc.indices_nonzero(mask).to_pylist()
    return indices


def _without_repeats(table: pa.Table, bad: list[QuarantinedRow]) -> pa.Table:
    """The table without the rows whose id an earlier one has."""
    if table.num_rows == 0 or pc.count_distinct(table.column(ID)).as_py() == table.num_rows:
        return table
    codes = _one(table.column(ID)).dictionary_encode().indices.to_numpy()
    _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
    keep = firsts[inverse] == np.arange(table.num_rows)
    shards, positions, ids = (table.column(name) for name in (SHARD, POSITION, ID))
    for index in np.flatnonzero(~keep).tolist():
        first = int(firsts[inverse[index]])
        error = f"the id was seen before, at {positions[first].as_py()} of {shards[first].as_py()!r}"
        place = (shards[index].as_py(), positions[index].as_py(), ids[index].as_py())
        bad.append(QuarantinedRow(*place, "duplicate_id", error))
    return table.filter(pa.array(keep))
