"""Runs the steps, each at two sizes, and writes the page. Called by `python -m benchmarks scale`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.race import machine
from benchmarks.race.peers import ROOT

Facts = dict[str, Any]


def run_step(step: str, table: Path, count: int) -> Facts:
    """One step in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale.steps", step, str(table), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not answers:  # after its answer, the exit code is that of the libraries
        raise SystemExit(f"{step} of {count}: {(done.stderr.strip() or done.stdout.strip())[-2000:]}")
    return dict(json.loads(answers[-1].removeprefix("RESULT ")))


def measure(
    folder: Path,
    *,
    units: int,
    files: int,
    ids: int,
    rows: int,
    driver_units: int,
    print_progress: Callable[[str], None],
) -> dict[str, dict[int, Facts]]:
    """Every step at a tenth of its size and at its size."""
    found: dict[str, dict[int, Facts]] = {}

    def step(name: str, count: int, place: str, label: str | None = None, size: int | None = None) -> None:
        print_progress(f"{label or name}: {count:,}")
        facts = run_step(name, folder / place, count)
        found.setdefault(label or name, {})[size or count] = facts

    for count in (units // 10, units):
        shutil.rmtree(folder, ignore_errors=True)
        step("plan", count, "plan")
        step("prepare", count * 99 // 100, "plan")
        step("resume", count, "plan")
        for digests in (folder / "plan" / "_vectide" / "runs" / "0123456789abcdef" / "plans").glob("*/digests"):
            shutil.rmtree(digests)
        step("resume", count, "plan", "resume without digests")
    for count in (files // 10, files):
        shutil.rmtree(folder, ignore_errors=True)
        step("prepare", count, "publish")
        step("prepare_files", count, "publish")
        step("publish", count, "publish")
    for name, full in (("unique", ids), ("rows", rows), ("driver", driver_units)):
        for count in (full // 10, full):
            shutil.rmtree(folder, ignore_errors=True)
            step(name, count, name)
    shutil.rmtree(folder, ignore_errors=True)
    return found


NAMES = {
    "plan": "Cut and freeze a plan of so many units",
    "resume": "Find out what is left of a plan of so many units, 99 % of them done",
    "resume without digests": "The same where no driver left digests",
    "publish": "Publish so many files, one a unit",
    "unique": "Look for ids that two units have, among so many rows",
    "rows": "A whole backfill of so many rows, a tiny model in one process",
    "driver": "A backfill on Ray of so many units of one row",
}


def markdown(found: dict[str, dict[int, Facts]], *, command: str, date: str) -> str:
    """The page."""
    lines = [
        "# How the driver scales, on one machine",
        "",
        machine.written(command, date),
        "",
        f"- Hardware: {machine.hardware()}; load averages {machine.load()}",
        f"- Versions: {machine.versions('ray', 'deltalake', 'pyarrow', 'torch')}",
        "",
        (
            "Real code on a local disk: the plan, the ledger, Delta Lake. Receipts and data files are made up where a million "
            "units would take weeks to encode. Each step runs in a process of its own. Processor seconds are what to compare: "
            "other work on the machine does not change them. `x` is how many times as much ten times the size took."
        ),
        "",
    ]
    for step, title in NAMES.items():
        if step in found:
            lines += [f"## {title}", "", *_table(found[step]), ""]
    return "\n".join(lines)


def _table(sizes: dict[int, Facts]) -> list[str]:
    (small, first), (large, last) = sorted(sizes.items())
    lines = [f"| | {small:,} | {large:,} | x |", "|---|---:|---:|---:|"]

    def row(name: str, one: float, ten: float, unit: str) -> None:
        times = f"{ten / one:.1f}" if one else ""
        lines.append(f"| {name} | {one:,.10g} {unit} | {ten:,.10g} {unit} | {times} |")

    for kind, unit in (("seconds", "s"), ("processor_s", "s of processor")):
        for name, spent in last.get(kind, {}).items():
            row(name, first[kind][name], spent, unit)
    for name, peak in last.get("peak_mib", {}).items():
        row(f"peak memory after: {name}", first["peak_mib"][name], peak, "MiB")
    for name, value in last.items():
        if not isinstance(value, dict):
            row(name, first[name], value, "")
    return lines
