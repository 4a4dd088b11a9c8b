"""Commands on a table that is there: `versions`, `rollback`, `diff`, `changes`, `compact`, `vacuum`.

Part of the command line (`jobs/cli.py`); the same exit codes. None of them needs the job file or the model.
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from actors.errors import ConfigError
from jobs import output

Table = Annotated[str, typer.Argument(metavar="TABLE", help="URI of the table.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

_SIZES = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def versions(table: Table, json: AsJson = False) -> None:
    """Every version that the table's log remembers: what made it, how many rows it has, with which model."""
    from pipeline.table.versions import versions as read

    output.versions(read(table), as_json=json)


def rollback(
    table: Table, to: Annotated[int, typer.Option(min=0, metavar="VERSION", help="The version to go back to.")]
) -> None:
    """Put an old version back at once, as a new version: no row is copied or encoded."""
    from pipeline.table.versions import rollback as run

    output.rolled_back(run(table, to))


def diff(
    table: Table,
    old: Annotated[int, typer.Argument(metavar="A", min=0, help="The version to compare with.")],
    new: Annotated[int, typer.Argument(metavar="B", min=0, help="The version to compare.")],
    json: AsJson = False,
) -> None:
    """How many rows were added, changed and removed from version A to version B."""
    from pipeline.table.diff import diff as run

    output.difference(run(table, old, new), as_json=json)


def changes(
    table: Table,
    since: Annotated[int, typer.Option(min=0, metavar="VERSION", help="The version that the index has.")],
    out: Annotated[str, typer.Option(metavar="URI", help="An empty folder to write to.")],
    json: AsJson = False,
) -> None:
    """What a vector index must upsert and delete to follow the table since a version, as Parquet."""
    from pipeline.table.changes import changes as run

    output.changes(run(table, since, out), as_json=json)


def compact(
    table: Table,
    target: Annotated[str, typer.Option(metavar="SIZE", help="Size of the files to make.")] = "128MiB",
    address: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to do it, as run.address of a job.")] = "auto",
) -> None:
    """Put many small files together into few large ones; no row changes."""
    from jobs.progress import reporter
    from pipeline.run.compact import compact as run

    with reporter() as told:
        done = run(table, told, target_bytes=bytes_of(target), address=address)
    output.compacted(done)


def vacuum(
    table: Table,
    keep: Annotated[str, typer.Option(metavar="TIME", help="How far back versions stay readable.")] = "7d",
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Take runs too that were begun and given up before that.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: AsJson = False,
) -> None:
    """Remove files that no version of the time that is kept needs, and no run that may go on."""
    from pipeline.cluster.watch import seconds_of
    from pipeline.table.vacuum import vacuum as run

    keep_s = 0.0 if keep.strip() == "0" else seconds_of(keep, option="--keep")
    output.vacuumed(run(table, keep_s, unfinished=unfinished, dry_run=dry_run), as_json=json)


def bytes_of(text: str) -> int:
    """A size as a person writes it: 128MiB, 1GB, 65536.

    Raises:
        ConfigError: it is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _SIZES or float(match.group(1)) == 0:
        raise ConfigError(f"--target {text!r} must be a size above 0, as in 128MiB, 1GB or 65536")
    return int(float(match.group(1)) * _SIZES[unit])
