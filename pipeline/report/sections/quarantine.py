"""Section: quarantined rows by reason, with samples."""

from __future__ import annotations

import re
from typing import Any

from pipeline.report.blocks import Section, Share, Shares, Table, Text, percent
from pipeline.report.measure import Report

_WILDCARD = re.compile(r"[*?\[]")


def quarantine(report: Report) -> Section | None:
    """Return the section; None if the run has no plan or reads no source."""
    found, totals = report.get("quarantine"), report.get("totals")
    if found is None or totals is None or (report.get("source") is None and not found["reasons"]):
        return None
    title = "Quarantined rows"
    if not found["reasons"]:
        return Section("quarantine", title, [Text("No row was quarantined.", tone="good")])
    rows = sum(found["reasons"].values())
    shares = [Share(reason, count, f"{count:,} · {percent(count, rows)}") for reason, count in found["reasons"].items()]
    samples = [
        (
            row["reason"],
            _place(row, report),
            "" if row["id"] is None else row["id"],
            row["error"],
        )
        for row in found["samples"]
    ]
    note = f"vectide quarantine {report['table']} --run {report['run']} lists all {rows:,}"
    blocks: list[Shares | Table | Text] = [Shares(shares), Table(("reason", "row", "id", "error"), samples, note=note)]
    if found["carried"]:
        blocks.append(Text(f"{found['carried']:,} of them are in source files that this run did not read again."))
    return Section(
        "quarantine", title, blocks, "Rows of the source without a vector, by reason, and the first of each."
    )


def _place(row: dict[str, Any], report: Report) -> str:
    """Return shard and position of a row; the shard is below the folder of the source. A position of -1 is unknown."""
    uri = str((report.get("source") or {}).get("uri", ""))
    folder = uri.rstrip("/") if _WILDCARD.search(uri) is None else _WILDCARD.split(uri)[0].rpartition("/")[0]
    shard = str(row["shard"]).removeprefix(f"{folder}/")
    return shard if row["position"] < 0 else f"{shard} at {row['position']:,}"
