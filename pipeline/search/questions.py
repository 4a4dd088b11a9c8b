"""Searches for all questions of a Parquet file and writes the hits to another.

Called by `vectide search --questions`. One pass over the table serves up to 4,096 questions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.errors import ConfigError, DataError
from actors.source.formats.types import is_text
from pipeline.search.candidates import Candidates
from pipeline.search.search import MEAN, QUESTION, RANK, SCORE, Searcher

_NAMES = {QUESTION: "question", RANK: "rank", SCORE: "score", MEAN: "mean_score"}


def search_file(
    searcher: Searcher,
    questions: str,
    out: str,
    *,
    k: int,
    where: str | None = None,
    late: bool = False,
    candidates: Candidates = None,
    report: Callable[[int, int], None] | None = None,
) -> int:
    """Write the `k` rows nearest to each question of a file, and return the number of hits.

    Args:
        searcher: The table.
        questions: URL of a Parquet file with a column `text`, and `id` if the hits shall name the questions by it;
            otherwise they are named by their number, from 0.
        out: URL of the Parquet file to write: columns `question`, `rank` (from 1), `score`, with `late` `mean_score`, and
            the stored columns of the row. A stored column of one of these names gets `table_` before its name, as often as needed.
        k: Hits per question.
        where: An SQL condition on the stored columns.
        late: As in `Searcher.search`.
        candidates: As in `Searcher.search`.
        report: As in `Searcher.search_table`.

    Raises:
        ConfigError: the file does not exist or has no column `text`, hits cannot be written to `out`, or a question, `k`
            or `where` is invalid. No row is read before.
        DataError: the file is not Parquet, a text is null or not a string, or a vector cannot be computed.
        StorageError: the store refused or failed.
    """
    check_out(out, questions)
    given = _read_questions(questions)
    hits = searcher.search_table(
        given.column("text").to_pylist(), k=k, where=where, late=late, candidates=candidates, report=report
    )
    names = _names(hits.column_names)
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
    if not url:
        raise ConfigError(f"{key} is empty; name a Parquet file")
    data = read_file(url, key, "a Parquet file")
    try:
        return pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{key}: {url!r} is not a Parquet file: {error}") from None


def read_file(url: str, key: str, kind: str) -> bytes:
    """Return the content of a file that an option names.

    Args:
        url: Its URL.
        key: As for `read_parquet`.
        kind: A noun phrase for what the file should be, for messages.

    Raises:
        ConfigError: the file does not exist.
    """
    try:
        return storage.read(storage.absolute(url))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{key} names {url!r}, which does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"{key} names {url!r}, which is a folder; name {kind}") from None


def _read_questions(url: str) -> pa.Table:
    table = read_parquet(url, "--questions")
    for name in ("text", "id"):
        if (count := table.column_names.count(name)) > 1:
            raise ConfigError(f"--questions: {url!r} has {count} columns {name!r}; rename all but one")
    if "text" not in table.column_names:
        raise ConfigError(f"--questions: {url!r} has no column 'text', only {', '.join(table.column_names)}")
    text = table.column("text")
    kind = text.type.value_type if pa.types.is_dictionary(text.type) else text.type
    if not is_text(kind) or (text := text.cast(pa.string())).null_count:
        raise DataError(
            f"--questions: the column 'text' of {url!r} is {kind} with {text.null_count} nulls; it must be text"
        )
    return table.set_column(table.column_names.index("text"), "text", text)


def check_out(out: str, source: str) -> None:
    """Refuse a Parquet file that cannot be written, or that is the one that is read."""
    url = storage.absolute(out)
    if not out.endswith(".parquet"):
        raise ConfigError(f"--out {out!r} does not end in .parquet; name the file to write, as in hits.parquet")
    if url == storage.absolute(source):
        raise ConfigError(f"--out {out!r} is the file that is read; name another file")
    if not storage.is_local(url):
        storage.exists(url)  # finds a wrong bucket and missing credentials
        return
    path = storage.local_path(url)
    if path.is_dir():
        raise ConfigError(f"--out {out!r} is a folder; name a file")
    _check_folder(out, path.parent)


def check_folder(out: str) -> None:
    """Refuse a folder that cannot be written."""
    url = storage.absolute(out)
    if storage.is_local(url):
        _check_folder(out, storage.local_path(url))
    else:
        storage.exists(url)  # finds a wrong bucket and missing credentials


def _check_folder(out: str, path: Path) -> None:
    folder = next(each for each in (path, *path.parents) if each.exists())  # the others are made
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "may not be written to" if folder.is_dir() else "is a file"
        raise ConfigError(f"--out {out!r} cannot be written: {str(folder)!r} {what}; name another place")


def _names(columns: list[str]) -> list[str]:
    """Return the names of the columns of hits in the file, each once."""
    own = {_NAMES[column] for column in columns if column in _NAMES}
    used, names = {*columns, *own}, []
    for column in columns:
        name = _NAMES.get(column, column)
        if column in own:
            while name in used:
                name = f"table_{name}"
            used.add(name)
        names.append(name)
    return names
