"""The step `near_dedup`: of rows with nearly the same text, the one with the smallest id is kept.

Two rows are near copies if the Jaccard similarity of their shingles is at least the threshold. Bands of MinHash signatures
find candidates, and the true similarity decides. Groups are connected components, so the ends of a chain of near copies may
differ by more. Rows whose normalised texts are equal are one row until the end: a text repeated a million times costs no
more than one of its own. A text shorter than a shingle is compared by equality alone, and an empty one with none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from actors.errors import ConfigError
from pipeline.curate.database import insert, stream
from pipeline.curate.extra import need_module
from pipeline.curate.normalise import normalised
from pipeline.curate.steps.base import Decision, Seen, Step, chosen
from pipeline.curate.steps.components import Ints, smallest_of_components
from pipeline.curate.steps.shingles import FOUND, Bytes, Shingles, band_keys, bands_for, probability

HASH, SIGNATURE = "near_hash", "near_signature"
COPY_OF, SIMILARITY = "near_duplicate_of", "near_similarity"
_ROWS = 1 << 13  # of a batch
_CAPPED = 20  # buckets that the evidence names
_BINS = 20


class NearDedup(Step):
    """See the module."""

    name = "near_dedup"

    def __init__(self, settings: Any, sides: Sequence[str]) -> None:
        super().__init__(settings, sides)
        self._compared_sides = chosen(sides, settings.side)
        self._shingles = Shingles(settings.shingle, settings.n)
        self._bands, self._length = bands_for(settings.threshold, settings.permutations)

    def check(self) -> None:
        """See `Step`.

        Raises:
            ConfigError: a package is missing, or a signature is too short for pairs with just the threshold to be found.
        """
        for module in ("rensa", "scipy"):
            need_module(module)
        threshold, most = self.settings.threshold, self.settings.permutations
        if self._probability() < FOUND:
            least = math.ceil(math.log(1 - FOUND) / math.log(1 - threshold))
            raise ConfigError(
                f"steps.near_dedup finds pairs with the threshold {threshold} from {least} permutations on, and the job has "
                f"{most}: raise one of the two"
            )

    def schema(self) -> pa.Schema:
        """See `Step`."""
        return pa.schema([(COPY_OF, pa.string()), (SIMILARITY, pa.float64())])

    def raw(self) -> pa.Schema:
        """See `Step`; the columns do not depend on the threshold, so that another one reads no text again."""
        return pa.schema([(HASH, pa.binary(16)), (SIGNATURE, pa.binary(self.settings.permutations))])

    def raw_settings(self) -> dict[str, Any]:
        """See `Step`."""
        return {key: getattr(self.settings, key) for key in ("shingle", "n", "side", "permutations")}

    def measure(self, sides: Sequence[pa.Array]) -> pa.RecordBatch:
        """See `Step`."""
        texts = self._texts(
            [side for name, side in zip(self.sides, sides, strict=True) if name in self._compared_sides]
        )
        hashes = [blake2b(text.encode(), digest_size=16).digest() if text else None for text in texts]
        long = np.flatnonzero(self._shingles.counts(texts))
        found = self._shingles.signatures([texts[row] for row in long], self.settings.permutations)
        signatures = np.full(len(texts), None, object)
        signatures[long] = [signature.tobytes() for signature in found]
        schema = self.raw()
        columns = zip((hashes, signatures), schema.types, strict=True)
        return pa.record_batch([pa.array(*column) for column in columns], schema=schema)

    def decide(self, seen: Seen) -> Decision:
        """See `Step`."""
        run = seen.connection.execute
        run(
            f"create or replace table near_dedup_first as select {HASH}, min(n) as n from {seen.rows} where {HASH} is not null "
            f"group by {HASH}"
        )
        self._write_keys(seen)
        capped = self._write_candidates(seen)
        self._write_pairs(seen)
        seen.reporter.step(f"near_dedup: comparing {_count(seen, 'select count(*) from near_dedup_pairs'):,} pairs")
        self._write_texts(seen)
        histogram = np.zeros(_BINS, np.int64)
        stars = smallest_of_components(self._edges(seen, histogram))
        self._write_stars(seen, stars)
        run(
            f"create or replace table near_dedup as select r.n, k.id as {COPY_OF}, "
            f"coalesce(s.similarity, 1) as {SIMILARITY}, true as dropped from {seen.rows} r "
            f"join near_dedup_first f on r.{HASH} = f.{HASH} left join near_dedup_stars s on s.n = f.n "
            f"join {seen.rows} k on k.n = coalesce(s.keeper, f.n) where r.n <> k.n"
        )
        return Decision("near_dedup", self._evidence(seen, capped, histogram))

    def _probability(self) -> float:
        """Return the probability that a pair with just the threshold is a candidate."""
        return probability(self.settings.threshold, self._bands, self._length)

    def _texts(self, sides: Sequence[pa.Array | pa.ChunkedArray]) -> list[str]:
        """Return the normalised texts that are compared; a missing side is empty."""
        return [
            normalised(" ".join(parts))
            for parts in zip(*(side.fill_null("").to_pylist() for side in sides), strict=True)
        ]

    def _write_keys(self, seen: Seen) -> None:
        """Write the keys of the bands of each text, a column a band."""
        keys, width = [f"k{band}" for band in range(self._bands)], self.settings.permutations
        columns = ", ".join(f"{key} ubigint" for key in keys)
        seen.connection.execute(f"create or replace table near_dedup_keys (n bigint, {columns})")
        query = f"select f.n, {SIGNATURE} from near_dedup_first f join {seen.rows} r using (n) where {SIGNATURE} is not null"
        for batch in stream(seen.connection, query, _ROWS):
            values = band_keys(_bytes(batch.column(SIGNATURE), width), self._bands, self._length)
            rows = pa.table([batch.column("n"), *map(pa.array, values.T)], ["n", *keys])
            insert(seen.connection, "near_dedup_keys", rows)

    def _write_candidates(self, seen: Seen) -> list[dict[str, Any]]:
        """Write the pairs of texts that share a band, each once, and return the largest buckets that were capped.

        All pairs of a bucket are candidates. In one with more than `max_bucket` texts each is compared with the first and
        with the one before it only.
        """
        run, most = seen.connection.execute, self.settings.max_bucket
        run("create or replace table near_dedup_found (a bigint, b bigint, texts bigint, band usmallint)")
        for band in range(self._bands):
            run(
                f"insert into near_dedup_found with bucket as materialized (select k{band} as key, n, first_value(n) over ordered as first, "
                f"lag(n) over ordered as before, count(*) over (partition by k{band}) as texts from near_dedup_keys "
                f"where k{band} in (select k{band} from near_dedup_keys group by k{band} having count(*) > 1) "
                f"window ordered as (partition by k{band} order by n)) "
                "select a.n, b.n, null, null from bucket a join bucket b on a.key = b.key and a.n < b.n "
                f"where a.texts <= {most} and b.texts <= {most} union all "
                f"select first, n, texts, {band} from bucket where texts > {most} and first < n union all "
                f"select before, n, null, null from bucket where texts > {most} and before is not null"
            )
        run("create or replace table near_dedup_candidates as select distinct a, b from near_dedup_found")
        run(
            "create or replace table near_dedup_capped as select distinct texts, a as n, band from near_dedup_found where band is not null"
        )
        capped = run(
            f"select c.texts, r.id from near_dedup_capped c join {seen.rows} r on r.n = c.n order by c.texts desc, r.id limit {_CAPPED}"
        ).fetchall()
        return [{"texts": texts, "first": first} for texts, first in capped]

    def _write_pairs(self, seen: Seen) -> None:
        """Write the candidates whose signatures agree in as many places as those of near copies do.

        Most candidates of a large corpus are chance, and bytes are compared a hundred times as fast as texts. Of pairs with
        just the threshold, one in a million has a number of places this far below the mean.
        """
        threshold, width = self.settings.threshold, self.settings.permutations
        least = threshold * width - 5 * (threshold * (1 - threshold) * width) ** 0.5
        seen.connection.execute("create or replace table near_dedup_pairs (a bigint, b bigint)")
        query = (
            f"select p.a, p.b, x.{SIGNATURE}, y.{SIGNATURE} from near_dedup_candidates p "
            f"join {seen.rows} x on x.n = p.a join {seen.rows} y on y.n = p.b"
        )
        for batch in stream(seen.connection, query, _ROWS):
            left, right = (_bytes(batch.column(place), width) for place in (2, 3))
            likely = (left == right).sum(axis=1) >= least
            insert(seen.connection, "near_dedup_pairs", batch.select(["a", "b"]).filter(pa.array(likely)))

    def _write_texts(self, seen: Seen) -> None:
        """Write the normalised texts of all candidates."""
        seen.connection.execute("create or replace table near_dedup_texts (n bigint, text varchar)")
        sides = ", ".join(self._compared_sides)
        wanted = "select a from near_dedup_pairs union select b from near_dedup_pairs"
        query = f"select n, {sides} from {seen.rows} where n in ({wanted})"
        for batch in stream(seen.connection, query, _ROWS):
            texts = pa.array(self._texts([batch.column(side) for side in self._compared_sides]), pa.string())
            insert(seen.connection, "near_dedup_texts", pa.table([batch.column("n"), texts], ["n", "text"]))

    def _edges(self, seen: Seen, histogram: Ints) -> Iterator[Ints]:
        """Return the candidates that are near copies, [2, pairs], in parts; count all by their similarity."""
        for pairs, similarity in self._compared(seen, "near_dedup_pairs"):
            histogram += np.histogram(similarity, _BINS, (0, 1))[0]
            yield pairs[:, similarity >= self.settings.threshold]

    def _write_stars(self, seen: Seen, stars: Ints) -> None:
        """Write each text of a group with the first of the group, and their similarity."""
        seen.connection.execute("create or replace table near_dedup_edges (b bigint, a bigint)")
        seen.connection.execute("create or replace table near_dedup_stars (n bigint, keeper bigint, similarity double)")
        for first in range(0, stars.shape[1], _ROWS):
            edges = pa.table(list(stars[:, first : first + _ROWS]), ["b", "a"])
            insert(seen.connection, "near_dedup_edges", edges)
        for (keeper, node), similarity in self._compared(seen, "near_dedup_edges"):
            rows = pa.table([node, keeper, similarity], ["n", "keeper", "similarity"])
            insert(seen.connection, "near_dedup_stars", rows)

    def _compared(self, seen: Seen, pairs: str) -> Iterator[tuple[Ints, np.ndarray[Any, np.dtype[np.float64]]]]:
        """Return the pairs of a table, [2, pairs], and their true similarities, in parts."""
        query = (
            f"select p.a, p.b, x.text as left_text, y.text as right_text from {pairs} p "
            "join near_dedup_texts x on x.n = p.a join near_dedup_texts y on y.n = p.b"
        )
        for batch in stream(seen.connection, query, _ROWS):
            texts = (batch.column(name).to_pylist() for name in ("left_text", "right_text"))
            ends = np.stack([batch.column(name).to_numpy() for name in ("a", "b")])
            yield ends, self._shingles.similarities(*texts)

    def _evidence(self, seen: Seen, capped: list[dict[str, Any]], histogram: Ints) -> dict[str, Any]:
        return {
            "bands": self._bands,
            "places_of_a_band": self._length,
            "found_at_threshold": round(self._probability(), 4),
            "texts": _count(seen, "select count(*) from near_dedup_first"),
            "empty": _count(seen, f"select count(*) from {seen.rows} where {HASH} is null"),
            "too_short": _count(
                seen, f"select count(*) from near_dedup_first join {seen.rows} using (n) where {SIGNATURE} is null"
            ),
            "candidates": _count(seen, "select count(*) from near_dedup_candidates"),
            "compared": int(histogram.sum()),
            "similarity_of_compared": {f"{place / _BINS:.2f}": int(number) for place, number in enumerate(histogram)},
            "groups": _count(seen, f"select count(distinct {COPY_OF}) from near_dedup"),
            "largest_group": _count(
                seen, f"select max(c) + 1 from (select count(*) as c from near_dedup group by {COPY_OF})"
            ),
            "capped_buckets": _count(seen, "select count(*) from near_dedup_capped"),
            "largest_capped_buckets": capped,
        }


def _count(seen: Seen, query: str) -> int:
    ((value,),) = seen.connection.execute(query).fetchall()
    return int(value or 0)


def _bytes(column: pa.ChunkedArray, width: int) -> Bytes:
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, width)
