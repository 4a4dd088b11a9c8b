"""Whether a second generation may take over: it is compared with the version that readers are on.

Called by `generation` when every row is there and nothing is published yet. Two measures, each taken where the job asks:

- agreement: of `NEIGHBOURS` nearest documents of a sample of documents, the mean share that the two generations have in
  common, within a pool of `POOL` documents chosen by the hash of their ids, so that a repeat measures the same. No model
  and no judgement is needed. The trade-off: it says how different the two are, not which one is better.
- nDCG@10 of judged queries, asked of both. ir-measures computes it, as trec_eval does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from actors import storage
from actors.errors import ConfigError, DataError, GateClosed
from actors.schema import CHUNK, EMBEDDING, ID
from actors.unit.row_hashes import hash_strings
from actors.unit.table_files import read_stored
from pipeline.job import config
from pipeline.scan.top_k import TopK, unit_vectors
from pipeline.search.search import query_model
from pipeline.table import delta_table
from pipeline.table.commit import Publication

NEIGHBOURS = 10
POOL = 20_000
SAMPLE = 500
K = 10


@dataclass(frozen=True, slots=True)
class Judged:
    """Queries and what was judged of them.

    Attributes:
        queries: `id` and `text`.
        judgements: `query` and `doc`, and if graded `relevance`.
    """

    queries: pa.Table
    judgements: pa.Table


def read_judged(asked: config.Generation) -> Judged | None:
    """The queries that a job names, or None where it names none: to be read before anything is encoded for them.

    Raises:
        ConfigError: one of the two files is not there or lacks a column, or the extra `quality` is not installed.
        DataError: one is not Parquet.
    """
    if asked.queries is None or asked.judgements is None:
        return None
    if find_spec("ir_measures") is None:
        raise ConfigError("generation.queries needs the package ir-measures; install vectide with the extra `quality`")
    return Judged(
        _read(asked.queries, "generation.queries", ("id", "text")),
        _read(asked.judgements, "generation.judgements", ("query", "doc")),
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two generations.

    Attributes:
        paths: Its files, relative to the table.
        chunked: Whether a document has several rows.
    """

    embedding_spec: delta_table.EmbeddingSpec
    paths: tuple[str, ...]
    chunked: bool


class Gate:
    """The two generations of one table.

    Args:
        url: Of the table.
        version: The version that readers are on.
        publication: What is to take over.
    """

    def __init__(self, url: str, version: DeltaTable, publication: Publication) -> None:
        embedding_spec = delta_table.embedding_spec_of(version)
        self._url = url
        self._readers = f"readers stay on version {version.version()}"
        names = delta_table.schema_of(version).names
        self._old = _Side(
            embedding_spec or publication.embedding_spec, tuple(sorted(delta_table.file_sizes(version))), CHUNK in names
        )
        paths = tuple(sorted(file.path for file in publication.add))
        self._new = _Side(publication.embedding_spec, paths, CHUNK in publication.schema.names)

    def check(self, asked: config.Generation, judged: Judged | None) -> tuple[str, ...]:
        """What was measured, in words.

        Args:
            asked: What the job asks for.
            judged: As `read_judged` found it.

        Raises:
            GateClosed: less than the job asks.
        """
        found = []
        if asked.min_agreement is not None:
            share, documents = self.agreement()
            found.append(f"agreement of {NEIGHBOURS} neighbours {share:.3f} on {documents} documents")
            if share < asked.min_agreement:
                raise GateClosed(
                    f"the new generation agrees with the old one on {share:.3f} of the {NEIGHBOURS} nearest neighbours of "
                    f"{documents} sampled documents, less than generation.min_agreement = {asked.min_agreement:g}. "
                    f"Nothing was changed over and {self._readers}; what was built is kept. Look at both, then run the "
                    f"same command with a lower limit, or put the old settings back"
                )
        if judged is not None:
            old, new, queries = self.ndcg(judged)
            found.append(f"nDCG@{K} {new:.4f} after {old:.4f} on {queries} queries")
            if new < old - asked.max_ndcg_drop:
                raise GateClosed(
                    f"the new generation's nDCG@{K} is {new:.4f} on {queries} queries, and the old one's {old:.4f}: the "
                    f"drop is more than generation.max_ndcg_drop = {asked.max_ndcg_drop:g}. Nothing was changed over and "
                    f"{self._readers}; what was built is kept. Raise that limit, or put the old settings back"
                )
        return tuple(found)

    def agreement(self) -> tuple[float, int]:
        """Mean share of common neighbours, 0 to 1, and on how many documents it was taken."""
        pool = np.intersect1d(self._smallest(self._old), self._smallest(self._new))
        old_ids, old = self._pooled(self._old, pool)
        new_ids, new = self._pooled(self._new, pool)
        common, old_rows, new_rows = np.intersect1d(old_ids, new_ids, return_indices=True)
        count = min(NEIGHBOURS, len(common) - 1)
        if count < 1:
            return 1.0, len(common)
        sample = np.arange(len(common))[:SAMPLE]
        first = _neighbours(old[old_rows], sample, count)
        second = _neighbours(new[new_rows], sample, count)
        shares = [len(np.intersect1d(a, b)) / count for a, b in zip(first, second, strict=True)]
        return float(np.mean(shares)), len(sample)

    def _smallest(self, side: _Side) -> npt.NDArray[np.uint64]:
        """The `POOL` smallest hashes of its ids, sorted."""
        kept: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        for rows in self._documents(side, [ID]):
            kept = np.union1d(kept, hash_strings(rows[ID]))[:POOL]
        return kept

    def _pooled(
        self, side: _Side, pool: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]:
        """Hashes of the ids of the pool that this side has, uint64 [n], and their vectors, float32 [n, dim]."""
        names, vectors = [np.zeros(0, dtype=np.uint64)], []
        for rows in self._documents(side, [ID, EMBEDDING]):
            hashes = hash_strings(rows[ID])
            wanted = np.isin(hashes, pool)
            if wanted.any():
                taken = rows.filter(pa.array(wanted)).combine_chunks().to_batches()[0]
                found = unit_vectors(taken, int(side.embedding_spec.lineage["dim"]))
                fit = np.isfinite(found).all(axis=1)  # rows of another tool may have no vector
                names.append(hashes[wanted][fit])
                vectors.append(found[fit])
        return np.concatenate(names), np.concatenate(vectors) if vectors else np.zeros((0, 1), dtype=np.float32)

    def _documents(self, side: _Side, names: list[str]) -> Iterator[pa.Table]:
        """Its rows, of each document the first; file by file."""
        for path in side.paths:
            rows = read_stored(self._url, path, [*names, CHUNK] if side.chunked else names)
            yield rows.filter(pc.equal(rows[CHUNK], 0)) if side.chunked else rows

    def ndcg(self, judged: Judged) -> tuple[float, float, int]:
        """nDCG@10 of the old and of the new generation, and over how many queries."""
        import ir_measures

        asked = judged.queries
        qrels = [
            ir_measures.Qrel(str(row["query"]), str(row["doc"]), int(row.get("relevance", 1)))
            for row in judged.judgements.to_pylist()
        ]
        names = [str(name) for name in asked["id"].to_pylist()]
        scores = []
        for side in (self._old, self._new):
            run = [
                ir_measures.ScoredDoc(name, document, score)
                for name, hits in zip(names, self._search(side, asked["text"].to_pylist()), strict=True)
                for document, score in hits.items()
            ]
            measure = ir_measures.nDCG @ K
            scores.append(float(ir_measures.calc_aggregate([measure], qrels, run)[measure]))
        return scores[0], scores[1], len(names)

    def _search(self, side: _Side, questions: list[str]) -> Iterable[dict[str, float]]:
        """For each question the best documents with their scores; of several chunks of one the best counts."""
        from actors.encoders import load_encoder

        vectors = load_encoder(query_model(side.embedding_spec, self._url)).encode(questions)
        best = TopK(len(questions), K * 5 if side.chunked else K)
        for path in side.paths:
            for batch in read_stored(self._url, path, [ID, EMBEDDING]).to_batches(max_chunksize=16_384):
                best.add(vectors @ unit_vectors(batch, vectors.shape[1]).T, batch.drop_columns([EMBEDDING]))
        for rows in best.rows():
            documents: dict[str, float] = {}
            for score, row in rows:
                documents.setdefault(row[ID], score)
            yield dict(list(documents.items())[:K])


def _neighbours(vectors: npt.NDArray[np.float32], sample: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """int64 [sample, count]: rows nearest to each sampled one, without itself."""
    scores = vectors[sample] @ vectors.T
    scores[np.arange(len(sample)), sample] = -np.inf
    nearest: npt.NDArray[np.int64] = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return nearest


def _read(url: str, key: str, columns: tuple[str, ...]) -> pa.Table:
    """A small Parquet file that a job names."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read(storage.absolute(url))))
    except FileNotFoundError:
        raise ConfigError(f"{key} names {url!r}, which is not there") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{key}: {url!r} is not a Parquet file: {error}") from None
    if missing := [name for name in columns if name not in table.column_names]:
        raise ConfigError(f"{key}: {url!r} has no column {missing[0]!r}; it needs {' and '.join(columns)}")
    return table
