"""Evaluates a table as it is by judged queries: only the queries are encoded.

Called by `vectide evaluate` and by users of the library. The search is exact, so the measures are those of the vectors and
not of an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

from actors.errors import ConfigError
from actors.schema import ID
from actors.vectors import VectorColumn, dense
from pipeline.evaluate.ladder import Rung, rungs
from pipeline.evaluate.result import Evaluated, Evaluation, Measured
from pipeline.quality.judged import Judged, read_judged
from pipeline.quality.metrics import MAIN
from pipeline.quality.retrieval import Search, measure
from pipeline.scan.block import Block
from pipeline.search.search import QUESTION, SCORE, Searcher

_ROWS = 8192  # of a block that are quantised at a time


def evaluate(
    table: str | Path,
    *,
    queries: str | Path,
    judgements: str | Path,
    version: int | None = None,
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
        dims: Numbers of dimensions to try.
        precisions: Types of numbers to try, of "float32", "float16", "bfloat16", "int8" and "binary".
        out: A folder for the result and the values of each query.

    Raises:
        ConfigError: there is no table, or a file or a column does not exist.
        DataError: queries and judgements do not fit each other or the table.
        StorageError: the store refused or failed.
    """
    judged = read_judged(str(queries), str(judgements), options=("queries", "judgements"))
    evaluated = evaluate_tables([Searcher(table, version=version)], judged, dims=dims, precisions=precisions)
    result = evaluated.result()
    if out is not None:
        evaluated.write(str(out), result)
    return result


def evaluate_tables(
    searchers: Sequence[Searcher],
    judged: Judged,
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
) -> Evaluated:
    """Measure tables or versions by the same judged queries, the first of which the others are compared with.

    Args:
        searchers: The tables; one only if a ladder is asked for.
        judged: The queries.
        dims: Numbers of dimensions of a ladder.
        precisions: Types of numbers of a ladder.

    Raises:
        ConfigError: a ladder of several tables, or of vectors that it cannot cut.
        DataError: a table has no judged document, or the vector of a query cannot be computed.
        StorageError: the store refused or failed.
    """
    steps = [_steps(searcher, dims, precisions) for searcher in searchers]
    if len(searchers) > 1 and any(steps):
        raise ConfigError("--dims and --precision are for one table, and --against is for two; ask one after the other")
    measured, notes, texts = [], list(judged.notes), [*judged.queries.values()]
    for searcher, ladder in zip(searchers, steps, strict=True):
        name = f"{searcher.url}, version {searcher.version}"
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
    of = " and ".join(f"{searcher.url}, version {searcher.version}" for searcher in searchers)
    return Evaluated("retrieval", of, MAIN, [*judged.queries], measured, tuple(notes))


def late(searcher: Searcher, texts: Sequence[str]) -> Search:
    """Return a search by late interaction, whose queries are the numbers of texts."""
    from pipeline.scan.top_k import QUERY
    from pipeline.scan.top_k import SCORE as OF_SCAN

    def search(numbers: pa.Array, k: int) -> pa.Table:
        found = searcher.search_table([texts[number] for number in numbers.to_pylist()], k=k, late=True)
        return found.select([QUESTION, SCORE, ID]).rename_columns([QUERY, OF_SCAN, ID])

    return search


def _steps(searcher: Searcher, dims: Sequence[int] | None, precisions: Sequence[str] | None) -> tuple[Rung, ...]:
    column = searcher.scan.dense
    if column is not None and column.normalized:
        return rungs(column.dim, dims, precisions)
    if dims is not None or precisions is not None:
        raise ConfigError(
            f"--dims and --precision compare cosines of one vector a row, which {searcher.url!r} does not have; leave them out"
        )
    return ()


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
