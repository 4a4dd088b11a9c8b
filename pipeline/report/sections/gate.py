"""Section: the quality gate of a re-embedding."""

from __future__ import annotations

from pipeline.report.blocks import Section, Table, Text
from pipeline.report.measure import Report


def gate(report: Report) -> Section | None:
    """Return the section; None if the run is no re-embedding."""
    limits = report.get("gate")
    if limits is None:
        return None
    rows = []
    if limits["min_agreement"] is not None:
        rows.append(("smallest agreement of neighbours", f"{limits['min_agreement']:g}"))
    if limits["queries"] is not None:
        rows.append(("judged queries", str(limits["queries"])))
        rows.append(("largest drop of nDCG@10", f"{limits['max_ndcg_drop']:g}"))
    figures = [(name.replace("_", " "), f"{value:,.6g}") for name, value in (report.get("figures") or {}).items()]
    blocks = [Text(f"Measured: {check}", tone="good") for check in report["checks"]]
    if not rows:
        blocks.append(Text("The job asks for no check, so nothing was compared.", tone="warning"))
    elif not report["checks"]:
        blocks.append(Text("No check passed yet.", tone="warning"))
    tables = [
        Table((head, "value"), body) for head, body in (("measured", figures), ("limit of the job", rows)) if body
    ]
    lead = "The new vectors beside those of the current version, before the commit."
    return Section("gate", "Quality gate", [*blocks, *tables], lead)
