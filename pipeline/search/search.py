"""Exact top-k search over a version of a table, with the model of the table's embedding spec.

Called by `jobs search` and by users of the library. It compares every vector, without an index or approximation, in one
pass for many questions (`pipeline.scan`). Vectors are read from a cache on the local disk, which the first search fills.
Late interaction compares the many vectors of the rows that are nearest by their dense vectors, or of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.arguments import need_flag, need_place, need_whole
from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError, TableConflict
from actors.quantities import parse_bytes
from actors.schema import HASH, ID
from actors.vectors import Kind, VectorColumn
from pipeline.scan import DEFAULT_CACHE_SIZE
from pipeline.scan.table_scan import TableScan
from pipeline.scan.vector_cache import VectorCache, default_folder
from pipeline.search.candidates import Candidates, count_candidates
from pipeline.search.query_model import QueryModel, Question, query_model
from pipeline.search.sql_filter import parse_where
from pipeline.table import delta_table

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

_QUERIES = 4096  # questions of one pass over the table

# Columns of `search_table`, beside those of the table. They may clash with no stored column. `MEAN` is for late interaction.
QUESTION, RANK, SCORE, MEAN = "_question", "_rank", "_score", "_mean_score"


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of a search result.

    Attributes:
        score: Cosine of query and row, -1 to 1. With late interaction the sum, over the vectors of the query, of the largest
            cosine with one of the row's: compare it only with scores of the same question.
        columns: The other stored columns of the row, without its vectors.
    """

    id: str
    score: float
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LateHit(Hit):
    """A hit of late interaction.

    Attributes:
        mean_score: The score divided by the number of the query's vectors, -1 to 1.
    """

    mean_score: float


class Searcher:
    """Searches a table with the model that encoded it; keeps table, model and cache open.

    Several threads may search at the same time.

    Args:
        table: URL of the table's folder.
        version: Version to search; None: the current one.
        model: Location of the weights, if they have moved since the job; they must be the same weights.
        adapter: Location of the adapter of the table's task, if it has moved; it must be the same one.
        device: "cpu", "cuda" or "auto".
        cache_size: Limit of the local cache of vectors, as in "20GiB"; None: no cache, each search reads the files.
        address: Ray cluster that scans the table, as in `run.address`; None: this process.

    Attributes:
        url: Absolute URL of the table.

    Raises:
        ConfigError: there is no table, or `cache_size` is not a size.
        TableConflict: vectide did not create the table.
        ModelError: the model cannot be found, or is not the one that encoded the table.
    """

    def __init__(
        self,
        table: str | Path,
        *,
        version: int | None = None,
        model: str | Path | None = None,
        adapter: str | Path | None = None,
        device: str = "auto",
        cache_size: str | int | None = DEFAULT_CACHE_SIZE,
        address: str | None = None,
    ) -> None:
        self.url = storage.absolute(need_place(table, "table"))
        version = None if version is None else need_whole(version, "version")
        self._fixed = version is not None
        self._model = None if model is None else need_place(model, "model")
        self._adapter = None if adapter is None else need_place(adapter, "adapter")
        self._device = device
        self._address = address
        self._cache_bytes = None if cache_size is None else parse_bytes(cache_size, option="the cache size")
        self._cache = None if self._cache_bytes is None else VectorCache(default_folder(), self._cache_bytes)
        self._snapshot = self._open(version)

    def _open(self, version: int | None, before: _Snapshot | None = None) -> _Snapshot:
        """Open a version; the model of the version before is used again if it is the same."""
        table = delta_table.need_table(self.url, version)
        embedding_spec = delta_table.embedding_spec_of(table)
        if embedding_spec is None:
            raise TableConflict(f"{self.url!r} is a Delta table that vectide did not make: it has no embedding spec")
        model = QueryModel(
            query_model(embedding_spec, self.url, model=self._model, adapter=self._adapter), self._device
        )
        if before is not None and before.model.spec == model.spec:
            model = before.model
        scan = TableScan(table, embedding_spec.outputs, self._cache)
        return _Snapshot(int(table.version()), embedding_spec.lineage, embedding_spec.outputs, model, scan)

    @property
    def version(self) -> int:
        """The version that is searched."""
        return self._snapshot.version

    @property
    def lineage(self) -> dict[str, Any]:
        """Model and settings that made the vectors of the version, by name."""
        return self._snapshot.lineage

    @property
    def scan(self) -> TableScan:
        """The scan of the version's vectors."""
        return self._snapshot.scan

    @property
    def spec(self) -> ModelSpec:
        """The query side of the version's model."""
        return self._snapshot.model.spec

    @property
    def encoder(self) -> Encoder:
        """The model for queries of the table's task, loaded at first use."""
        return self._snapshot.model.encoder

    @property
    def cache_problem(self) -> str | None:
        """Why the local cache is not used or not for all files; None if it is."""
        return None if self._cache is None else self._cache.problem

    def refresh(self) -> bool:
        """Search the newest version of the table from now on; return True if there is a newer one.

        Searches that run at the same time end on the version that they started with. A searcher of a fixed version stays
        on it.
        """
        before = self._snapshot
        if self._fixed or int(delta_table.need_table(self.url).version()) == before.version:
            return False
        self._snapshot = self._open(None, before)
        return True

    def search(
        self,
        questions: Sequence[Question],
        *,
        k: int = 10,
        where: str | None = None,
        late: bool = False,
        candidates: Candidates = None,
    ) -> list[list[Hit]]:
        """Return the `k` rows nearest to each question, best first; with late interaction they are `LateHit`.

        Args:
            questions: Texts, and pictures as the bytes of their files where the model sees; any number.
            k: Hits per question, at least 1.
            where: An SQL condition on the stored columns, such as `lang = 'de' AND tokens > 10`.
            late: Score by late interaction, for a table with many vectors a row.
            candidates: With `late`, how many rows nearest by the dense vectors are scored, or "all". None: 200, or ten for
                each hit if these are more; all if the table has no dense vectors.

        Raises:
            ConfigError: a question or an option is invalid, or the table lacks the vectors.
            DataError: the vector of a question is not finite or all zeros.
            StorageError: the store refused or failed.
        """
        found = self.search_table(questions, k=k, where=where, late=late, candidates=candidates)
        hits: list[list[Hit]] = [[] for _ in questions]
        for row in found.to_pylist():
            question, score, row_id, mean = row.pop(QUESTION), row.pop(SCORE), row.pop(ID), row.pop(MEAN, None)
            del row[RANK]
            hits[question].append(LateHit(row_id, score, row, mean) if late else Hit(row_id, score, row))
        return hits

    def search_table(
        self,
        questions: Sequence[Question],
        *,
        k: int = 10,
        where: str | None = None,
        late: bool = False,
        candidates: Candidates = None,
        report: Callable[[int, int], None] | None = None,
    ) -> pa.Table:
        """Return the `k` rows nearest to each question as a table.

        Args:
            questions: As for `search`.
            k: Hits per question, at least 1.
            where: An SQL condition on the stored columns.
            late: As for `search`.
            candidates: As for `search`.
            report: Called with the rows that are scanned and the rows to scan, of all passes together.

        Returns:
            Columns `QUESTION` (int64, index of the question), `RANK` (int64, from 1), `SCORE` (float32, as in `Hit`), with
            `late` also `MEAN` (float32), and the stored columns without vectors and content hash; sorted by question and rank.

        Raises:
            ConfigError: a question or an option is invalid, or the table lacks the vectors.
            DataError: the vector of a question is not finite or all zeros.
            StorageError: the store refused or failed.
        """
        k, late = need_whole(k, "k", least=1), need_flag(late, "late")
        if isinstance(questions, str | bytes) or not hasattr(questions, "__len__"):
            raise ConfigError(f"questions is {questions!r}; it must be a list of texts")
        if where is not None and not isinstance(where, str):
            raise ConfigError(f"where is {where!r}; it must be an SQL condition as a text")
        for question in questions:
            if not isinstance(question, str | bytes):
                raise ConfigError(f"the question {question!r} is neither a text nor the bytes of a picture")
            if isinstance(question, str) and not question.strip():
                raise ConfigError(f"the question {question!r} is empty or only white space; give it some text")
        snapshot = self._snapshot  # `refresh` may replace it at any time
        number = count_candidates(snapshot.scan, self.url, k, late=late, candidates=candidates)
        condition = None if where is None else parse_where(where, snapshot.scan.schema)
        passes = [questions[start : start + _QUERIES] for start in range(0, len(questions), _QUERIES)]
        total, scanned = snapshot.scan.rows * len(passes), 0
        results = []

        def add(rows: int) -> None:
            nonlocal scanned
            scanned += rows
            if report is not None:
                report(scanned, total)

        asked = _Asked(k, late, number, condition, add)
        for start, part in enumerate(passes):
            vectors = snapshot.model.encode(part, asked.kinds)
            best = self._best(snapshot, vectors, asked)
            counts = pc.list_value_length(vectors["multi"]).to_numpy() if late else None
            results.append(_as_hits(best if best.num_rows else snapshot.no_hits(), start * _QUERIES, counts))
        return pa.concat_tables(results) if results else _as_hits(snapshot.no_hits(), 0, np.ones(0) if late else None)

    def encode(self, questions: Sequence[Question]) -> pa.Array:
        """Return the dense vectors of questions, for `nearest`; see `search` for errors."""
        return self._snapshot.model.encode(questions, ("dense",))["dense"]

    def nearest(self, queries: pa.Array, k: int) -> pa.Table:
        """Return the ids of the `k` rows nearest to each dense query vector, as `top_k.nearest` does."""
        snapshot = self._snapshot
        best = self._scan(snapshot, "dense", {"dense": queries}, k, _Asked(k, columns=(ID,)))
        return best if best.num_rows else snapshot.no_hits()

    def _best(self, snapshot: _Snapshot, vectors: Mapping[Kind, pa.Array], asked: _Asked) -> pa.Table:
        """Return the best rows of each question."""
        if not asked.late or asked.candidates is None:
            return self._scan(snapshot, asked.kinds[0], vectors, asked.k, asked)
        found = self._scan(snapshot, "dense", vectors, asked.candidates, asked)
        return snapshot.scan.nearest_late(vectors["multi"], asked.k, candidates=found)

    def _scan(
        self, snapshot: _Snapshot, kind: Kind, vectors: Mapping[Kind, pa.Array], k: int, asked: _Asked
    ) -> pa.Table:
        """Return the `k` best rows of each question among all that meet the condition, by one kind of vectors."""
        queries, late = vectors[kind], kind == "multi"
        if self._address is not None:
            from pipeline.scan.on_ray import ScanSettings, nearest_on_ray  # importing ray takes seconds

            settings = ScanSettings(
                self.url,
                snapshot.version,
                snapshot.outputs,
                k,
                late,
                asked.condition,
                asked.columns,
                self._cache_bytes,
            )
            return nearest_on_ray(settings, queries, self._address)
        if late:
            return snapshot.scan.nearest_late(queries, k, condition=asked.condition, report=asked.report)
        return snapshot.scan.nearest(
            queries,
            k,
            condition=asked.condition,
            columns=asked.columns,
            device=self._device,
            report=asked.report,
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the caller of a search wants.

    Attributes:
        candidates: Rows nearest by the dense vectors that late interaction scores; None: all rows.
        columns: Columns to return; None: all but the vectors.
    """

    k: int
    late: bool = False
    candidates: int | None = None
    condition: pc.Expression | None = None
    report: Callable[[int], None] = lambda _: None
    columns: tuple[str, ...] | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that are compared."""
        if not self.late:
            return ("dense",)
        return ("multi",) if self.candidates is None else ("dense", "multi")


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One version of a table, open for searches."""

    version: int
    lineage: dict[str, Any]
    outputs: tuple[VectorColumn, ...]
    model: QueryModel
    scan: TableScan

    def no_hits(self) -> pa.Table:
        """Return an empty result of a scan."""
        from pipeline.scan.top_k import EMPTY

        return pa.schema([*EMPTY, *self.scan.schema]).empty_table()


def _as_hits(best: pa.Table, first: int, counts: npt.NDArray[np.generic] | None) -> pa.Table:
    """Return a result of a scan with the columns of `search_table`.

    Args:
        best: The result.
        first: Index of its first question.
        counts: Vectors of each question, for late interaction.
    """
    from pipeline.scan import top_k

    query = best[top_k.QUERY].to_numpy().astype(np.int64)
    kept = best.drop_columns([top_k.QUERY, top_k.SCORE, top_k.PLACE, HASH])
    own = {QUESTION: pa.array(query + first), RANK: pa.array(top_k.ranks(query)), SCORE: best[top_k.SCORE]}
    if counts is not None:
        own[MEAN] = pa.array((best[top_k.SCORE].to_numpy() / counts[query]).astype(np.float32))
    return pa.Table.from_arrays([*own.values(), *kept.columns], [*own, *kept.column_names])
