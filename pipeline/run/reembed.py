"""A second generation: the whole corpus with another model or setting, built beside the first while readers stay on it.

Called by refresh where the job's fingerprint is not the table's. It is a backfill in all but its end: there the gate looks
at it, and one commit changes the files, the columns and the making of the vectors at once. The first generation's files
stay until a vacuum, so `vectide rollback` puts it back without encoding anything. The trade-off: the table is held as long
as it takes, so the first generation is not refreshed meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import pyarrow as pa
from deltalake import DeltaTable

from pipeline.execute.progress import Outcome, Reporter
from pipeline.reuse import unpublished
from pipeline.run.backfill import Runner
from pipeline.run.context import RunContext
from pipeline.run.foreign_policy import Settled
from pipeline.run.quality_gate import Gate, Judged, read_judged
from pipeline.table.commit import Publication


class Generation(Runner):
    """A backfill beside the version that is there.

    Args:
        beginning: What is there.
        version: The version that it is to take over from.
        reporter: Who is told how it goes.
    """

    operation = "generation"
    what = "vectide refresh (second generation)"

    def __init__(self, context: RunContext, version: DeltaTable, reporter: Reporter) -> None:
        super().__init__(context, reporter)
        self._version = version
        self._settled = Settled(context, chunked=self.chunking is not None)
        self._judged: Judged | None = None  # read before anything is encoded

    def check_embedding_spec(self) -> None:
        """That it is another is the point; but what it is to be measured with must be there.

        Raises:
            ConfigError, DataError: queries or judgements cannot be read.
        """
        self._judged = read_judged(self.job.generation)

    def check_foreign(self) -> None:
        """As the job says; but rows that another tool added cannot stay, for their vectors are of the first generation.

        Raises:
            ForeignCommits, TableConflict: the job refuses what other tools did, or it cannot be kept.
        """
        self._settled.check(self.what)
        self.foreign = None
        super().check_foreign()

    @cached_property
    def kept(self) -> pa.Table:
        """With the rows that were removed since."""
        return self._settled.kept()

    def find_unpublished_files(self) -> list[str]:
        """Of published runs too: a generation that was rolled back is not paid for again."""
        return unpublished.find_unpublished_files(
            self.url, self.embedding_spec.fingerprint, self.table, but=self.ledger.run, published=True
        )

    def approve(self, publication: Publication, outcome: Outcome) -> Outcome:
        """Measured against the version that is there; held back where the job says so.

        Raises:
            GateClosed: it is not as good as the job asks.
        """
        self.reporter.step("comparing it with the version that is there")
        asked = self.job.generation
        checks = Gate(self.url, self._version, publication).check(asked, self._judged)
        return replace(outcome, checks=checks, staged=not asked.publish)
