"""Judged queries: read from two files and checked, before anything is encoded or searched.

Used by the quality gate of a re-embedding and by the evaluation of a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ConfigError, DataError
from actors.source.blank import blank_rows
from actors.source.formats.types import is_text
from pipeline.search.questions import read_parquet


@dataclass(frozen=True, slots=True)
class Judged:
    """Queries with at least one judgement.

    Attributes:
        queries: Text by the id of the query.
        judgements: Relevance by the id of the document, by the id of the query.
        name: Name of the judgements, for messages.
        notes: A sentence for each kind of query that does not count as others do.
    """

    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]
    name: str
    notes: tuple[str, ...] = ()

    def count_present(self, ids: Iterable[pa.ChunkedArray], of: str = "the table") -> tuple[int, int]:
        """Return the number of judged documents that a table has, and the number of all.

        Args:
            ids: The ids of the table's rows, in parts.
            of: What has them, for messages.

        Raises:
            DataError: the table has none of them.
        """
        documents = pa.array({document for grades in self.judgements.values() for document in grades}, pa.string())
        present, example = set(), None
        for part in ids:
            example = part[0].as_py() if example is None and len(part) else example
            present.update(part.filter(pc.is_in(part, value_set=documents)).to_pylist())
        if not present:
            raise DataError(
                f"{self.name}: none of its documents is in {of}: it judges {documents[0].as_py()!r}, and {of} has ids "
                f"such as {example!r}. Write the ids of {of} into the column of documents"
            )
        return len(present), len(documents)


def need_measures(option: str) -> None:
    """Raise ConfigError if the package that computes metrics of retrieval is missing."""
    if find_spec("ir_measures") is None:
        raise ConfigError(f"{option} needs the package ir-measures; install it with: pip install 'vectide[quality]'")


def read_judged(queries: str, judgements: str, *, options: tuple[str, str]) -> Judged:
    """Read the queries (`id`, `text`) and judgements (`query`, `doc`, and `relevance` if graded) of two Parquet files.

    Args:
        queries: URL of the queries.
        judgements: URL of the judgements.
        options: The two options, or keys of the job, that name them, for messages.

    Raises:
        ConfigError: a file does not exist or lacks a column, or the extra `quality` is not installed.
        DataError: a file is not Parquet or is empty, an id is missing, repeated or of another type, a text is blank, no
            judgement is of one of the queries, or none has a relevance above 0.
    """
    need_measures(options[0])
    return judged(
        read_columns(queries, options[0], ("id", "text")),
        read_columns(judgements, options[1], ("query", "doc")),
        names=(f"{options[0]}: {queries!r}", f"{options[1]}: {judgements!r}"),
    )


def read_corpus(url: str, option: str) -> pa.Table:
    """Read documents (`id`, `text`) from a Parquet file; a document without a text is blank.

    Raises:
        ConfigError: as for `read_columns`.
        DataError: as for `read_columns`, or an id is missing, repeated or of another type, or a text is none.
    """
    table, where = read_columns(url, option, ("id", "text")), f"{option}: {url!r}"
    if not is_text(kind := _value_type(table["text"])):
        raise DataError(f"{where}: the column 'text' is {kind}; it must be text")
    return corpus_of(_ids(table["id"], "id", where), _decoded(table["text"], "text", where), where)


def corpus_of(ids: list[str], texts: list[str | None], where: str) -> pa.Table:
    """Return documents as a table; see `read_corpus`."""
    rows = pa.array(ids, pa.string())
    if len(set(ids)) < len(ids):
        raise DataError(
            f"{where} has the id {_repeated(pa.chunked_array([rows]))!r} twice; keep one document of each id"
        )
    filled = pa.array([text or "" for text in texts], pa.string())
    if len(blank_rows(filled)) == len(filled):
        raise DataError(f"{where}: all texts are blank; give the texts of the documents")
    return pa.table([rows, filled], ["id", "text"])


def read_columns(url: str, option: str, columns: Iterable[str]) -> pa.Table:
    """Read a small Parquet file that must have rows and these columns.

    Raises:
        ConfigError: the file does not exist, or a column is missing or there twice.
        DataError: it is not Parquet or has no rows.
    """
    table = read_parquet(url, option)
    for name in columns:
        if (count := table.column_names.count(name)) != 1:
            problem = f"has {count} columns {name!r}; rename all but one" if count else f"has no column {name!r}"
            raise ConfigError(f"{option}: {url!r} {problem}; it needs {' and '.join(columns)}")
    if not table.num_rows:
        needed = " and ".join(columns)
        raise DataError(f"{option}: {url!r} has no rows; write at least one{needed and ', with '}{needed}")
    return table


def judged(queries: pa.Table, judgements: pa.Table, *, names: tuple[str, str]) -> Judged:
    """Return the judged queries of two tables; see `read_judged`.

    Args:
        queries: Columns `id` and `text`.
        judgements: Columns `query` and `doc`, and `relevance` if they are graded.
        names: Names of the two, for messages.
    """
    of_queries, of_judgements = names
    texts = dict(
        zip(_ids(queries["id"], "id", of_queries), text_values(queries["text"], "text", of_queries), strict=True)
    )
    if len(texts) < queries.num_rows:
        raise DataError(f"{of_queries} has the id {_repeated(queries['id'])!r} twice; keep one query of each id")
    query, document = (_ids(judgements[column], column, of_judgements) for column in ("query", "doc"))
    relevance = _relevance(judgements, of_judgements)
    found: dict[str, dict[str, int]] = {}
    for number, name in enumerate(query):
        grades = found.setdefault(name, {})
        if document[number] in grades:
            raise DataError(
                f"{of_judgements} judges the document {document[number]!r} twice for the query {name!r}; keep one of the two"
            )
        grades[document[number]] = relevance[number]
    unknown = [name for name in found if name not in texts]
    if len(unknown) == len(found):
        raise DataError(
            f"{of_judgements}: none of its queries is in {of_queries}: it judges {unknown[0]!r}, and the queries have ids "
            f"such as {next(iter(texts))!r}. Write the same ids, of the same type, in both"
        )
    if max(relevance) <= 0:
        raise DataError(
            f"{of_judgements} has no relevance above 0, so every metric would be 0; write 1 or more for documents that answer"
        )
    kept = {name: found[name] for name in texts if name in found}
    fruitless = sum(max(grades.values()) <= 0 for grades in kept.values())
    notes = (
        (len(texts) - len(kept), "queries have no judgement and are left out"),
        (len(unknown), "judged queries have no text and are left out"),
        (fruitless, "queries have no relevant document and count as 0, as in trec_eval"),
    )
    sentences = tuple(f"{count:,} {what}" for count, what in notes if count)
    return Judged({name: texts[name] for name in kept}, kept, of_judgements, sentences)


def text_values(column: pa.ChunkedArray, name: str, where: str) -> list[str]:
    """Return the texts of a column.

    Raises:
        DataError: it holds something else, or a text is null or blank.
    """
    kind = _value_type(column)
    if not is_text(kind):
        raise DataError(f"{where}: the column {name!r} is {kind}; it must be text")
    if column.null_count:
        raise DataError(f"{where}: the column {name!r} has nulls ({column.null_count:,}); give each row a text")
    texts = column.cast(pa.string()).combine_chunks()
    if len(blank := blank_rows(texts)):
        raise DataError(f"{where}: the column {name!r} is blank in row {int(blank[0])}; give each row a text")
    return _decoded(texts, name, where)


def _decoded(column: pa.ChunkedArray | pa.Array, name: str, where: str) -> list[Any]:
    """Return a column of texts or whole numbers as texts; raise DataError if a text is not UTF-8."""
    try:
        return list(column.cast(pa.string()).to_pylist())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: the column {name!r} has a text that is not UTF-8 ({error}); write it as UTF-8"
        ) from None


def _ids(column: pa.ChunkedArray, name: str, where: str) -> list[str]:
    """Return a column of ids as texts. Whole numbers are ids too, as they are in the job's `source.id`."""
    kind = _value_type(column)
    if not (is_text(kind) or pa.types.is_integer(kind)):
        raise DataError(
            f"{where}: the column {name!r} is {kind}, and ids are texts or whole numbers; cast it to the type of the table's ids"
        )
    if column.null_count:
        raise DataError(f"{where}: the column {name!r} has nulls ({column.null_count:,}); give each row an id")
    return _decoded(column, name, where)


def _relevance(judgements: pa.Table, where: str) -> list[int]:
    if "relevance" not in judgements.column_names:
        return [1] * judgements.num_rows
    column = judgements["relevance"]
    try:
        if column.null_count:
            raise pa.ArrowInvalid(f"it has nulls ({column.null_count:,})")
        values: list[int] = column.cast(pa.int64()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{where}: the column 'relevance' must hold whole numbers, 0 for irrelevant: {error}") from None
    return values


def _repeated(column: pa.ChunkedArray) -> str:
    counts = pc.value_counts(column.cast(pa.string()))
    return str(next(each["values"] for each in counts.to_pylist() if each["counts"] > 1))


def _value_type(column: pa.ChunkedArray) -> pa.DataType:
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type
