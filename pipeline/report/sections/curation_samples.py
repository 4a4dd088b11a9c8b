"""Section: rows that each step of a curation dropped, drawn by a hash of their ids."""

from __future__ import annotations

from typing import Any

from pipeline.report.blocks import Section, Table
from pipeline.report.measure import Report


def curation_samples(report: Report) -> Section | None:
    """Return the section; None if the report is not of a curation, or it dropped nothing."""
    found = report.get("curation")
    if found is None:
        return None
    dropped = {step["name"]: step["dropped"] for step in found["steps"]}
    blocks = [_table(step, rows, dropped[step]) for step, rows in found["samples"].items() if rows]
    if not blocks:
        return None
    lead = "Rows are drawn by a hash of their ids, so the same table has the same samples. Long texts are cut."
    return Section("samples", "Samples of what was dropped", blocks, lead)


def _table(step: str, rows: list[dict[str, Any]], dropped: int) -> Table:
    texts = [name for name in rows[0] if name != "measures" and any(row[name] is not None for row in rows)]
    measures = [name for name in rows[0]["measures"] if any(row["measures"][name] is not None for row in rows)]
    cells = [
        [*(_cell(row[name]) for name in texts), *(_cell(row["measures"][name]) for name in measures)] for row in rows
    ]
    columns = [*texts, *(name.replace("_", " ") for name in measures)]
    return Table(columns, cells, note=f"{step}: {len(rows):,} of {dropped:,} rows that it dropped")


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
