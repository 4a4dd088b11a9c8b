"""Re-embedding: builds the next version with another model or setting while readers stay on the current version.

Called by refresh if the fingerprint of the job is not that of the table. It is a backfill except for its end: the quality
gate compares both versions, and one commit replaces the files, the columns and the embedding spec. The old files stay
until a vacuum, so `vectide rollback` restores the old version without encoding anything. The trade-off: the table is
locked during the whole run, so the current version is not refreshed meanwhile.
"""

from __future__ import annotations

from dataclasses import replace

from deltalake import DeltaTable

from pipeline.execute.progress import Outcome, Reporter
from pipeline.quality.judged import Judged
from pipeline.run.backfill import Runner
from pipeline.run.context import RunContext
from pipeline.run.quality_gate import Gate, check_late, read_judged
from pipeline.table.commit import Publication


class Reembedding(Runner):
    """One call of `refresh` that re-embeds the table.

    Args:
        context: Model, corpus and table when the run begins.
        version: The current version, which the re-embedding is to replace.
        reporter: Receives the events of the run.
    """

    operation = "generation"
    command = "vectide refresh (re-embedding)"
    reuses_published = True  # so that a version that was rolled back is not encoded again

    def __init__(self, context: RunContext, version: DeltaTable, reporter: Reporter) -> None:
        super().__init__(context, reporter)
        self._version = version
        self._judged: Judged | None = None  # read before anything is encoded

    def check_embedding_spec(self) -> None:
        """Read the queries and judgements of the gate. The embedding spec may differ: that is why the run exists.

        Raises:
            ConfigError, DataError: queries or judgements cannot be read, or late interaction cannot compare the versions.
        """
        settings = self.context.job.generation
        if settings.late:
            check_late(self.context.url, self._version, self.context.embedding_spec.outputs)
        self._judged = read_judged(settings)

    def check_foreign(self) -> None:
        """Apply `table.foreign_commits`. Rows that another tool added cannot be kept, since their vectors are old.

        Raises:
            ForeignCommits, TableConflict: the job refuses the changes of other tools, or they cannot be kept.
        """
        self.policy.check(self.command)
        self.check_added()

    def approve(self, publication: Publication, outcome: Outcome) -> Outcome:
        """Run the quality gate; return a staged outcome if the job says `generation.publish: false`.

        Raises:
            GateClosed: a metric is below the limit of the job.
        """
        self.reporter.step("comparing it with the current version")
        settings = self.context.job.generation
        gate = Gate(self.context.url, self._version, publication, late=settings.late)
        checks, figures = gate.check(settings, self._judged)
        return replace(outcome, checks=checks, figures=figures, staged=not settings.publish)
