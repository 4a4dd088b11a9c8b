"""Reads rows of some columns in parts, from files of any format of a source or from a Delta table.

Called by commands that take pairs without a job file. Of a table with a column `kept`, which a curation makes, only the kept
rows are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.errors import ConfigError
from actors.schema import CONTENT, HASH, ID, Unit
from actors.source.blank import blank_texts
from actors.source.content_hash import content_hashes
from actors.source.formats.types import is_text
from actors.source.read_unit import read_unit
from pipeline.job.config import Job
from pipeline.job.load import load_job
from pipeline.plan.corpus import list_corpus, survey
from pipeline.plan.units import pieces_of
from pipeline.table import delta_table

_PART_ROWS = 65_536
_KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that were read.

    Attributes:
        rows: `ID`, the columns, the content (`CONTENT`) and its hash (`HASH`).
        bad: Rows that cannot be used, by reason; see `actors.schema.REASONS`.
    """

    rows: pa.Table
    bad: Counter[str]


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns to read.

    Attributes:
        content: Columns of texts that are joined by a blank line into one, which must not be blank.
        options: The option of the command that sets a key of a job, for messages.
        others: Further columns of texts; a null is an empty text.
        ids: Those of `others` that may also hold whole numbers.
        id: Column of ids; None: made from file path and position, or in a table with a column `id` that one.
    """

    content: Sequence[str]
    options: Mapping[str, str]
    others: Sequence[str] = ()
    ids: Sequence[str] = ()
    id: str | None = None


def read_rows(uri: str, columns: Columns) -> Iterator[Part]:
    """Yield the rows of files (a path, a folder or a glob) or of a Delta table, in one order.

    Raises:
        ConfigError: nothing is there, or a column is missing or of a wrong type.
        DataError: a file cannot be read.
        StorageError: the store refused or failed.
    """
    place = storage.absolute(uri)
    is_table = "*" not in place and "_delta_log" in storage.folders(place)
    return _of_table(place, columns) if is_table else _of_files(uri, columns)


def _of_files(uri: str, columns: Columns) -> Iterator[Part]:
    settings = {
        "source.uri": uri,
        "source.text": list(columns.content),
        "source.keep": [name for name in columns.others if name not in columns.content],
        "source.id": columns.id,
        "source.unique_ids": False,
        "table.uri": storage.join(storage.absolute("."), ".no-table"),  # a job needs one
        "encoder.model": "none",
    }
    job: Job = load_job(None, defaults=settings)
    try:
        shards = list_corpus(job).shards
        found = survey(job, shards, modality="text")
    except ConfigError as error:
        message = reduce(lambda text, option: text.replace(*option), columns.options.items(), str(error))
        raise ConfigError(message) from None
    for piece in pieces_of(found, _PART_ROWS):
        read = read_unit(Unit(0, (piece,)), found.source)
        rows = read.table
        for name in columns.others:
            column = rows[CONTENT] if name in columns.content else _texts(rows[name], name, columns)
            rows = rows.drop_columns([name] if name in rows.column_names else []).append_column(name, column)
        yield Part(rows.select([ID, *columns.others, CONTENT, HASH]), Counter(each.reason for each in read.bad))


def _of_table(place: str, columns: Columns) -> Iterator[Part]:
    table = delta_table.open_table(place)
    if table is None:
        raise ConfigError(f"the log of {place!r} is empty; name a Delta table or files")
    schema = delta_table.plain_schema(table)
    id_column = columns.id or ID
    has_ids = columns.id is not None or ID in schema.names
    names = list(dict.fromkeys([*([id_column] if has_ids else []), *columns.content, *columns.others]))
    for name in names:
        if name not in schema.names:
            key = "source.text" if name in columns.content else "source.id" if name == id_column else "source.keep"
            option = columns.options[key]
            raise ConfigError(f"{option} names the column {name!r}, which {place!r} lacks; it has {schema.names[:50]}")
    is_curated = _KEPT in schema.names and pa.types.is_boolean(schema.field(_KEPT).type)
    condition = pc.field(_KEPT) if is_curated else None
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
    rows = pa.table({ID: batch[id_column].cast(pa.string()), **others, CONTENT: content})
    if not rows.num_rows:
        return Part(rows.append_column(HASH, pa.array([], pa.string())), Counter())
    combined = rows[CONTENT].combine_chunks()
    blank = blank_texts(combined)
    bad = Counter(reason for reason, _ in blank.values())
    if blank:
        good = pa.array([row for row in range(rows.num_rows) if row not in blank], pa.int64())
        rows, combined = rows.take(good), combined.take(good)
    return Part(rows.append_column(HASH, content_hashes(combined)), bad)


def _texts(column: pa.ChunkedArray, name: str, columns: Columns) -> pa.ChunkedArray:
    """Return a column as texts; whole numbers of ids are written out."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_number = pa.types.is_integer(kind) and name in columns.ids
    if not (is_number or pa.types.is_null(kind) or is_text(kind)):
        option = columns.options["source.text" if name in columns.content else "source.keep"]
        raise ConfigError(f"{option} names the column {name!r}, which is {kind}; name a column of texts")
    return pc.fill_null(column.cast(pa.string()), "")
