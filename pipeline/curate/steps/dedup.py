"""The step `dedup`: of equal rows the one with the smallest id is kept; rows with an empty side or equal sides go too."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from actors.source.content_hash import content_hashes
from pipeline.curate.normalise import normalised
from pipeline.curate.steps.base import Decision, Seen, Step

HASH, FLAW = "pair_hash", "dedup_flaw"
EMPTY, SAME = "empty side", "identical sides"
_BETWEEN = "\x1f"  # sides; white space, which a normalised text does not have


class Dedup(Step):
    """See the module."""

    name = "dedup"

    def schema(self) -> pa.Schema:
        """See `Step`."""
        return pa.schema([(HASH, pa.string()), ("duplicate_of", pa.string())])

    def raw(self) -> pa.Schema:
        """See `Step`. `dedup_flaw` says why a row goes that is no copy."""
        return pa.schema([(HASH, pa.string()), (FLAW, pa.string())])

    def measure(self, sides: Sequence[pa.StringArray]) -> pa.RecordBatch:
        """See `Step`."""
        texts, flaws = [], []
        for row in zip(*(side.to_pylist() for side in sides), strict=True):
            compared = [normalised(text or "") for text in row]
            texts.append(_BETWEEN.join(compared))
            same = len(compared) > 1 and len(set(compared)) == 1
            flaws.append(EMPTY if not all(compared) else SAME if same else None)
        return pa.record_batch(
            [content_hashes(pa.array(texts, pa.string())), pa.array(flaws, pa.string())], schema=self.raw()
        )

    def decide(self, seen: Seen) -> Decision:
        """See `Step`."""
        run = seen.connection.execute
        run(
            f"create or replace table dedup_first as select {HASH}, min(n) as n, count(*) as copies from {seen.rows} "
            f"where {FLAW} is null group by {HASH} having count(*) > 1"
        )
        run(
            f"create or replace view dedup as select r.n, r.{HASH}, case when f.n <> r.n then k.id end as duplicate_of, "
            f"r.{FLAW} is not null or coalesce(f.n <> r.n, false) as dropped from {seen.rows} r "
            f"left join dedup_first f on r.{FLAW} is null and r.{HASH} = f.{HASH} left join {seen.rows} k on k.n = f.n"
        )
        flaws = dict(run(f"select {FLAW}, count(*) from {seen.rows} where {FLAW} is not null group by all").fetchall())
        copies, groups, largest = run("select sum(copies - 1), count(*), max(copies) from dedup_first").fetchall()[0]
        return Decision(
            "dedup",
            {
                "copies": int(copies or 0),
                "groups": groups,
                "largest_group": largest or 0,
                "empty_side": flaws.get(EMPTY, 0),
                **({"identical_sides": flaws.get(SAME, 0)} if len(self.sides) > 1 else {}),
            },
        )
