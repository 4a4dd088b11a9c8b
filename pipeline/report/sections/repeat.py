"""Section: the command that repeats the run."""

from __future__ import annotations

from pipeline.report.blocks import Code, Section
from pipeline.report.measure import Report


def repeat(report: Report) -> Section | None:
    """Return the section; None if the command is not known."""
    if not report["command"]:
        return None
    return Section(
        "repeat", "Repeat it", [Code(report["command"])], "The command, with each key that is not the default."
    )
