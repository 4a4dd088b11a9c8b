"""`vectide curate`: filters pairs or documents, with a verdict for each row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from actors.quantities import counted
from jobs import output
from jobs.options import AsJson, JobFile, Settings
from jobs.terminal import visible

if TYPE_CHECKING:
    from pipeline.curate.run import Curated
    from pipeline.curate.steps.base import StepCount
    from pipeline.curate.view import View


def curate(
    job: JobFile = None,
    settings: Settings = None,
    view: Annotated[
        bool,
        typer.Option("--view", help="Print the SQL condition of stricter thresholds and its counts; write nothing."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Filter pairs or documents into a table with a verdict for each row. The same command resumes what was stopped."""
    from pipeline.job.load import load_curation

    loaded = load_curation(job, settings=settings or ())
    if view:
        from pipeline.curate.view import view as run_view

        seen = run_view(loaded)
        output.as_json(seen) if json else _print_view(seen)
        return
    from jobs.progress import reporter
    from pipeline.curate.run import curate as run

    with reporter() as progress:
        curated = run(loaded, progress)
    output.as_json(curated) if json else _print(curated)


def _print(curated: Curated) -> None:
    for left_out in curated.left_out:
        print(f"left out: {left_out.sentence()}")
    if not curated.published:
        print(
            f"nothing left to do: {curated.table} already holds this job on this source ({curated.run}) as version "
            f"{curated.version}"
        )
    else:
        print(
            f"published version {curated.version} of {curated.table}: {counted(curated.rows, 'row')} from "
            f"{counted(curated.rows_read, 'source row')} ({curated.quarantined:,} quarantined), {curated.kept:,} kept; "
            f"{counted(curated.units_read, 'unit')} read"
        )
    _print_steps(curated.steps)
    _print_changes(curated)
    single = curated.evidence["sources_with_one_row"]
    if single["count"]:
        first = ", ".join(visible(str(name)) for name in single["first"])
        print(
            f"{counted(single['count'], 'source')} with one row each, such as {first}: is source_column the right one?"
        )
    if curated.quarantined:
        print(f"to list the quarantined rows with reasons: vectide quarantine {curated.table}")


def _print_steps(steps: Iterable[StepCount]) -> None:
    for step in steps:
        print(f"  {step.name}: {step.rows:,} in, {step.dropped:,} dropped, {step.rows - step.dropped:,} out")


def _print_changes(curated: Curated) -> None:
    changes = curated.evidence["changes"]
    if changes is None or not curated.published:
        return
    counts = f"{counted(changes['new_rows'], 'new row')}, {changes['gone_rows']:,} gone"
    changed = sum(change["rows"] for change in changes["changed"])
    print(f"since version {changes['since']}: {counts}, {counted(changed, 'old verdict')} changed")
    for change in changes["changed"]:
        ids = ", ".join(visible(each) for each in change["ids"])
        print(
            f"  {change['was']} -> {change['is']}: {change['rows']:,} ({ids}{', ...' * (change['rows'] > len(change['ids']))})"
        )


def _print_view(view: View) -> None:
    print(f"of {counted(view.rows, 'row')} of {view.table} (version {view.version}), {view.kept:,} would be kept")
    _print_steps(view.steps)
    print(f"the kept rows, as an SQL condition:\n{view.condition}")
