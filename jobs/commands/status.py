"""`vectide status`: the state of a table and of its runs, or of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import table as rich_table

from actors.arguments import need_place
from actors.quantities import format_bytes
from jobs import output
from jobs.options import AsJson, Table

if TYPE_CHECKING:
    from pipeline.table.status import Status


def status(table: Table, json: AsJson = False) -> None:
    """Show versions, rows, files, lineage, unfinished runs and quarantined rows of a table, or the state of a training."""
    from pipeline.table.status import status as read
    from pipeline.train.state import state_of

    if (training := state_of(need_place(table, "table"))) is not None:
        output.as_json(training) if json else print(f"{training.out}: {training.words()}")
        return
    table_status = read(table)
    if json:
        output.as_json(table_status)
    else:
        _print(table_status)


def _print(status: Status) -> None:
    console = output.console()
    if status.version is None:
        console.print(f"{status.table}: nothing published yet")
    else:
        console.print(
            f"{status.table}: version {status.version}, {status.rows:,} rows, {status.files:,} files, "
            f"{format_bytes(status.size_bytes)}"
        )
        console.print(f"fingerprint {status.fingerprint}")
        for name, value in status.lineage.items():
            if value is not None:
                console.print(f"  {name}: {value}")
        if status.foreign is not None:
            console.print(
                f"{status.foreign}; decide with `vectide refresh --foreign-commits keep` or `--foreign-commits restore`"
            )
        output.print_versions(status.versions)
    runs = rich_table.Table("run", "units", "rows", "quarantined", "state")
    for run in status.runs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in run.reasons.items())
        state = f"published as version {run.version}" if run.version is not None else "unfinished"
        if run.fingerprint is None:
            state = "not planned"
        if run.published and run.version is None:
            state = "published; the log no longer has the version"
        quarantined = f"{run.quarantined:,}" + (f" ({reasons})" if reasons else "")
        runs.add_row(run.run, f"{run.units_done}/{run.units}", f"{run.rows_done:,}/{run.rows:,}", quarantined, state)
    console.print(runs)
