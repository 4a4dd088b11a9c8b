"""Searches for all questions of a Parquet file and writes the hits to another.

Called by `vectide search --questions`. One pass over the table serves up to 4,096 questions.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.errors import ConfigError, DataError
from pipeline.search.search import QUESTION, RANK, SCORE, Searcher

_NAMES = {QUESTION: "question", RANK: "rank", SCORE: "score"}


def search_file(
    searcher: Searcher,
    questions: str,
    out: str,
    *,
    k: int,
    where: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> int:
    """Write the `k` rows nearest to each question of a file, and return the number of hits.

    Args:
        searcher: The table.
        questions: URL of a Parquet file with a column `text`, and `id` if the hits shall name the questions by it;
            otherwise they are named by their number, from 0.
        out: URL of the Parquet file to write: columns `question`, `rank` (from 1), `score` and the stored columns of the
            row. A stored column of one of these three names is called `table_question` and so on.
        k: Hits per question.
        where: An SQL condition on the stored columns.
        report: As in `Searcher.search_table`.

    Raises:
        ConfigError: the file does not exist or has no column `text`, or a question, `k` or `where` is invalid.
        DataError: the file is not Parquet, a text is null or not a string, or a vector cannot be computed.
        StorageError: the store refused or failed.
    """
    given = _read_questions(questions)
    texts = given.column("text").to_pylist()
    hits = searcher.search_table(texts, k=k, where=where, report=report)
    names = [_NAMES.get(name, f"table_{name}" if name in _NAMES.values() else name) for name in hits.column_names]
    if "id" in given.column_names:
        index = hits.column_names.index(QUESTION)
        hits = hits.set_column(index, QUESTION, given.column("id").take(hits.column(QUESTION)))
    sink = pa.BufferOutputStream()
    pq.write_table(hits.rename_columns(names), sink, compression="zstd")
    storage.put(storage.absolute(out), bytes(sink.getvalue()))
    return int(hits.num_rows)


def read_parquet(url: str, key: str) -> pa.Table:
    """Read a small Parquet file.

    Args:
        url: Its URL.
        key: The option, or the key of the job, that names it, for messages.

    Raises:
        ConfigError: the file does not exist.
        DataError: it is not Parquet.
    """
    try:
        return pq.read_table(pa.BufferReader(storage.read(storage.absolute(url))))
    except FileNotFoundError:
        raise ConfigError(f"{key} names {url!r}, which does not exist") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{key}: {url!r} is not a Parquet file: {error}") from None


def _read_questions(url: str) -> pa.Table:
    table = read_parquet(url, "--questions")
    if "text" not in table.column_names:
        raise ConfigError(f"--questions: {url!r} has no column 'text', only {', '.join(table.column_names)}")
    text = table.column("text")
    if not (pa.types.is_string(text.type) or pa.types.is_large_string(text.type)) or text.null_count:
        raise DataError(
            f"--questions: the column 'text' of {url!r} is {text.type} with {text.null_count} nulls; it must be text"
        )
    return table
