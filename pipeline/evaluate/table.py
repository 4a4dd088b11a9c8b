"""Evaluates tables by judged queries, beside what words alone find: only the queries are encoded.

The tables are those of users, or are made here of a corpus by models and modes of chunking, as backfills. Called by
`vectide evaluate` and by users of the library. The search is exact, so the measures are those of the vectors and not of an
index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pyarrow as pa

from actors.errors import ConfigError
from actors.schema import ID
from actors.text.chunk_rules import Mode
from actors.vectors import VectorColumn, dense
from pipeline.evaluate.embedded import EmbeddedTexts
from pipeline.evaluate.ladder import Rung, rungs
from pipeline.evaluate.lexical import bm25
from pipeline.evaluate.result import Evaluated, Evaluation, Measured
from pipeline.execute.progress import Reporter
from pipeline.quality.judged import Judged, read_corpus, read_judged
from pipeline.quality.metrics import MAIN
from pipeline.quality.retrieval import Search, measure
from pipeline.run.routing import task_of
from pipeline.scan.block import Block
from pipeline.search.search import QUESTION, SCORE, Searcher

_ROWS = 8192  # of a block that are quantised at a time


def evaluate(
    table: str | Path,
    *,
    queries: str | Path,
    judgements: str | Path,
    version: int | None = None,
    corpus: str | Path | None = None,
    dims: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Return how well a table answers judged queries.

    Args:
        table: URL of the table's folder.
        queries: Parquet file of queries: `id`, `text`.
        judgements: Parquet file of judgements: `query`, `doc`, and `relevance` if they are graded.
        version: Version of the table; None: the current one.
        corpus: Parquet file of the documents, `id` and `text`, for the row of BM25; None: the texts that the table keeps.
        dims: Numbers of dimensions to try.
        precisions: Types of numbers to try, of "float32", "float16", "bfloat16", "int8" and "binary".
        out: A folder for the result and the values of each query.

    Raises:
        ConfigError: there is no table, or a file or a column does not exist.
        DataError: queries and judgements do not fit each other or the table.
        StorageError: the store refused or failed.
    """
    judged = read_judged(str(queries), str(judgements), options=("queries", "judgements"))
    documents = None if corpus is None else read_corpus(str(corpus), "corpus")
    tables = [named(Searcher(table, version=version))]
    evaluated = evaluate_tables(tables, judged, documents, dims=dims, precisions=precisions)
    result = evaluated.result()
    if out is not None:
        evaluated.write(str(out), result)
    return result


def named(searcher: Searcher) -> tuple[str, Searcher]:
    """Return the name of a table and its version, and the table."""
    return f"{searcher.url}, version {searcher.version}", searcher


def embedded_tables(
    models: Sequence[str],
    corpus: pa.Table,
    out: str,
    reporter: Reporter,
    *,
    settings: Sequence[str] = (),
    chunkings: Sequence[str] = (),
    code: bool = False,
    dims: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
) -> list[tuple[str, Searcher]]:
    """Return tables of a corpus by models and modes of chunking, with their names.

    Documents that a table has are not embedded again. The ladder is that of `evaluate_tables`; one that does not fit is
    refused before anything is embedded.

    Args:
        models: Hub ids or local directories.
        corpus: `id` and `text`.
        out: URL of the folder for the tables.
        reporter: Receives the progress of the backfills.
        settings: `key=value` of the job.
        chunkings: Modes of chunking; none: that of the settings.
        code: Whether the documents are programs.
        dims: Numbers of dimensions of a ladder.
        precisions: Types of numbers of a ladder.

    Raises:
        ConfigError: a setting is wrong, there is no such mode, or as for `evaluate_tables`.
        VectideError: as for a backfill.
    """
    if unknown := [mode for mode in chunkings if mode not in get_args(Mode)]:
        raise ConfigError(f"--chunking {unknown[0]!r} is not known; give some of {','.join(get_args(Mode))}")
    digest = blake2b(digest_size=8)
    for batch in corpus.to_batches():
        digest.update("\0".join(text for column in batch.columns for text in column.to_pylist()).encode())
    embedders = []
    for model in models:
        for mode in chunkings or (None,):
            # Without chunks, their size is no setting.
            own = [each for each in settings if mode != "none" or not each.startswith("chunking.")]
            texts = EmbeddedTexts(model, own if mode is None else [*own, f"chunking.mode={mode}"], out, reporter)
            parts = [*([model] if len(models) > 1 or mode is None else []), *([f"chunking {mode}"] if mode else [])]
            embedders.append((", ".join(parts), texts))
    _ladders([(name, each.spec.outputs[0]) for name, each in embedders], dims, precisions)
    found = []
    for name, texts in embedders:
        task = task_of(texts.spec, "Retrieval", document=True, code=code)
        found.append((name, texts.documents([corpus], task, f"corpus-{digest.hexdigest()}")))
    return found


def evaluate_tables(
    tables: Sequence[tuple[str, Searcher]],
    judged: Judged,
    corpus: pa.Table | None = None,
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
) -> Evaluated:
    """Measure tables or versions by the same judged queries, the first of which the others are compared with.

    Args:
        tables: Their names, and the tables; one only if a ladder is asked for.
        judged: The queries.
        corpus: `id` and `text` of documents, for the row of BM25; None: the texts that the last table keeps.
        dims: Numbers of dimensions of a ladder.
        precisions: Types of numbers of a ladder.

    Raises:
        ConfigError: a ladder of several tables, or of vectors that it cannot cut.
        DataError: a table has no judged document, or the vector of a query cannot be computed.
        StorageError: the store refused or failed.
    """
    steps = _ladders([(name, searcher.scan.dense) for name, searcher in tables], dims, precisions)
    measured, notes, texts = [], list(judged.notes), [*judged.queries.values()]
    for (name, searcher), ladder in zip(tables, steps, strict=True):
        present, documents = judged.count_present(searcher.scan.ids())
        if present < documents:
            notes.append(f"{documents - present:,} of {documents:,} judged documents are not in {name}")
        if searcher.scan.dense is not None:
            vectors = searcher.encode(texts)
            if not ladder:
                measured.append(Measured(name, measure(judged, vectors, searcher.nearest)))
            measured += [_measured(searcher, judged, vectors, rung) for rung in ladder]
        if searcher.scan.multi is not None and not ladder:
            numbers = pa.array(range(len(texts)))
            measured.append(Measured(f"{name}, late interaction", measure(judged, numbers, late(searcher, texts))))
    words = bm25(tables[-1][1], judged, corpus)
    if isinstance(words, str):
        notes.append(words)
    else:
        measured.append(words)
    return Evaluated(
        "retrieval", " and ".join(name for name, _ in tables), MAIN, [*judged.queries], measured, tuple(notes)
    )


def late(searcher: Searcher, texts: Sequence[str]) -> Search:
    """Return a search by late interaction, whose queries are the numbers of texts."""
    from pipeline.scan.top_k import QUERY
    from pipeline.scan.top_k import SCORE as OF_SCAN

    def search(numbers: pa.Array, k: int) -> pa.Table:
        found = searcher.search_table([texts[number] for number in numbers.to_pylist()], k=k, late=True)
        return found.select([QUESTION, SCORE, ID]).rename_columns([QUERY, OF_SCAN, ID])

    return search


def _ladders(
    columns: Sequence[tuple[str, VectorColumn | None]], dims: Sequence[int] | None, precisions: Sequence[str] | None
) -> list[tuple[Rung, ...]]:
    """Return the ladder of each column of vectors, by name; empty ones if none is asked for."""
    if dims is None and precisions is None:
        return [()] * len(columns)
    if len(columns) > 1:
        raise ConfigError(
            "--dims and --precision are for one table, model and mode of chunking; ask for the ladders one after the other"
        )
    (name, column), *_ = columns
    if column is None or not column.single:
        raise ConfigError(
            f"--dims and --precision compare cosines of one vector a row, which {name} does not have; leave them out"
        )
    return [rungs(column.dim, dims, precisions)]


def _measured(searcher: Searcher, judged: Judged, vectors: pa.Array, rung: Rung) -> Measured:
    from pipeline.scan.products import Queries  # importing torch takes seconds
    from pipeline.scan.top_k import nearest

    whole = cast("VectorColumn", searcher.scan.dense)
    column = VectorColumn(whole.name, "dense", rung.dim)

    def search(queries: pa.Array, k: int) -> pa.Table:
        return nearest(Queries(column.matrix(queries)), _blocks(searcher, column, rung), k)

    queries = rung.queries(whole.matrix(vectors))
    values = measure(judged, dense(queries).cast(column.type), search)
    return Measured(rung.label, values, bytes_per_vector=rung.bytes_per_vector)


def _blocks(searcher: Searcher, column: VectorColumn, rung: Rung) -> Iterator[Block]:
    """Yield the ids of all rows with their vectors as the rung stores them; a row without a vector is left out."""
    first = 0
    for block in searcher.scan.blocks():
        fit = np.setdiff1d(np.arange(block.rows.num_rows), block.unfit)
        for start in range(0, len(fit), _ROWS):
            rows = fit[start : start + _ROWS]
            stored = rung.stored(block.vectors(rows).astype(np.float32))
            ids = block.rows.column(ID).take(pa.array(rows))
            batch = pa.record_batch([ids, dense(stored).cast(column.type)], [ID, column.name])
            yield Block.of(batch, column, first)
            first += len(rows)
