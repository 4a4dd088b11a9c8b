"""Reads a folder in the layout of BEIR: `queries.jsonl`, `qrels/<split>.tsv` and `corpus.jsonl`.

Called by `vectide evaluate --beir`. The documents of a table have the ids of `_id`. A table may be there without the corpus.
"""

from __future__ import annotations

import codecs
import io
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv

from actors import storage
from actors.errors import DataError
from pipeline.quality.judged import Judged, corpus_of, judged, need_measures
from pipeline.search.questions import read_file

_OPTION = "--beir"


def read_beir(folder: str, split: str) -> Judged:
    """Read the queries and the judgements of a split.

    Raises:
        ConfigError: a file does not exist, or the extra `quality` is not installed.
        DataError: a file has another layout, or see `pipeline.quality.judged.judged`.
    """
    need_measures(_OPTION)
    queries = storage.join(folder, "queries.jsonl")
    qrels = storage.join(folder, "qrels", f"{split}.tsv")
    texts = pa.table(_columns(queries, read_file(queries, _OPTION, "a file of JSON lines"), ("_id", "text")))
    grades = _judgements(qrels, read_file(qrels, _OPTION, "a TSV file"))
    return judged(
        texts.rename_columns(["id", "text"]), grades, names=(f"{_OPTION}: {queries!r}", f"{_OPTION}: {qrels!r}")
    )


def read_beir_corpus(folder: str) -> pa.Table | None:
    """Read the documents, `id` and `text`, the title before the text as in mteb; None if the folder has no corpus.

    Raises:
        DataError: the file has another layout.
    """
    url = storage.join(folder, "corpus.jsonl")
    if not storage.exists(storage.absolute(url)):
        return None
    columns = _columns(url, read_file(url, _OPTION, "a file of JSON lines"), ("_id", "text"), ("title",))
    texts = [f"{title} {text}".strip() for title, text in zip(columns["title"], columns["text"], strict=True)]
    return corpus_of(columns["_id"], [*texts], f"{_OPTION}: {url!r}")


def _columns(url: str, data: bytes, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {name: [] for name in (*names, *optional)}
    for number, line in enumerate(io.BytesIO(data.removeprefix(codecs.BOM_UTF8)), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            for name, values in columns.items():
                values.append(_text(name, row.get(name) if name in optional else row[name]))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{_OPTION}: line {number} of {url!r} is not a JSON object with {' and '.join(names)}: {error}"
            ) from None
    if not columns[names[0]]:
        raise DataError(f"{_OPTION}: {url!r} is empty; each line must be an object with {' and '.join(names)}")
    return columns


def _text(name: str, value: Any) -> str:
    """Return a value as text: ids are texts or whole numbers, and a text that is null is blank."""
    if isinstance(value, str) or (name == "_id" and isinstance(value, int)):
        return str(value)
    if value is None and name != "_id":
        return ""
    raise TypeError(f"{name} is {value!r}")


def _judgements(url: str, data: bytes) -> pa.Table:
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(data),
            parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pa.csv.ConvertOptions(
                include_columns=["query-id", "corpus-id", "score"],
                column_types={"query-id": pa.string(), "corpus-id": pa.string(), "score": pa.int64()},
            ),
        )
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(
            f"{_OPTION}: {url!r} is not a TSV file with the header query-id, corpus-id, score: {error}"
        ) from None
    if not table.num_rows:
        raise DataError(f"{_OPTION}: {url!r} has no judgement; write at least one")
    return table.rename_columns(["query", "doc", "relevance"])
