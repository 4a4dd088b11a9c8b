"""Section: norms of the vectors as they are stored."""

from __future__ import annotations

from pipeline.report.blocks import Section, Table, Text
from pipeline.report.measure import Report

_SLACK = 0.01  # what rounding to bfloat16 may do to a norm


def vectors(report: Report) -> Section | None:
    """Return the section; None if no norm was measured."""
    norms = report.get("norms")
    if not norms:
        return None
    rows = [
        (name, f"{norm['vectors']:,}", *(f"{norm[part]:.5f}" for part in ("least", "mean", "most")))
        for name, norm in norms.items()
    ]
    unit = all(abs(norm[part] - 1) <= _SLACK for norm in norms.values() for part in ("least", "most"))
    verdict = (
        Text("All vectors are of unit length within the rounding of storage.", tone="good")
        if unit
        else Text(
            "Some vectors are not of unit length; rows of another tool that a refresh keeps may be.", tone="warning"
        )
    )
    table = Table(("column", "vectors", "smallest norm", "mean", "largest norm"), rows, frozenset({1, 2, 3, 4}))
    return Section("vectors", "Vectors", [verdict, table])
