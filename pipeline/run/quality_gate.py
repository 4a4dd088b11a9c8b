"""Quality gate of a re-embedding: compares it with the current version before it is published.

Called by `reembed` when every unit has a receipt and before the commit. It computes two metrics (`pipeline.quality`), each
only if the job asks for it:

- Agreement: the mean share of the `NEIGHBOURS` nearest documents that the two versions have in common, over a sample of
  documents, within a pool of `POOL` documents. The pool is chosen by the hash of the ids, so a repeat measures the same.
  It needs no model and no judgements. The trade-off: it measures the difference between the two, and not which is better.
- nDCG@10 of judged queries, on both versions, with the paired bootstrap of their difference.

With `generation.late` both are measured by late interaction. A document is then a query of hundreds of vectors, so the
sample and the pool are smaller; judged queries score the rows nearest by the dense vectors, or all if there are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from actors.errors import ConfigError, GateClosed
from actors.schema import CHUNK, ID
from actors.unit.row_hashes import hash_strings
from actors.unit.table_files import read_stored
from actors.vectors import VectorColumn
from pipeline.job import config
from pipeline.quality import judged as judged_files
from pipeline.quality.bootstrap import mean_difference
from pipeline.quality.judged import Judged
from pipeline.quality.metrics import MAIN, mean_overlap
from pipeline.quality.retrieval import measure
from pipeline.scan import FILE_BITS
from pipeline.scan.neighbours import nearest_rows
from pipeline.scan.vector_cache import decoded
from pipeline.search.query_model import QueryModel, query_model
from pipeline.table import delta_table
from pipeline.table.commit import Publication

if TYPE_CHECKING:
    from pipeline.scan import maxsim

NEIGHBOURS = 10
POOL, LATE_POOL = 20_000, 1_000
SAMPLE, LATE_SAMPLE = 500, 50
K = 10
CANDIDATES = 200  # of a judged query, with late interaction


def read_judged(settings: config.Generation) -> Judged | None:
    """Read the queries and judgements that a job names; None if it names none.

    Called before anything is encoded, so that a wrong file costs nothing.

    Raises:
        ConfigError, DataError: see `pipeline.quality.judged.read_judged`.
    """
    if settings.queries is None or settings.judgements is None:
        return None
    options = ("generation.queries", "generation.judgements")
    return judged_files.read_judged(settings.queries, settings.judgements, options=options)


def check_late(url: str, version: DeltaTable, outputs: Sequence[VectorColumn]) -> None:
    """Check that late interaction can compare the current version with a re-embedding that has some outputs.

    Raises:
        ConfigError: one of the two has one vector a row.
    """
    embedding_spec = delta_table.embedding_spec_of(version)
    for side, columns in (
        (f"version {version.version()} of {url!r}", embedding_spec.outputs if embedding_spec else ()),
        ("the re-embedding", outputs),
    ):
        if all(column.kind == "dense" for column in columns):
            raise ConfigError(
                f"generation.late (--late) compares by late interaction, and {side} has one vector a row; leave it out"
            )


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two versions to compare.

    Attributes:
        paths: Paths of its files, relative to the table.
        chunked: True if a document may have several rows.
    """

    embedding_spec: delta_table.EmbeddingSpec
    paths: tuple[str, ...]
    chunked: bool

    def column(self, *, late: bool) -> VectorColumn:
        """Return the column that is compared."""
        outputs = self.embedding_spec.outputs
        return next(output for output in outputs if output.kind == "multi") if late else outputs[0]


class Gate:
    """Compares the current version of a table with a re-embedding of it.

    Args:
        url: URL of the table.
        version: The current version.
        publication: Planned commit of the re-embedding.
        late: Compare by late interaction; see `check_late`.
    """

    def __init__(self, url: str, version: DeltaTable, publication: Publication, *, late: bool = False) -> None:
        embedding_spec = delta_table.embedding_spec_of(version)
        self._url, self._version, self._late = url, version, late
        self._pool, self._sample = (LATE_POOL, LATE_SAMPLE) if late else (POOL, SAMPLE)
        self._readers = f"readers stay on version {version.version()}"
        names = delta_table.schema_of(version).names
        self._old = _Side(
            embedding_spec or publication.embedding_spec, tuple(sorted(delta_table.file_sizes(version))), CHUNK in names
        )
        paths = tuple(sorted(file.path for file in publication.add))
        self._new = _Side(publication.embedding_spec, paths, CHUNK in publication.schema.names)

    def check(self, settings: config.Generation, judged: Judged | None) -> tuple[tuple[str, ...], dict[str, float]]:
        """Return a sentence for each metric that was computed, and its numbers by name.

        Args:
            settings: Section `generation` of the job.
            judged: Result of `read_judged`.

        Raises:
            GateClosed: a metric is below the limit of the job.
        """
        sentences: list[str] = []
        figures: dict[str, float] = {}
        if settings.min_agreement is not None:
            share, neighbours, documents = self.agreement()
            figures |= {"agreement": share, "neighbours": neighbours, "documents": documents}
            sentences.append(
                f"agreement of {neighbours} neighbours {share:.3f} on {documents} documents"
                if neighbours
                else f"no agreement of neighbours, because there are {documents} documents"
            )
            if share < settings.min_agreement:
                raise GateClosed(
                    f"the re-embedding agrees with the old one on {share:.3f} of the {neighbours} nearest neighbours of "
                    f"{documents} sampled documents, less than generation.min_agreement = {settings.min_agreement:g}. "
                    f"Nothing was published and {self._readers}; the vectors are kept. Compare both, then run the same "
                    f"command with a lower limit, or restore the old settings",
                    figures,
                )
        if judged is not None:
            old, new = self.ndcg(judged)
            before, after, queries = old.mean(), new.mean(), len(judged.queries)
            real = mean_difference(new, old)
            figures |= {"ndcg_at_10": float(after), "ndcg_at_10_before": float(before), "queries": queries}
            figures |= {"difference": real.value, "difference_low": real.low, "difference_high": real.high, "p": real.p}
            compared = (
                f"difference {real.value:+.4f}, 95 % interval {real.low:+.4f} to {real.high:+.4f}, p {real.p:.4f} by paired "
                f"bootstrap"
            )
            sentences.append(f"{MAIN} {after:.4f} after {before:.4f} on {queries} queries ({compared})")
            if after < before - settings.max_ndcg_drop:
                raise GateClosed(
                    f"the {MAIN} of the re-embedding is {after:.4f} on {queries} queries, and that of the current version "
                    f"{before:.4f} ({compared}): the drop is more than generation.max_ndcg_drop = "
                    f"{settings.max_ndcg_drop:g}. Nothing was published and {self._readers}; the vectors are kept. Raise "
                    f"that limit, or restore the old settings",
                    figures,
                )
        return tuple(sentences), figures

    def agreement(self) -> tuple[float, int, int]:
        """Return the mean share of common neighbours, 0 to 1, their number for a document, and that of sampled documents.

        Neighbours are at most half of the other documents, because all others would agree in any case. Fewer than three
        documents have none.
        """
        pool = np.intersect1d(self._smallest(self._old), self._smallest(self._new))
        old_ids, old = self._pooled(self._old, pool)
        new_ids, new = self._pooled(self._new, pool)
        common, old_rows, new_rows = np.intersect1d(old_ids, new_ids, return_indices=True)
        count = min(NEIGHBOURS, (len(common) - 1) // 2)
        if count < 1:
            return 1.0, 0, len(common)
        sample = np.arange(len(common))[: self._sample]
        first, second = (
            nearest_rows(self._scores(side, vectors.take(pa.array(rows)), sample), sample, count)
            for side, vectors, rows in ((self._old, old, old_rows), (self._new, new, new_rows))
        )
        return mean_overlap(first, second), count, len(sample)

    def _smallest(self, side: _Side) -> npt.NDArray[np.uint64]:
        """Return the smallest hashes of the ids of a version, sorted."""
        smallest: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        for rows in self._documents(side, [ID]):
            smallest = np.union1d(smallest, hash_strings(rows[ID]))[: self._pool]
        return smallest

    def _scores(self, side: _Side, vectors: pa.Array, sample: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the scores of sampled documents with all, float32 [sample, documents]."""
        column = side.column(late=self._late)
        if self._late:
            from pipeline.scan.maxsim import LateQueries

            return LateQueries(vectors.take(pa.array(sample)), column).scores(vectors)
        unit = column.unit_rows(vectors)
        scores: npt.NDArray[np.float32] = unit[sample] @ unit.T
        return scores

    def _pooled(self, side: _Side, pool: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], pa.Array]:
        """Return the hashes of the ids of a version that are in the pool, uint64 [n], and their stored vectors."""
        column = side.column(late=self._late)
        id_hashes, vectors = [np.zeros(0, dtype=np.uint64)], [pa.array([], column.type)]
        for rows in self._documents(side, [ID], column):
            hashes = hash_strings(rows[ID])
            wanted = np.isin(hashes, pool)
            if wanted.any():
                taken = rows[column.name].filter(pa.array(wanted)).combine_chunks()
                fit = np.isfinite(column.unit_rows(taken)).all(axis=1)  # rows of another tool may have no vector
                id_hashes.append(hashes[wanted][fit])
                vectors.append(taken.filter(pa.array(fit)))
        return np.concatenate(id_hashes), pa.concat_arrays(vectors)

    def _documents(self, side: _Side, names: list[str], *vectors: VectorColumn) -> Iterator[pa.Table]:
        """Yield the rows of a version file by file; of each document only the first row."""
        for path in side.paths:
            rows = read_stored(self._url, path, [*names, CHUNK] if side.chunked else names, vectors)
            yield rows.filter(pc.equal(rows[CHUNK], 0)) if side.chunked else rows

    def ndcg(self, judged: Judged) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return nDCG@10 of each query, float64 [queries], on the current version and on the re-embedding.

        Raises:
            DataError: one of the two has none of the judged documents.
        """
        return self._ndcg(self._old, judged), self._ndcg(self._new, judged)

    def _ndcg(self, side: _Side, judged: Judged) -> npt.NDArray[np.float64]:
        judged.count_present(rows[ID] for rows in self._documents(side, [ID]))
        kinds = {side.column(late=self._late).kind, side.embedding_spec.outputs[0].kind}  # dense ones come first
        model = QueryModel(query_model(side.embedding_spec, self._url), "auto")
        encoded = model.encode([*judged.queries.values()], [*kinds])
        queries = pa.StructArray.from_arrays([*encoded.values()], [*encoded])
        return measure(judged, queries, partial(self._nearest, side), depth=K)[MAIN]

    def _nearest(self, side: _Side, queries: pa.StructArray, k: int) -> pa.Table:
        """Return the `k` nearest rows of queries, whose fields are the kinds of vectors to compare."""
        from pipeline.scan import maxsim, top_k  # importing torch takes seconds
        from pipeline.scan.products import Queries
        from pipeline.scan.row_groups import RowGroups

        column, first = side.column(late=self._late), side.embedding_spec.outputs[0]
        if first.kind == "multi":
            parts: Iterable[maxsim.Rows] = self._late_rows(side, first)
        else:
            blocks = (
                block
                for place, batches in self._batches(side, first, 16_384)
                for block in decoded(lambda batches=batches: batches, first, place)  # type: ignore[misc]
            )
            vectors = Queries(first.matrix(queries.field("dense")))
            found = top_k.nearest(vectors, blocks, max(k, CANDIDATES) if self._late else k)
            if not self._late:
                return found
            filesystem, file_format = self._version.to_pyarrow_dataset().filesystem, ds.ParquetFileFormat()
            fragments = [file_format.make_fragment(path, filesystem) for path in side.paths]
            schema = pa.schema([(column.name, column.type)])
            parts = RowGroups(fragments, schema, column, None, None).rows_of(found, len(queries))
        return maxsim.nearest(maxsim.LateQueries(queries.field("multi"), column), parts, k)

    def _late_rows(self, side: _Side, column: VectorColumn) -> Iterator[maxsim.Rows]:
        from pipeline.scan.maxsim import Rows

        for place, batches in self._batches(side, column, 256):
            for batch in batches:
                rows = batch.drop_columns([column.name])
                yield Rows(rows, np.full(batch.num_rows, place), batch.column(column.name))

    def _batches(self, side: _Side, column: VectorColumn, rows: int) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """Yield the ids and vectors of each file, in batches of so many rows, and the place of its first row in a scan."""
        for number, path in enumerate(side.paths):
            yield number << FILE_BITS, read_stored(self._url, path, [ID], [column]).to_batches(max_chunksize=rows)
