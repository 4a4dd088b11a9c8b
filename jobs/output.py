"""Prints outcomes: tables and sentences for people, JSON for programs.

Used by the commands only. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from pipeline.cluster.doctor import Finding
    from pipeline.execute.progress import Outcome
    from pipeline.run.compact import Compacted
    from pipeline.run.estimate import Estimate
    from pipeline.search.search import Hit
    from pipeline.table.changes import Changes
    from pipeline.table.diff import Difference
    from pipeline.table.status import Status
    from pipeline.table.vacuum import Vacuumed
    from pipeline.table.versions import RolledBack, Version

_SHOWN_CHARACTERS = 160
_PIPE_COLUMNS = 1_000  # where no terminal has an edge, no cell is cut
# From here on a reader of the table spends its time on opening files.
_MANY_FILES = 100
_SMALL_FILE_BYTES = 1 << 20
_MARKS = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}


def error(message: str) -> None:
    """One message for a person, on stderr."""
    print(f"error: {message}", file=sys.stderr)


def console() -> Console:
    """Where results for a person go: a name with brackets is a name and no markup, and no line is broken in two."""
    return Console(markup=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def as_json(found: Any) -> None:
    """Anything that a pipeline hands out, for a program."""
    _print_json(_plain(found))


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value)


def size(size_bytes: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:,.0f} {unit}" if unit == "B" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} TiB"


def duration(seconds: float) -> str:
    """A time for a person."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def outcome(found: Outcome) -> None:
    """What a backfill or a refresh came to."""
    for left in found.left_out:
        print(f"left out: {left.sentence()}")
    for check in found.checks:
        print(f"the new generation was compared with the old one: {check}")
    if found.staged:
        print(
            f"built and not published: {found.rows:,} rows of {found.table} are ready as run {found.run}, "
            f"{found.encoded:,} texts encoded; the same command without --no-publish publishes it"
        )
        return
    if not found.published:
        print(f"nothing left to do: {found.table} already holds this run ({found.run}) as version {found.version}")
        return
    print(
        f"published version {found.version} of {found.table}: {found.rows:,} rows from {found.rows_read:,} source rows "
        f"({found.quarantined:,} set aside), {found.encoded:,} texts encoded, {found.tokens:,} tokens, {found.units} units"
    )
    stages = ", ".join(
        f"{stage} {found.seconds.get(stage, 0.0):.1f} s" for stage in ("read", "tokenize", "encode", "write")
    )
    padding = found.padding / max(found.tokens + found.padding, 1)
    print(f"{size(found.size_bytes)} in {found.files:,} files; all workers together: {stages}; padding {padding:.1%}")
    if found.files >= _MANY_FILES and found.size_bytes < found.files * _SMALL_FILE_BYTES:
        print(f"that is {size(found.size_bytes / found.files)} a file, slow to read: vectide compact {found.table}")
    if found.truncated:
        print(f"{found.truncated:,} texts were longer than the model takes and were cut (encoder.max_tokens)")
    if found.quarantined:
        print(f"the rows set aside, with reasons: vectide quarantine {found.table}")
    if found.deaths:
        print(f"{found.deaths} worker processes died on the way")


def hits(found: Sequence[Hit], *, as_json: bool) -> None:
    """What a search found."""
    if as_json:
        _print_json([_plain(hit) for hit in found])
        return
    shown = console()
    if not found:
        shown.print("no rows")
    for rank, hit in enumerate(found, 1):
        shown.print(f"{rank:>3}  {hit.score:.3f}  {hit.id}")
        for name, value in hit.columns.items():
            if value is None or name == "tokens" or name.startswith("_"):
                continue
            text = " ".join(str(value).split())
            cut = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
            shown.print(f"            {name}: {cut}")


def status(found: Status, *, as_json: bool) -> None:
    """The state of a table."""
    if as_json:
        _print_json(_plain(found))
        return
    shown = console()
    if found.version is None:
        shown.print(f"{found.table}: nothing published yet")
    else:
        shown.print(
            f"{found.table}: version {found.version}, {found.rows:,} rows, {found.files:,} files, "
            f"{size(found.size_bytes)}"
        )
        shown.print(f"fingerprint {found.fingerprint}")
        for name, value in found.lineage.items():
            if value is not None:
                shown.print(f"  {name}: {value}")
        if found.foreign is not None:
            shown.print(f"{found.foreign}; `vectide refresh --foreign-commits keep` or `restore` decides about it")
        _print_versions(found.versions)
    runs = Table("run", "units", "rows", "set aside", "state")
    for run in found.runs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in run.reasons.items())
        state = f"published as version {run.version}" if run.version is not None else "unfinished"
        if run.published and run.version is None:
            state = "published; the log no longer says as which version"
        aside = f"{run.quarantined:,}" + (f" ({reasons})" if reasons else "")
        runs.add_row(run.run, f"{run.units_done}/{run.units}", f"{run.rows_done:,}/{run.rows:,}", aside, state)
    shown.print(runs)


def _print_versions(found: Sequence[Version]) -> None:
    names = ("version", "time (UTC)", "operation", "rows", "files", "model", "run")
    # Where a terminal is too narrow, the model's name goes over several lines.
    columns = [Column(name, no_wrap=name != "model", overflow="fold", min_width=len(name)) for name in names]
    table = Table(*columns, box=box.SIMPLE)
    for version in found:
        counts = ["" if count is None else f"{count:,}" for count in (version.rows, version.files)]
        model = (version.model or "").rstrip("/").rsplit("/", 1)[-1]
        table.add_row(
            str(version.number),
            version.time[:16].replace("T", " "),
            version.operation,
            *counts,
            model,
            version.run or "",
        )
    console().print(table)


def versions(found: Sequence[Version], *, as_json: bool) -> None:
    """The versions of a table, newest first."""
    if as_json:
        _print_json([_plain(version) for version in found])
        return
    _print_versions(found)


def rolled_back(found: RolledBack) -> None:
    """What a rollback did."""
    if found.files_added == found.files_removed == 0:
        print(f"nothing to do: {found.table} holds the rows of version {found.restored} already")
        return
    print(
        f"published version {found.version} of {found.table}: the {found.rows:,} rows of version {found.restored} again. "
        f"The next refresh makes the table what its job says: put the job file back too"
    )


def difference(found: Difference, *, as_json: bool) -> None:
    """How two versions differ."""
    if as_json:
        _print_json(_plain(found))
        return
    print(f"{found.table}, version {found.old} to {found.new}: ", end="")
    print(f"{found.added:,} rows added, {found.changed:,} changed, {found.removed:,} removed")
    if found.embedding_spec_changed:
        print("the vectors of the two were made with different models or settings")


def changes(found: Changes, *, as_json: bool) -> None:
    """What was written for an index."""
    if as_json:
        _print_json(_plain(found))
        return
    print(
        f"{found.upserts:,} upserts and {found.deletes:,} deletes from version {found.since} to {found.version}: {found.out}"
    )
    if found.embedding_spec_changed:
        print("the vectors were made with another model or setting: an index must not mix them with those that it has")


def compacted(found: Compacted) -> None:
    """What a compaction did."""
    if not found.published:
        print(f"nothing to do: {found.table} has no small files to put together")
        return
    print(
        f"published version {found.version} of {found.table}: {found.files_before:,} files are {found.files_after:,} now "
        f"({found.rows:,} rows moved, {size(found.size_bytes)})"
    )


def vacuumed(found: Vacuumed, *, as_json: bool) -> None:
    """What a vacuum removed."""
    if as_json:
        _print_json(_plain(found))
        return
    verb = "would remove" if found.dry_run else "removed"
    print(
        f"{verb} {found.files:,} files ({size(found.size_bytes)}) and {found.runs:,} ledgers of {found.table}; "
        f"{found.versions:,} versions can be read"
    )
    if found.unfinished:
        print(
            f"{found.unfinished:,} unfinished runs keep {size(found.unfinished_bytes)}: the same job goes on with them, "
            f"and --unfinished gives them up"
        )


def estimate(found: Estimate, *, as_json: bool) -> None:
    """What a backfill would do."""
    if as_json:
        _print_json(_plain(found))
        return
    about = "" if found.rows_exact else "about "
    lines = [
        ("run", found.run or "its name is known once the source is hashed"),
        ("source", f"{found.shards:,} shards, {size(found.source_bytes)}, {about}{found.rows:,} rows"),
        ("units", f"{found.units:,} of about {found.unit_rows:,} rows ({found.units_done:,} done already)"),
        ("tokens", f"{found.tokens_per_row:,.1f} a row in a sample of {found.sampled_rows:,}, about {found.tokens:,}"),
        ("cut", f"{found.truncated_share:.1%} of the sampled texts are longer than {found.max_tokens:,} tokens"),
        ("output", f"about {size(found.output_bytes)}: {found.dim} dimensions in {found.precision}"),
        ("time", f"about {duration(found.seconds)} at {found.tokens_per_s:,.0f} tokens/s ({found.rate_basis})"),
    ]
    if found.hash_bytes:
        lines.append(
            ("verify", f"source.verify: content reads {size(found.hash_bytes)} once in each run, to hash them")
        )
    if found.untagged:
        text = f"{found.untagged:,} of {found.shards:,} shards have none: each refresh counts them as changed and reads them"
        lines.append(("tags", f"{text} again, unless source.verify is content"))
    if found.hive is not None:
        columns = [f"{each.name} ({each.type}, {each.values:,} values, {each.use})" for each in found.hive]
        lines.append(("hive", ", ".join(columns) or "no folder of the source is named name=value"))
    lines += [("read", use.sentence()) for use in found.dialects if use.worth_saying]
    if found.cost is not None:
        lines.append(("cost", f"about {found.cost:,.2f}"))
    lines += [("left out", left.sentence()) for left in found.left_out]
    for name, text in lines:
        print(f"{name:>8}  {text}")


def findings(found: Sequence[Finding], *, as_json: bool) -> None:
    """What the doctor saw, one line each."""
    if as_json:
        _print_json([_plain(finding) for finding in found])
        return
    shown = console()
    for finding in found:
        shown.print(_MARKS[finding.level], end=" ", markup=True)
        shown.print(f"{finding.what}: {finding.text}")
