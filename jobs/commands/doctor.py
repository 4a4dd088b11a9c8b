"""`vectide doctor`: checks a machine or a cluster before a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from jobs import output
from jobs.options import AsJson, JobFile, Settings, load_any

if TYPE_CHECKING:
    from pipeline.cluster.doctor import Finding

_LEVEL_MARKUP = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}


def doctor(job: JobFile = None, settings: Settings = None, json: AsJson = False) -> None:
    """Check this machine or cluster: storage, model, GPUs, memory, processor, Ray."""
    from pipeline.cluster.doctor import examine

    loaded = load_any(job, settings) if job or settings else None
    findings = examine(loaded)
    if json:
        output.as_json(findings)
    else:
        _print(findings)
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


def _print(findings: Sequence[Finding]) -> None:
    console = output.console()
    for finding in findings:
        console.print(_LEVEL_MARKUP[finding.level], end=" ", markup=True)
        console.print(f"{finding.what}: {finding.text}")
