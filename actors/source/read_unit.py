"""Reads a unit: valid rows as one Arrow table with id, content and content hash, and the quarantined rows.

Called in a worker by the first stage of the dataflow, and by planning for a sample. No row is lost: `rows_read == table
rows + quarantined rows` always. Work is vectorised; only columns with invalid values are searched for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.errors import DataError, InvariantBroken
from actors.inputs import MODALITIES
from actors.progress_counter import count_progress
from actors.schema import ID, NOTES, PICTURE, POSITION, SHARD, Piece, QuarantinedRow, Shard, Unit
from actors.source import hive
from actors.source.columns import Invalid, cast_column, id_strings
from actors.source.content_hash import content_hashes
from actors.source.formats import FORMATS, Format, Wanted
from actors.source.formats.base import BATCH_BYTES, BATCH_ROWS
from actors.source.picture_cells import contents, plain_cells
from actors.source.pictures import Pictures, count_notes, page_content
from actors.source.spec import SourceSpec, check_source, corpus_root
from actors.threads import unawaited_threads

__all__ = ["ReadResult", "SourceSpec", "check_source", "corpus_root", "read_sample", "read_unit"]

_FETCHES = 8
_IDS, _CONTENT = "\0ids", "\0content"  # no source column has such a name


@dataclass(frozen=True, slots=True)
class ReadResult:
    """Rows of a unit.

    Attributes:
        table: `SourceSpec.schema()`: id, the kept columns as the table names them, `_content`, `_task` if a task column is
            named, `_hash`,
            `_shard`, `_position`; in the order of the source.
        bad: The quarantined rows.
        rows_read: Rows in the source: those of the table and the quarantined ones.
        notes: Pictures with notes that the outcome counts: see `actors.source.pictures.count_notes`.
    """

    table: pa.Table
    bad: list[QuarantinedRow]
    rows_read: int
    notes: Counter[str] = field(default_factory=Counter)


def read_unit(unit: Unit, source: SourceSpec) -> ReadResult:
    """Read all pieces of a unit.

    Raises:
        DataError: A shard cannot be read, or lacks a text, id or task column.
        SourceChanged: A shard changed since the run was planned.
        StorageError: The store failed.
    """
    return _read(_items(unit.pieces, source), source)


def read_sample(shard: Shard, source: SourceSpec, *, rows: int) -> ReadResult:
    """Read the first `rows` rows of a shard, or all if it has fewer. Does not check whether the shard changed."""

    def first_rows() -> Iterator[tuple[Shard, pa.Table | QuarantinedRow]]:
        source_format = FORMATS[source.format]
        remaining = rows
        for item in source_format.read(source_format.head(shard, rows), source.wanted()):
            part = item.slice(0, remaining) if isinstance(item, pa.Table) else item
            remaining -= part.num_rows if isinstance(part, pa.Table) else 1
            yield shard, part
            if remaining <= 0:
                return

    return _read(first_rows(), source)


def _items(pieces: Iterable[Piece], source: SourceSpec) -> Iterator[tuple[Shard, pa.Table | QuarantinedRow]]:
    """Yield the tables and quarantined rows of all pieces, in order."""
    source_format: Format = FORMATS[source.format]
    wanted = source.wanted()
    pieces = tuple(pieces)
    # Pictures and pages are decoded by other processes, and so several at once.
    is_slow = source.pictures is not None or (pieces and not storage.is_local(pieces[0].shard.path))
    if not source_format.whole_file or len(pieces) < 2 or not is_slow:
        for piece in pieces:
            yield from ((piece.shard, item) for item in source_format.read(piece, wanted))
        return
    # Latency dominates for many small objects of a store, so several are fetched at once.
    with unawaited_threads(_FETCHES) as pool:
        fetched = pool.map(lambda piece: list(source_format.read(piece, wanted)), pieces)
        for piece, items in zip(pieces, fetched, strict=True):
            yield from ((piece.shard, item) for item in items)


def _read(items: Iterable[tuple[Shard, pa.Table | QuarantinedRow]], source: SourceSpec) -> ReadResult:
    wanted = source.wanted()
    finished: list[pa.Table] = []
    bad: list[QuarantinedRow] = []
    pending: list[pa.Table] = []
    rows_read = 0
    notes: Counter[str] = Counter()
    for shard, item in items:
        count_progress()
        if isinstance(item, QuarantinedRow):
            rows_read += 1
            bad.append(item)
            continue
        rows_read += item.num_rows
        table = _with_all_columns(item, shard, wanted, source.folders)
        # Small tables, such as single documents, are joined before they are processed.
        pending_rows = sum(each.num_rows for each in pending)
        is_full = pending_rows >= BATCH_ROWS or _bytes(pending) >= BATCH_BYTES
        if pending and (is_full or not table.schema.equals(pending[0].schema)):
            finished.append(_finish(pa.concat_tables(pending), source, bad, notes))
            pending = []
        pending.append(table)
    if pending:
        finished.append(_finish(pa.concat_tables(pending), source, bad, notes))
    table = pa.concat_tables([source.schema().empty_table(), *finished])
    if source.unique_ids:
        table = _without_repeats(table, bad)
    if rows_read != table.num_rows + len(bad):
        raise InvariantBroken(f"{rows_read} rows were read, but {table.num_rows} kept and {len(bad)} quarantined.")
    return ReadResult(table, bad, rows_read, notes)


def _bytes(tables: list[pa.Table]) -> int:
    return sum(table.nbytes for table in tables)


def _with_all_columns(table: pa.Table, shard: Shard, wanted: Wanted, folders: hive.Columns) -> pa.Table:
    """Add the wanted columns that the shard lacks, as nulls, the columns of its folders, and its path."""
    count = table.num_rows
    columns = {
        name: table.column(name) if name in table.column_names else pa.nulls(count, kind)
        for name, kind in wanted.types.items()
    }
    if folders:
        columns |= hive.values(folders, shard, count)
    columns |= {name: table.column(name) for name in (PICTURE, NOTES) if name in table.column_names}
    return pa.table({**columns, POSITION: table.column(POSITION), SHARD: pa.repeat(shard.path, count)})


class _Rows:
    """Columns of one batch, from which invalid rows are removed."""

    def __init__(self, table: pa.Table, bad: list[QuarantinedRow]) -> None:
        self.columns: dict[str, pa.Array] = {name: _one(table.column(name)) for name in table.column_names}
        self.bad = bad

    def __len__(self) -> int:
        return len(self.columns[POSITION])

    def quarantine(self, rows: Invalid) -> None:
        """Move rows, by index, to the quarantined ones."""
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


def _finish(table: pa.Table, source: SourceSpec, bad: list[QuarantinedRow], notes: Counter[str]) -> pa.Table:
    """Convert a batch to `SourceSpec.schema()`; quarantined rows are appended to `bad`, and notes counted in `notes`."""
    rows = _Rows(table, bad)
    modality, kept = MODALITIES[source.modality], dict(source.keep)
    types = {**dict.fromkeys(source.text, modality.type if source.pictures is None else pa.string()), **kept}
    invalid: Invalid = {}
    for name in dict.fromkeys([*source.text, *kept, *([source.task] if source.task else [])]):
        with _naming_column(name, rows):
            rows.columns[name], failed = cast_column(rows.columns[name], types.get(name, pa.string()))
        invalid = {**failed, **invalid}
    if source.pictures is not None and (image := source.pictures.column) is not None:
        rows.columns[image] = plain_cells(rows.columns[image])
    if source.id is None:
        rows.columns[_IDS] = _position_ids(rows.columns[SHARD], rows.columns[POSITION], source.root)
    else:
        with _naming_column(source.id, rows):
            rows.columns[_IDS], failed = id_strings(rows.columns[source.id])
        if source.id not in (*source.text, *kept):
            del rows.columns[source.id]
        invalid = {**failed, **invalid}
    rows.quarantine(invalid)
    rows.quarantine(_without_id(rows.columns[_IDS]))
    if source.keeps_empty:
        rows.columns[_CONTENT] = pa.repeat("", len(rows))
    elif source.pictures is None:
        rows.quarantine(_all_null([rows.columns[name] for name in source.text]))
        rows.columns[_CONTENT] = _joined([rows.columns[name] for name in source.text])
        rows.quarantine(modality.unfit(rows.columns[_CONTENT]))
    else:
        rows.quarantine(_add_page_content(rows.columns, source, source.pictures))
        notes.update(count_notes(rows.columns[NOTES]))

    content, tasks = rows.columns[_CONTENT], rows.columns[source.task] if source.task else None
    columns = [rows.columns[_IDS], *(rows.columns[name] for name in kept), content]
    columns += [tasks] if tasks is not None else []
    columns += [content_hashes(content, tasks, modality.salt), rows.columns[SHARD], rows.columns[POSITION]]
    return pa.table(columns, schema=source.schema())


def _add_page_content(columns: dict[str, pa.Array], source: SourceSpec, how: Pictures) -> Invalid:
    """Add the pictures and texts of rows (`PAGE_CONTENT`) and their notes; return the rows that cannot be embedded."""
    parts = [columns[name] for name in source.text]
    texts = _joined(parts, skip_null=True) if parts else pa.nulls(len(columns[POSITION]), pa.string())
    if how.column is not None:
        columns[_CONTENT], columns[NOTES], invalid = contents(texts, columns[how.column], columns[SHARD], how)
        return invalid
    columns[_CONTENT] = page_content(texts, columns[PICTURE])
    return MODALITIES[source.modality].unfit(columns[_CONTENT])


@contextmanager
def _naming_column(column: str, rows: _Rows) -> Iterator[None]:
    """Add the column and the shard to the error of a type that cannot be cast."""
    try:
        yield
    except pa.ArrowNotImplementedError as error:
        shard = rows.columns[SHARD][0].as_py()
        raise DataError(
            f"the column {column!r} of {shard!r} is {rows.columns[column].type}, which is not what the run was planned "
            f"with: {error}. Cast it in the source, or leave the file out"
        ) from error


def _position_ids(paths: pa.StringArray, positions: pa.Int64Array, root: str) -> pa.StringArray:
    """Return ids `<path below the corpus's folder>:<position>`, which do not depend on where the corpus is mounted."""
    prefix = root.rstrip("/") + "/"
    if not pc.all(pc.starts_with(paths, prefix), min_count=0).as_py():  # a file may have no rows
        raise InvariantBroken(f"a shard such as {paths[0].as_py()!r} is not below the corpus's folder {root!r}.")
    return pc.binary_join_element_wise(pc.utf8_slice_codeunits(paths, len(prefix)), positions.cast(pa.string()), ":")


def _without_id(ids: pa.StringArray) -> Invalid:
    missing = pc.fill_null(pc.equal(pc.binary_length(ids), 0), True)
    return dict.fromkeys(_true(missing), ("missing_id", "the row has no id, and an id column is named"))


def _all_null(parts: list[pa.StringArray]) -> Invalid:
    null = reduce(pc.and_, (part.is_null() for part in parts))
    return dict.fromkeys(_true(null), ("null_text", "every text column is null"))


def _joined(parts: list[pa.StringArray], *, skip_null: bool = False) -> pa.StringArray:
    """Return the content of each row: its parts joined by a blank line, without null parts.

    Each row must have a part, unless `skip_null`: then a row without one is null. Arrow's join alone would drop such rows,
    which would shift the following ones.
    """
    none = reduce(pc.and_, (part.is_null() for part in parts)) if skip_null else None
    if none is not None:
        parts = [pc.if_else(none, "", parts[0]), *parts[1:]]
    joined = parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\n\n", null_handling="skip")
    if none is not None:
        return pc.if_else(none, pa.scalar(None, pa.string()), joined)
    if len(joined) != len(parts[0]) or joined.null_count:
        raise InvariantBroken(f"{len(parts[0])} rows have {len(joined) - joined.null_count} texts.")
    return joined


def _true(mask: pa.BooleanArray) -> list[int]:
    """Return the indices of true values."""
    indices: list[int] = pc.indices_nonzero(mask).to_pylist()
    return indices


def _without_repeats(table: pa.Table, bad: list[QuarantinedRow]) -> pa.Table:
    """Return the table without rows that repeat the id of an earlier row."""
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
