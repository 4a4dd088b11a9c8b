"""Section: the embedding spec that made the vectors."""

from __future__ import annotations

import json

from pipeline.report.blocks import Section, Table
from pipeline.report.measure import Report


def lineage(report: Report) -> Section | None:
    """Return the section; None if the run made no vectors."""
    spec = report.get("lineage")
    if not spec:
        return None
    rows = [
        (name, (value or "empty") if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in spec.items()
    ]
    rows = [("fingerprint", report["fingerprint"]), *rows]
    lead = "Everything that determines a vector. It is in the table's schema and in the footer of every file too."
    return Section("lineage", "Lineage", [Table((), rows)], lead)
