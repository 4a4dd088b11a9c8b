"""Dry run of a curation: what there is to read, and everything that is wrong with the job. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from actors.source.formats.dialects import DialectUse
from actors.storage.listed import LeftOut
from pipeline.curate.context import resolve
from pipeline.curate.read import finished
from pipeline.execute.progress import NullReporter
from pipeline.job.curation import Curation
from pipeline.ledger.ledger import Ledger


@dataclass(frozen=True)
class CurationPlan:
    """What `vectide plan` prints of a curation.

    Attributes:
        units_done: Units whose rows are read and measured already.
        done: Whether the table already holds this job on this source.
        steps: The steps and their settings, in words.
        version: Current version of the table; None if there is none.
    """

    run: str
    shards: int
    source_bytes: int
    rows: int
    rows_exact: bool
    units: int
    units_done: int
    unit_rows: int
    steps: tuple[str, ...]
    version: int | None
    done: bool
    left_out: tuple[LeftOut, ...] = ()
    dialects: tuple[DialectUse, ...] = ()


def plan_curation(job: Curation) -> CurationPlan:
    """Return what a curation has to do.

    Raises:
        VectideError: the job, the source, a model or the table is not right; see `pipeline.curate.context.resolve`.
    """
    context = resolve(job, NullReporter())
    units, state = context.units(), context.state
    steps = []
    for step in job.steps:
        settings = step.settings.model_dump(mode="json", exclude_none=True)
        steps.append(", ".join([step.name, *(f"{key} {value}" for key, value in settings.items())]))
    return CurationPlan(
        run=context.run_name(),
        shards=len(context.shards),
        source_bytes=sum(shard.size_bytes for shard in context.shards),
        rows=sum(unit.rows for unit in units),
        rows_exact=all(unit.rows_exact for unit in units),
        units=len(units),
        units_done=len(finished(units, context.read)),
        unit_rows=context.unit_rows,
        steps=tuple(steps),
        version=None if state is None else state.version,
        done=state is not None and Ledger(context.url, state.run).holds(context.content),
        left_out=context.left_out,
        dialects=context.survey.dialects,
    )
