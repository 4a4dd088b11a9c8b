"""Printing that several commands share. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from actors.quantities import counted, format_bytes

if TYPE_CHECKING:
    from pipeline.execute.progress import Outcome, Reporter
    from pipeline.job.config import Job
    from pipeline.table.versions import Version

_PIPE_COLUMNS = 1_000  # wide enough that no table cell is cut where stdout is not a terminal
# A table with this many small files is slow to read.
_MANY_FILES = 100
_SMALL_FILE_BYTES = 1 << 20


def error(message: str) -> None:
    """Print an error message on stderr."""
    print(f"error: {message}", file=sys.stderr)


def console() -> Console:
    """Return a console for results. It prints brackets as they are, and does not wrap lines."""
    return Console(markup=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def as_json(result: Any) -> None:
    """Print a dataclass, or a sequence of dataclasses, as JSON."""
    value = (
        [dataclasses.asdict(item) for item in result] if isinstance(result, Sequence) else dataclasses.asdict(result)
    )
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def run_pipeline(pipeline: Callable[[Job, Reporter], Outcome], job: Job) -> None:
    """Run a pipeline that writes a table, show its progress, and print its outcome."""
    from jobs.progress import reporter

    with reporter() as progress:
        outcome = pipeline(job, progress)
    print_outcome(outcome)


def print_outcome(outcome: Outcome) -> None:
    """Print the outcome of a backfill or a refresh."""
    for left_out in outcome.left_out:
        print(f"left out: {left_out.sentence()}")
    for check in outcome.checks:
        print(f"compared the new vectors with the old ones: {check}")
    if outcome.staged:
        print(
            f"built and not published: {outcome.rows:,} rows of {outcome.table} are ready as run {outcome.run}, "
            f"{outcome.encoded:,} encoded; the same command without --no-publish publishes it"
        )
        return
    if not outcome.published:
        print(
            f"nothing left to do: {outcome.table} already holds this run ({outcome.run}) as version {outcome.version}"
        )
        return
    print(
        f"published version {outcome.version} of {outcome.table}: {counted(outcome.rows, 'row')} from "
        f"{counted(outcome.rows_read, 'source row')} ({outcome.quarantined:,} quarantined, {outcome.encoded:,} encoded), "
        f"{counted(outcome.tokens, 'token')}, {counted(outcome.units, 'unit')}"
    )
    if outcome.rows_kept:
        kept = counted(outcome.rows_kept, "more row")
        print(f"these counts are of the files that changed; files with {kept} stay as they are")
    stages = ", ".join(
        f"{stage} {outcome.seconds.get(stage, 0.0):.1f} s" for stage in ("read", "tokenize", "encode", "write")
    )
    padding = outcome.padding / max(outcome.tokens + outcome.padding, 1)
    print(
        f"{format_bytes(outcome.size_bytes)} in {counted(outcome.files, 'file')}; all workers together: {stages}; "
        f"padding {padding:.1%}"
    )
    if outcome.files >= _MANY_FILES and outcome.size_bytes < outcome.files * _SMALL_FILE_BYTES:
        file_size = format_bytes(outcome.size_bytes / outcome.files)
        print(f"files of {file_size} on average are slow to read: vectide compact {outcome.table}")
    if outcome.truncated:
        print(f"{outcome.truncated:,} texts were longer than encoder.max_tokens and were truncated")
    if outcome.animated:
        print(f"{counted(outcome.animated, 'picture')} of several frames: the first frame is embedded")
    if outcome.unconverted:
        print(
            f"{counted(outcome.unconverted, 'picture')} with a colour profile that cannot be used: embedded as stored"
        )
    if outcome.quarantined:
        print(f"to list the quarantined rows with reasons: vectide quarantine {outcome.table}")
    if outcome.deaths:
        print(f"{outcome.deaths} worker processes died during the run")


def print_versions(versions: Sequence[Version]) -> None:
    """Print versions of a table as a table, and below it their models, whose paths may be long."""
    names = ("version", "time (UTC)", "operation", "rows", "files", "run")
    table = Table(*(Column(name, no_wrap=True) for name in names), box=box.SIMPLE)
    for version in versions:
        counts = ["" if count is None else f"{count:,}" for count in (version.rows, version.files)]
        time = version.time[:16].replace("T", " ")
        table.add_row(str(version.number), time, version.operation, *counts, version.run or "")
    console().print(table)
    known = [version for version in versions if version.model]
    # Versions of one model have several of them where, for example, some were made with an adapter.
    several = len({version.fingerprint for version in known}) > 1
    for (model, fingerprint), group in groupby(known, lambda version: (version.model, version.fingerprint)):
        numbers = [version.number for version in group]
        which = f"version {numbers[0]}" if len(numbers) == 1 else f"versions {numbers[-1]} to {numbers[0]}"
        spec = f", embedding spec {fingerprint[:8]}" if several and fingerprint else ""
        console().print(f"model of {which}: {model}{spec}")
