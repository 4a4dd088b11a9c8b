"""The step `semantic_dedup`: rows whose vector is near to that of an earlier row are dropped (SemDeDup).

In the order of the ids a row is dropped if its largest cosine with an earlier row is at least 1 - eps, whether that row is
kept or not. Rows with the same text have a cosine of 1. Up to 20,000 different texts are all compared with each other; more
are clustered by k-means, and compared within their cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.errors import ConfigError
from actors.vectors import Floats, Ints
from pipeline.curate.database import insert
from pipeline.curate.embedding import EmbeddingStep, embed
from pipeline.curate.steps.base import SEED, Decision, Seen, chosen
from pipeline.curate.steps.clusters import EXACT, clusters, nearest_before, unit

SIMILARITY, COPY_OF = "semantic_similarity", "semantic_duplicate_of"


class SemanticDedup(EmbeddingStep):
    """See the module."""

    name = "semantic_dedup"

    def __init__(self, settings: Any, sides: Sequence[str]) -> None:
        super().__init__(settings, sides)
        self.embedded = chosen(sides, settings.side)

    def schema(self) -> pa.Schema:
        """See `Step`. A view with a larger eps needs the similarity of kept rows too."""
        return pa.schema([(SIMILARITY, pa.float64()), (COPY_OF, pa.string())])

    def decide(self, seen: Seen) -> Decision:
        """See `Step`."""
        run, tables = seen.connection.execute, self.tables(seen)
        vectors = embed(seen, tables, self.embedded)
        names = ", ".join(f"{side}.place as {side}_place" for side in self.embedded)
        joins = " ".join(f"join {vectors[side].rows} {side} using (n)" for side in self.embedded)
        places = [f"{side}_place" for side in self.embedded]
        run(f"create or replace table semantic_dedup_rows as select n, {names} from {seen.rows} {joins}")
        run(
            f"create or replace table semantic_dedup_texts as select min(n) as n, {', '.join(places)} "
            f"from semantic_dedup_rows group by all order by n"
        )
        texts = seen.connection.sql("select * from semantic_dedup_texts order by n").fetchnumpy()

        def read(numbers: Ints) -> Floats:
            parts = [unit(vectors[side].vectors(texts[f"{side}_place"][numbers])) for side in self.embedded]
            return np.concatenate(parts, axis=1) / np.float32(len(parts) ** 0.5)

        count = len(texts["n"])
        seen.reporter.step(f"semantic_dedup: comparing {count:,} texts")
        run("create or replace table semantic_dedup_found (n bigint, similarity double, before bigint)")
        sizes = []
        for numbers in clusters(count, read, SEED):
            similarity, before = nearest_before(read(numbers))
            sizes.append(len(numbers))
            rows = [texts["n"][numbers], similarity, texts["n"][numbers[before]]]
            found = pa.table(rows, ["n", "similarity", "before"]).slice(1)
            insert(seen.connection, "semantic_dedup_found", found)
        run(
            f"create or replace table semantic_dedup_nearest as select r.n, if(r.n > t.n, 1, f.similarity) as {SIMILARITY}, "
            f"if(r.n > t.n, t.n, f.before) as before from semantic_dedup_rows r "
            f"join semantic_dedup_texts t using ({', '.join(places)}) left join semantic_dedup_found f on f.n = t.n"
        )
        run(
            f"create or replace table semantic_dedup as select r.n, {SIMILARITY}, "
            f"case when {self._condition()} then k.id end as {COPY_OF}, coalesce({self._condition()}, false) as dropped "
            f"from semantic_dedup_nearest r left join {seen.rows} k on k.n = r.before"
        )
        rows = run(f"select count(*) from {seen.rows} anti join semantic_dedup_rows using (n)").fetchall()
        return Decision(
            "semantic_dedup",
            {
                "model": tables.spec.model,
                "texts_encoded": tables.encoded,
                "without_vector": rows[0][0],
                "texts": count,
                "all_compared": count <= EXACT,
                "clusters": len(sizes),
                "largest_cluster": max(sizes, default=0),
            },
        )

    def view(self, before: Mapping[str, Any]) -> str:
        """See `Step`."""
        if not self.differs_only_in("eps", before) or self.settings.eps < before["eps"]:
            raise ConfigError(
                f"steps.semantic_dedup has {dict(before)} in the table; a view can have a larger eps, and the same other keys. Run "
                f"without --view: only texts that no earlier run has encoded are encoded"
            )
        return self._condition()

    def _condition(self) -> str:
        return f"{SIMILARITY} >= {round(1 - self.settings.eps, 6)!r}::double"
