"""Reads rows of some columns in parts, from files of any format of a source or from a Delta table.

Called by commands that take pairs without a job file. Of a table with a column `kept`, which a curation makes, only the kept
rows are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from actors import storage
from actors.errors import ConfigError
from actors.schema import CONTENT, HASH, ID, Unit
from actors.source.blank import blank_texts
from actors.source.content_hash import content_hashes
from actors.source.formats import FORMATS
from actors.source.formats.dialects import settle
from actors.source.formats.types import is_text
from actors.source.read_unit import read_unit
from pipeline.job.config import Job
from pipeline.job.load import load_job
from pipeline.plan.corpus import list_corpus, source_format, survey
from pipeline.plan.units import pieces_of
from pipeline.table import delta_table

_PART_ROWS = 65_536
_FIRST_SHARDS = 16
_KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that were read.

    Attributes:
        rows: `ID`, the columns (`others` and `kept`), the content (`CONTENT`) and its hash (`HASH`).
        bad: Rows that cannot be used, by reason; see `actors.schema.REASONS`.
        ids: The ids, which `rows` has not where a column of the source that is read has the name `ID`.
    """

    rows: pa.Table
    bad: Counter[str]
    ids: pa.ChunkedArray


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns to read.

    Attributes:
        content: Columns of texts that are joined by a blank line into one, which must not be blank.
        options: The option of the command that sets a key of a job, for messages.
        others: Further columns of texts; a null is an empty text.
        kept: Further columns of any type, as they are.
        ids: Those of `others` that may also hold whole numbers.
        id: Column of ids; None: made from file path and position, or in a table with a column `id` that one.
    """

    content: Sequence[str]
    options: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()
    ids: Sequence[str] = ()
    id: str | None = None
    kept: Sequence[str] = ()

    @property
    def beside(self) -> list[str]:
        """Names of the columns beside the content."""
        return list(dict.fromkeys([*self.others, *self.kept]))


def read_rows(uri: str, columns: Columns, *, format: str = "auto", verdicts: bool = True) -> Iterator[Part]:  # noqa: A002
    """Yield the rows of files (a path, a folder or a glob) or of a Delta table, in one order.

    Args:
        uri: Where they are.
        columns: What is read of them.
        format: Format of files, as in `source.format`.
        verdicts: Whether rows that a curation has dropped are left out.

    Raises:
        ConfigError: nothing is there, or a column is missing or of a wrong type.
        DataError: a file cannot be read.
        StorageError: the store refused or failed.
    """
    if is_table(uri):
        return _of_table(uri, columns, verdicts=verdicts)
    return _of_files(uri, columns, format)


def is_table(uri: str) -> bool:
    """Return True if a Delta table is there."""
    place = storage.absolute(uri)
    return "*" not in place and "_delta_log" in storage.folders(place)


def column_types(uri: str, *, format: str = "auto") -> dict[str, pa.DataType]:  # noqa: A002
    """Return the columns of files, or of a Delta table, by name; of many files those of the first ones.

    Raises:
        ConfigError: nothing is there.
        DataError: a file cannot be read.
        StorageError: the store refused or failed.
    """
    if is_table(uri):
        schema = delta_table.plain_schema(_open(uri))
        return dict(zip(schema.names, schema.types, strict=True))
    job = _job(uri, format)
    shards = list_corpus(job).shards[:_FIRST_SHARDS]
    name = source_format(job, shards)
    shards, _ = settle(shards, name, job.source.quote, job.source.escape)
    types: dict[str, pa.DataType] = {}
    for shard in shards:
        types = {**FORMATS[name].columns(shard), **types}
    return types


def state_of(uri: str, *, format: str = "auto") -> list[Any]:  # noqa: A002
    """Return what changes whenever files, or a Delta table, change: JSON values."""
    if is_table(uri):
        table = _open(uri)
        return [table.metadata().id, int(table.version())]
    return [[shard.path, shard.size_bytes, shard.etag] for shard in list_corpus(_job(uri, format)).shards]


def _job(uri: str, format_name: str, **source: Any) -> Job:
    settings = {
        "source.uri": uri,
        "source.format": format_name,
        "source.unique_ids": False,
        **{f"source.{key}": value for key, value in source.items()},
        "table.uri": storage.join(storage.absolute("."), ".no-table"),  # a job needs one
        "encoder.model": "none",
    }
    return load_job(None, defaults=settings)


def _of_files(uri: str, columns: Columns, format_name: str) -> Iterator[Part]:
    # Under other names, since a table has columns of its own that a source may have too.
    stored = {name: f"column_{number}" for number, name in enumerate(columns.beside) if name not in columns.content}
    job = _job(uri, format_name, text=list(columns.content), keep=stored, id=columns.id)
    try:
        shards = list_corpus(job).shards
        found = survey(job, shards, modality="text")
    except ConfigError as error:
        message = reduce(lambda text, option: text.replace(*option), columns.options.items(), str(error))
        raise ConfigError(message) from None
    source = replace(found.source, texts=tuple({*columns.others} - {*columns.ids}))
    for piece in pieces_of(found, _PART_ROWS):
        read = read_unit(Unit(0, (piece,)), source)
        rows = {ID: read.table[ID]}
        for name in columns.beside:
            column = read.table[stored.get(name, CONTENT)]
            rows[name] = _texts(column, name, columns) if name in columns.others else column
        rows |= {name: read.table[name] for name in (CONTENT, HASH)}
        yield Part(pa.table(rows), Counter(each.reason for each in read.bad), read.table[ID])


def _open(uri: str) -> DeltaTable:
    place = storage.absolute(uri)
    table = delta_table.open_table(place)
    if table is None:
        raise ConfigError(f"the log of {place!r} is empty; name a Delta table or files")
    return table


def _of_table(uri: str, columns: Columns, *, verdicts: bool) -> Iterator[Part]:
    table, place = _open(uri), storage.absolute(uri)
    schema = delta_table.plain_schema(table)
    id_column = columns.id or ID
    has_ids = columns.id is not None or ID in schema.names
    names = list(dict.fromkeys([*([id_column] if has_ids else []), *columns.content, *columns.beside]))
    for name in names:
        if name not in schema.names:
            key = "source.text" if name in columns.content else "source.id" if name == id_column else "source.keep"
            option = columns.options.get(key, key)
            raise ConfigError(f"{option} names the column {name!r}, which {place!r} lacks; it has {schema.names[:50]}")
    is_curated = _KEPT in schema.names and pa.types.is_boolean(schema.field(_KEPT).type)
    condition = pc.field(_KEPT) if is_curated and verdicts else None
    with delta_table.asking(table):
        dataset = table.to_pyarrow_dataset()
        for fragment in sorted(dataset.get_fragments(), key=lambda each: str(each.path)):
            batches = fragment.to_batches(schema=dataset.schema, columns=names, filter=condition, batch_size=_PART_ROWS)
            row = 0
            for batch in batches:
                rows = pa.table(batch)
                if not has_ids:
                    ids = [f"{fragment.path}:{number}" for number in range(row, row + len(rows))]
                    rows = rows.append_column(ID, pa.array(ids, pa.string()))
                row += len(rows)
                yield _checked(rows, id_column, columns)


def _checked(batch: pa.Table, id_column: str, columns: Columns) -> Part:
    """Return the rows of a batch of a table, without those whose content is blank."""
    texts = [_texts(batch[name], name, columns) for name in columns.content]
    content = pc.binary_join_element_wise(*texts, "\n\n") if len(texts) > 1 else texts[0]
    others = {name: _texts(batch[name], name, columns) for name in columns.others}
    others |= {name: batch[name] for name in columns.kept}
    ids = batch[id_column].cast(pa.string())
    rows = pa.table({ID: ids, **others, CONTENT: content})
    if not rows.num_rows:
        return Part(rows.append_column(HASH, pa.array([], pa.string())), Counter(), ids)
    combined = rows[CONTENT].combine_chunks()
    blank = blank_texts(combined)
    bad = Counter(reason for reason, _ in blank.values())
    if blank:
        good = pa.array([row for row in range(rows.num_rows) if row not in blank], pa.int64())
        rows, combined, ids = rows.take(good), combined.take(good), ids.take(good)
    return Part(rows.append_column(HASH, content_hashes(combined)), bad, ids)


def _texts(column: pa.ChunkedArray, name: str, columns: Columns) -> pa.ChunkedArray:
    """Return a column as texts; whole numbers of ids are written out."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_number = pa.types.is_integer(kind) and name in columns.ids
    if not (is_number or pa.types.is_null(kind) or is_text(kind)):
        key = "source.text" if name in columns.content else "source.keep"
        option = columns.options.get(key, key)
        raise ConfigError(f"{option} names the column {name!r}, which is {kind}; name a column of texts")
    return pc.fill_null(column.cast(pa.string()), "")
