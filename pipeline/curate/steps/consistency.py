"""The step `consistency`: pairs whose passage is not among those nearest to the query are dropped.

The rank of a pair is the number of passages of a pool that score strictly higher with its query than its own passage. It is
counted, so copies and ties do no harm: copies of the own passage (after normalisation) do not count, and each distinct
passage is once in the pool. The pool is drawn by a hash of the row id: the same rows have the same pool, after any restart.

A sample of the pairs is shuffled, so that each query gets the passage of another pair. For each k, the shares of pairs and
of shuffled pairs with a rank of at least k are what a limit of k loses and what it finds. `top_k: auto` takes the k where
the share of good pairs lost is that of shuffled pairs missed (`Curve`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.errors import ConfigError
from pipeline.curate.database import insert, literal, stream
from pipeline.curate.embedding import EmbeddingStep, SideVectors, embed
from pipeline.curate.normalise import normalised
from pipeline.curate.steps.base import SEED, Decision, Seen, marks
from pipeline.curate.steps.clusters import unit
from pipeline.scan.counts import QUERIES, Part, Pool

KEY = "consistency_key"
Ranks = npt.NDArray[np.int64]
_NONE: Ranks = np.zeros(0, np.int64)
_RANKS = 1000  # larger ranks are stored as this one, unless top_k is larger
_SAMPLE_SHARE, _LEAST_SAMPLE = 0.01, 2000  # of all pairs; fewer than this are a noisy sample
_SMALL_POOL = 300
_GOOD, _USELESS = 0.5, 0.1  # largest difference of the shares found and lost below which the evidence says so
_WELL_KNOWN = 0.25  # share of shuffled pairs from which the ratio to that of pairs is not just noise
_MOST_WRONG = 0.9
_POOLS = 20  # described in the evidence
_TRIES = 20  # to find another passage for a query
_BATCH = 8 * QUERIES


class Consistency(EmbeddingStep):
    """See the module."""

    name = "consistency"

    def schema(self) -> pa.Schema:
        """See `Step`. `top_k` is the rank from which the pair is dropped."""
        return pa.schema([("rank_in_pool", pa.int64()), ("score", pa.float32()), ("top_k", pa.int64())])

    def raw(self) -> pa.Schema:
        """See `Step`. The key is the same for passages that are the same after normalisation."""
        return pa.schema([(KEY, pa.int64())])

    def measure(self, sides: Sequence[pa.StringArray]) -> pa.RecordBatch:
        """See `Step`."""
        texts = (normalised(text or "").encode() for text in sides[1].to_pylist())
        digests = b"".join(blake2b(text, digest_size=8).digest() for text in texts)
        return pa.record_batch([pa.array(np.frombuffer(digests, np.int64))], schema=self.raw())

    def decide(self, seen: Seen) -> Decision:
        """See `Step`."""
        settings, run = self.settings, seen.connection.execute
        tables = self.tables(seen)
        vectors = embed(seen, tables, self.sides)
        source = "source" if settings.per_source else "null::varchar"
        run(f"""
            create or replace table consistency_rows as
            select n, q.place as query, p.place as passage, {KEY} as key, {source} as pool,
                md5_number_lower('pool {SEED} ' || id) as drawn,
                md5_number_lower('sample {SEED} ' || id) as sampled
            from {seen.rows} join {vectors["query"].rows} q using (n) join {vectors["passage"].rows} p using (n)
            order by pool, n
        """)
        run("create or replace table consistency_ranks (n bigint, rank_in_pool bigint, score float, top_k bigint)")
        pools = run("select pool, count(*) from consistency_rows group by pool order by pool").fetchall()
        found = [_Comparison(seen, vectors, settings, pool, pairs) for pool, pairs in pools]
        for comparison in found:
            comparison.run()
        run(
            "create or replace view consistency as "
            "select n, rank_in_pool, score, top_k, rank_in_pool >= top_k as dropped from consistency_ranks"
        )
        rows, compared = run(
            f"select (select count(*) from {seen.rows}), (select count(*) from consistency_rows)"
        ).fetchall()[0]
        shown = sorted(found, key=lambda each: -each.pairs)[:_POOLS]
        evidence: dict[str, Any] = {
            "texts_encoded": tables.encoded,
            "pairs_without_vector": rows - compared,
            "pools": [each.facts() for each in shown],
            "pools_not_shown": len(found) - len(shown),
            "curve": [point for each in shown for point in each.curve()],
            "notes": [note for each in shown for note in each.notes()],
        }
        return Decision("consistency", evidence)

    def view(self, before: Mapping[str, Any]) -> str:
        """See `Step`."""
        top_k, old = self.settings.top_k, before["top_k"]
        if not self.differs_only_in("top_k", before) or top_k == "auto" or (old != "auto" and top_k > old):
            raise ConfigError(
                f"steps.consistency has {dict(before)} in the table; a view can have a number for top_k that is not larger, and "
                f"the same other keys. Run without --view: only texts that no earlier run has encoded are encoded"
            )
        return f"rank_in_pool >= least({top_k}, top_k)"


class _Comparison:
    """Compares the pairs of one pool.

    Args:
        source: Source of the pairs; None if there is one pool.
        pairs: Their number.
    """

    def __init__(
        self, seen: Seen, vectors: Mapping[str, SideVectors], settings: Any, source: str | None, pairs: int
    ) -> None:
        self._seen, self._vectors, self._settings = seen, vectors, settings
        self._source, self.pairs = source, pairs
        self._passages = self._best = self._top_k = 0
        self._curve = Curve(_NONE, _NONE)

    def run(self) -> None:
        """Fill the table `consistency_ranks`."""
        seen, wanted = self._seen, self._settings.top_k
        where = "" if self._source is None else f" of the source {self._source!r}"
        seen.reporter.step(f"consistency: reading the pool{where}")
        pool = Pool(self._pool(), self._vectors["passage"].column)
        seen.reporter.step(
            f"consistency: comparing {self.pairs:,} pairs{where} with a pool of {self._passages:,} passages"
        )
        self._curve = Curve(*(self._ranks(pool, sample) for sample in self._samples()))
        best = self._curve.best()
        self._best = max(self._passages, 1) if best is None else best
        self._top_k = self._best if wanted == "auto" else wanted
        for result in pool.counted(self._parts(self._rows()), self._most, seen.run):
            ranks = pa.table(
                [result.numbers, result.counts, result.scores, np.full(len(result.numbers), self._top_k)],
                ["n", "rank_in_pool", "score", "top_k"],
            )
            insert(seen.connection, "consistency_ranks", ranks)

    @property
    def _most(self) -> int:
        """The largest rank that is stored; larger ones are stored as this one."""
        return max(self._top_k, _RANKS)

    def facts(self) -> dict[str, Any]:
        """Return what is known about the pool, and the limit."""
        return {
            "source": self._source,
            "pairs": self.pairs,
            "passages": self._passages,
            "top_k": self._top_k,
            "best_top_k": self._best,
            "largest_stored_rank": self._most,
            "sampled_pairs": self._curve.size,
            "seem_shuffled": round(self._curve.wrong, 4),
        }

    def curve(self) -> list[dict[str, Any]]:
        """Return the shares of shuffled pairs that some k find, and of the sampled pairs that they lose."""
        if not self._curve.size:
            return []
        limits = {*marks(self._passages), self._top_k, self._best}
        return [{"source": self._source, **self._curve.point(k)} for k in sorted(limits)]

    def notes(self) -> list[str]:
        """Return a sentence for each reason to trust the ranks less."""
        where = "" if self._source is None else f"{self._source}: "
        if not self._curve.size:
            return [f"{where}all passages are alike, so a rank says nothing, and top_k: auto drops nothing"]
        notes = []
        if self._passages < _SMALL_POOL:
            notes.append(
                f"{where}a pool of {self._passages} passages is small: many pairs that do not belong together rank high in it"
            )
        if self._curve.separation < _USELESS:
            notes.append(
                f"{where}the model does not distinguish pairs from shuffled ones, so top_k: auto drops nothing"
            )
        elif self._curve.separation < _GOOD:
            best = self._curve.point(self._best)
            notes.append(
                f"{where}the model hardly distinguishes pairs from shuffled ones: the best k, {self._best}, finds {best['found']:.0%} "
                f"of the shuffled pairs and loses {best['good_lost']:.0%} of the good ones"
            )
        return notes

    def _rows(self) -> Iterator[pa.Table]:
        query = f"select n, query, passage, key from consistency_rows where {self._mine()} order by n"
        yield from stream(self._seen.connection, query, _BATCH)

    def _mine(self) -> str:
        return f"pool is not distinct from {'null' if self._source is None else literal(self._source)}"

    def _pool(self) -> Iterator[tuple[npt.NDArray[np.float32], pa.StringArray]]:
        """Yield the vectors of the pool, and their keys."""
        drawn = (
            "select key, arg_min(passage, drawn) as passage from consistency_rows "
            f"where {self._mine()} group by key order by min(drawn), key limit {self._settings.pool}"
        )
        for rows in stream(self._seen.connection, f"select * from ({drawn}) order by passage", _BATCH):
            self._passages += rows.num_rows
            yield self._vectors["passage"].vectors(rows["passage"].to_numpy()), _texts(rows["key"])

    def _samples(self) -> tuple[pa.Table, pa.Table]:
        """Return pairs that are drawn by a hash of the row id, and the same with the passages of others."""
        size = max(_LEAST_SAMPLE, int(self.pairs * _SAMPLE_SHARE))
        query = (
            f"select n, query, passage, key from consistency_rows where {self._mine()} order by sampled, n limit {size}"
        )
        pairs = pa.concat_tables(stream(self._seen.connection, query, _BATCH))
        return pairs, shuffled(pairs)

    def _ranks(self, pool: Pool, pairs: pa.Table) -> Ranks:
        """Return the ranks of pairs, in any order."""
        parts = pool.counted(self._parts([pairs]), self._passages, self._seen.run)
        return np.concatenate([_NONE, *(part.counts for part in parts)])

    def _parts(self, tables: Iterable[pa.Table]) -> Iterator[Part]:
        queries, passages = self._vectors["query"], self._vectors["passage"]
        for table in tables:
            for start in range(0, table.num_rows, QUERIES):
                rows = table.slice(start, QUERIES)
                vectors = queries.vectors(rows["query"].to_numpy())
                if queries.column.normalized:
                    vectors = unit(vectors)
                own = passages.vectors(rows["passage"].to_numpy())
                yield Part(rows["n"].to_numpy(), vectors, own, _texts(rows["key"]))


def shuffled(pairs: pa.Table) -> pa.Table:
    """Return the queries of pairs, each with the passage of another pair; those that find no other passage are left out."""
    keys, rows = pairs["key"].to_numpy(), np.arange(pairs.num_rows)
    other = rows.copy()
    for step in range(1, min(pairs.num_rows, _TRIES + 1)):
        alike = keys[other] == keys
        other[alike] = np.roll(rows, -step)[alike]
    found = keys[other] != keys
    taken = pairs.take(pa.array(other[found]))
    return (
        pairs.filter(pa.array(found))
        .select(["n", "query"])
        .append_column("passage", taken["passage"])
        .append_column("key", taken["key"])
    )


class Curve:
    """Shares of sampled pairs and of shuffled pairs whose rank is at least k.

    Some of the sampled pairs do not belong together either. Their share is at most the least ratio of the two shares, and
    it is taken for this; so the share of the good pairs that k loses can be estimated.

    Args:
        pairs: Ranks of pairs.
        shuffled_pairs: Ranks of shuffled pairs.
    """

    def __init__(self, pairs: Ranks, shuffled_pairs: Ranks) -> None:
        self._pairs, self._shuffled = np.sort(pairs), np.sort(shuffled_pairs)
        self.size = min(len(pairs), len(shuffled_pairs))
        self._limits = np.unique(np.concatenate([[1], pairs + 1]))  # the share of pairs falls at these alone
        self.separation, self.wrong = 0.0, 0.0
        if self.size:
            lost, found = self._shares(self._limits)
            self.separation = float(np.max(found - lost))
            well_known = found >= _WELL_KNOWN
            self.wrong = float(min(np.min(lost[well_known] / found[well_known], initial=1), _MOST_WRONG))

    def _shares(self, limits: Ranks) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        lost, found = (1 - np.searchsorted(ranks, limits) / len(ranks) for ranks in (self._pairs, self._shuffled))
        return lost, found

    def _good_lost(self, lost: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.maximum(lost - self.wrong * found, 0) / (1 - self.wrong)

    def best(self) -> int | None:
        """Return the smallest k that loses no larger share of the good pairs than it misses of the shuffled ones.

        None if ranks do not distinguish pairs from shuffled ones.
        """
        if self.separation < _USELESS:
            return None
        lost, found = self._shares(self._limits)
        return int(self._limits[np.argmax(self._good_lost(lost, found) <= 1 - found)])

    def point(self, k: int) -> dict[str, Any]:
        """Return what is known about one k."""
        lost, found = self._shares(np.array([k]))
        shares = {"found": found, "lost": lost, "good_lost": self._good_lost(lost, found)}
        return {"k": k, **{name: round(float(value[0]), 4) for name, value in shares.items()}}


def _texts(keys: pa.ChunkedArray) -> pa.StringArray:
    return keys.combine_chunks().cast(pa.string())
