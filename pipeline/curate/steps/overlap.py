"""The step `overlap`: pairs whose shorter side is contained in the longer one (jina-embeddings-v3) are dropped.

The overlap is the share of the words of the shorter side that the longer one has, after normalisation. If both have as many
words, the larger of the two shares counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from actors.errors import ConfigError
from pipeline.curate.normalise import normalised
from pipeline.curate.steps.base import Decision, Seen, Step

_WORD = re.compile(r"\w+")


class Overlap(Step):
    """See the module."""

    name = "overlap"

    def schema(self) -> pa.Schema:
        """See `Step`. Not float32: there a share of 0.8 is above 0.8."""
        return pa.schema([("overlap", pa.float64())])

    def raw(self) -> pa.Schema:
        """See `Step`."""
        return self.schema()

    def raw_settings(self) -> dict[str, Any]:
        """See `Step`."""
        return {"min_words": self.settings.min_words}

    def measure(self, sides: Sequence[pa.StringArray]) -> pa.RecordBatch:
        """See `Step`."""
        pairs = zip(*(side.fill_null("").to_pylist() for side in sides), strict=True)
        shares = [self._share(*(_WORD.findall(normalised(text)) for text in pair)) for pair in pairs]
        return pa.record_batch([pa.array(shares, pa.float64())], schema=self.raw())

    def _share(self, first: list[str], second: list[str]) -> float | None:
        shorter, longer = sorted((first, second), key=len)
        if len(shorter) < self.settings.min_words:
            return None
        share = _contained(shorter, longer)
        return max(share, _contained(longer, shorter)) if len(shorter) == len(longer) else share

    def decide(self, seen: Seen) -> Decision:
        """See `Step`."""
        run, most = seen.connection.execute, self.settings.max_share
        run(
            f"create or replace view overlap as select n, overlap, coalesce({self._condition()}, false) as dropped from {seen.rows}"
        )
        too_short = run("select count(*) from overlap where overlap is null").fetchall()[0][0]
        return Decision("overlap", {"max_share": most, "too_short": too_short})

    def view(self, before: Mapping[str, Any]) -> str:
        """See `Step`."""
        if not self.differs_only_in("max_share", before) or self.settings.max_share > before["max_share"]:
            raise ConfigError(
                f"steps.overlap has {dict(before)} in the table; a view can have a smaller max_share and the same min_words. Run "
                f"without --view: only the rows that come back are decided again"
            )
        return self._condition()

    def _condition(self) -> str:
        return f"overlap > {self.settings.max_share!r}::double"


def _contained(words: list[str], others: list[str]) -> float:
    known = set(others)
    return sum(word in known for word in words) / len(words)
