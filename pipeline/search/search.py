"""Exact top-k search over a version of a table, with the model of the table's embedding spec.

Called by `jobs search` and by users of the library. It compares every vector, without an index or approximation, in one
pass for many questions (`pipeline.scan`). Vectors are read from a cache on the local disk, which the first search fills.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.arguments import need_place, need_whole
from actors.encoders.finite import UnfitVectors
from actors.encoders.spec import ModelSpec, describe
from actors.errors import ConfigError, DataError, ModelError, TableConflict
from actors.quantities import parse_bytes
from actors.schema import HASH, ID
from actors.vectors import VectorColumn, dense
from pipeline.job import fingerprint
from pipeline.job.encoder import Encoder as EncoderSection
from pipeline.scan import DEFAULT_CACHE_SIZE
from pipeline.scan.table_scan import TableScan
from pipeline.scan.vector_cache import VectorCache, default_folder
from pipeline.search.sql_filter import parse_where
from pipeline.table import delta_table

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

_QUERIES = 4096  # questions of one pass over the table


# A question: a text, or the bytes of a picture's file.
Question = str | bytes

# Columns of `search_table`, beside those of the table. They may clash with no stored column.
QUESTION, RANK, SCORE = "_question", "_rank", "_score"


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of a search result.

    Attributes:
        score: Cosine of query and row, -1 to 1.
        columns: The other stored columns of the row, without its vector.
    """

    id: str
    score: float
    columns: dict[str, Any]


def query_model(
    embedding_spec: delta_table.EmbeddingSpec, url: str, *, model: str | None = None, adapter: str | None = None
) -> ModelSpec:
    """Return the query side of the model that encoded a version. Adapters for rows of other tasks are not needed.

    Args:
        embedding_spec: Embedding spec of the version.
        url: URL of the table, for messages.
        model: Location of the weights, if they have moved since the job; they must be the same weights.
        adapter: Location of the adapter of the table's task, if it has moved; it must be the same one.

    Raises:
        ConfigError: the table's task has no adapter.
        ModelError: the model cannot be found, or is another one.
    """
    settings = EncoderSection.model_validate(embedding_spec.encoder).settings()
    adapters = {
        name: replace(each, path=adapter or each.path)
        for name, each in settings.adapters.items()
        if settings.task in each.prompts(name)
    }
    if adapter is not None and not adapters:
        tasks = f"; its rows name their tasks, {', '.join(settings.adapters)} among them" if settings.adapters else ""
        raise ConfigError(
            f"--adapter {adapter!r}: a search of {url!r} encodes questions for the task {settings.task!r}, which has no added "
            f"adapter{tasks}. Leave --adapter out"
        )
    if model is not None:
        settings = replace(settings, model=model, revision=None)
    try:
        spec = describe(replace(settings, adapters=adapters))
    except ModelError as error:
        if "directory on this machine" not in str(error):
            raise
        option = "--adapter" if str(error).startswith("adapter ") else "--model"
        raise ModelError(f"{error} If it has moved, give its new place with {option}.") from None
    # The settings of pictures are compared only where the table has some.
    lineage = (spec.seeing() if embedding_spec.lineage.get("modality") == "page" else spec).lineage()
    table_lineage = {key: value for key, value in embedding_spec.lineage.items() if key in lineage}
    if fingerprint.fingerprint(lineage) != fingerprint.fingerprint(table_lineage):
        different = [
            key for key in lineage if lineage[key] != table_lineage.get(key) and key not in ("model", "revision")
        ]
        what, option, place = "model", "--model", spec.model
        if different == ["adapter_sha256"]:
            what, option, place = "adapter", "--adapter", spec.adapters[0].path
        raise ModelError(
            f"{place!r} is not the {what} that encoded {url!r} ({', '.join(different)} differ); give the right one with {option}"
        )
    return spec.query_side()


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
        model = _QueryModel(
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

    def search(self, questions: Sequence[Question], *, k: int = 10, where: str | None = None) -> list[list[Hit]]:
        """Return the `k` rows nearest to each question, best first.

        Args:
            questions: Texts, and pictures as the bytes of their files where the model sees; any number.
            k: Hits per question, at least 1.
            where: An SQL condition on the stored columns, such as `lang = 'de' AND tokens > 10`.

        Raises:
            ConfigError: a question, `k` or `where` is invalid.
            DataError: the vector of a question is not finite or all zeros.
            StorageError: the store refused or failed.
        """
        found = self.search_table(questions, k=k, where=where)
        hits: list[list[Hit]] = [[] for _ in questions]
        for row in found.to_pylist():
            question, score, row_id = row.pop(QUESTION), row.pop(SCORE), row.pop(ID)
            del row[RANK]
            hits[question].append(Hit(row_id, score, row))
        return hits

    def search_table(
        self,
        questions: Sequence[Question],
        *,
        k: int = 10,
        where: str | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> pa.Table:
        """Return the `k` rows nearest to each question as a table.

        Args:
            questions: As for `search`.
            k: Hits per question, at least 1.
            where: An SQL condition on the stored columns.
            report: Called with the rows that are scanned and the rows to scan, of all passes together.

        Returns:
            Columns `QUESTION` (int64, index of the question), `RANK` (int64, from 1), `SCORE` (float32, the cosine), and
            the stored columns without vector and content hash; sorted by question and rank.

        Raises:
            ConfigError: a question, `k` or `where` is invalid.
            DataError: the vector of a question is not finite or all zeros.
            StorageError: the store refused or failed.
        """
        k = need_whole(k, "k", least=1)
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
        condition = None if where is None else parse_where(where, snapshot.scan.schema)
        passes = [questions[start : start + _QUERIES] for start in range(0, len(questions), _QUERIES)]
        total, scanned = snapshot.scan.rows * len(passes), 0
        results = []

        def add(rows: int) -> None:
            nonlocal scanned
            scanned += rows
            if report is not None:
                report(scanned, total)

        for number, part in enumerate(passes):
            queries = snapshot.model.encode(part)
            best = self._nearest(snapshot, queries, k, condition=condition, report=add)
            results.append(_as_hits(best, number * _QUERIES))
        return pa.concat_tables(results) if results else _as_hits(snapshot.no_hits(), 0)

    def encode(self, questions: Sequence[Question]) -> pa.Array:
        """Return the vectors of questions, for `nearest`; see `search` for errors."""
        return self._snapshot.model.encode(questions)

    def nearest(self, queries: pa.Array, k: int) -> pa.Table:
        """Return the ids of the `k` rows nearest to each query vector, as `top_k.nearest` does."""
        return self._nearest(self._snapshot, queries, k, columns=(ID,))

    def _nearest(
        self,
        snapshot: _Snapshot,
        queries: pa.Array,
        k: int,
        *,
        condition: pc.Expression | None = None,
        columns: tuple[str, ...] | None = None,
        report: Callable[[int], None] = lambda _: None,
    ) -> pa.Table:
        if self._address is not None:
            from pipeline.scan.on_ray import ScanSettings, nearest_on_ray  # importing ray takes seconds

            settings = ScanSettings(
                self.url, snapshot.version, snapshot.outputs, k, condition, columns, self._cache_bytes
            )
            best = nearest_on_ray(settings, queries, self._address)
        else:
            best = snapshot.scan.nearest(
                queries, k, condition=condition, columns=columns, device=self._device, report=report
            )
        return best if best.num_rows else snapshot.no_hits()


class _QueryModel:
    """The model for queries, loaded at first use; its vision tower at the first picture."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        self.spec = spec
        self._device = device
        self._lock = Lock()
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        with self._lock:  # two threads that search at once load it once
            if self._encoder is None:
                from actors.encoders import load_encoder

                self._encoder = load_encoder(self.spec, device=self._device)
            return self._encoder

    def encode(self, questions: Sequence[Question]) -> pa.Array:
        """Return the vectors of questions, as the first output of the model.

        Raises:
            ConfigError: a question is a picture, and the model takes texts only.
            DataError: a picture cannot be decoded, or the vector of a question is not finite or all zeros.
        """
        numbers = sorted(range(len(questions)), key=lambda number: isinstance(questions[number], bytes))  # texts first
        texts = [question for question in questions if isinstance(question, str)]
        pictures = [question for question in questions if isinstance(question, bytes)]
        kind = self.spec.outputs[0].type
        parts = [pa.array([], kind)]
        try:
            if texts:
                parts.append(self.encoder.encode_queries(texts).cast(kind))
            if pictures:
                parts.append(dense(self._encode_pictures(pictures)).cast(kind))
        except UnfitVectors as error:
            number, reason = next(iter(error.reasons.items()))
            shown = repr(texts[number]) if len(parts) == 1 and texts else f"of {len(pictures[number]):,} bytes"
            raise DataError(f"the question {shown} cannot be encoded: {reason}") from None
        return pa.concat_arrays(parts).take(pa.array(np.argsort(numbers)))

    def _encode_pictures(self, pictures: list[bytes]) -> npt.NDArray[np.float32]:
        if self.spec.pictures is None:
            raise ConfigError(
                f"the question is a picture, and the table's model {self.spec.model} takes texts only; ask with a text"
            )
        encoder = self.encoder
        with self._lock:  # of two threads, only one loads the vision tower
            return encoder.encode_images(pictures)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One version of a table, open for searches."""

    version: int
    lineage: dict[str, Any]
    outputs: tuple[VectorColumn, ...]
    model: _QueryModel
    scan: TableScan

    def no_hits(self) -> pa.Table:
        """Return an empty result of a scan."""
        from pipeline.scan.top_k import EMPTY

        return pa.schema([*EMPTY, *self.scan.schema]).empty_table()


def _as_hits(best: pa.Table, first: int) -> pa.Table:
    """Return a result of a scan with the columns of `search_table`; `first` is the index of its first question."""
    from pipeline.scan import top_k

    query = best[top_k.QUERY].to_numpy().astype(np.int64)
    rank = np.arange(len(query)) - np.searchsorted(query, query, side="left") + 1
    kept = best.drop_columns([top_k.QUERY, top_k.SCORE, top_k.PLACE, HASH])
    names = [QUESTION, RANK, SCORE, *kept.column_names]
    return pa.Table.from_arrays([pa.array(query + first), pa.array(rank), best[top_k.SCORE], *kept.columns], names)
