"""Section: what the run read, and what it wrote."""

from __future__ import annotations

from actors.quantities import counted, format_bytes
from pipeline.report.blocks import Section, Table, Text, Tile, Tiles, percent
from pipeline.report.measure import Report


def in_and_out(report: Report) -> Section | None:
    """Return the section; None if the run has no plan."""
    totals, files, source = report.get("totals"), report.get("files"), report.get("source")
    if totals is None or files is None:
        return None
    tiles = []
    if source is not None:
        note = f"{source['shards_read']:,} of them read" if source["shards_read"] != source["shards"] else "all read"
        tiles.append(Tile("source files", f"{source['shards']:,}", f"{format_bytes(source['size_bytes'])}, {note}"))
    read = totals["rows_read"]
    # A refresh rewrites table files whose rows have changed in part, and reads the other rows from there.
    where = "of source and table files, " if report["operation"] == "refresh" else ""
    done = f"{where}{totals['units']:,} of {totals['units_planned']:,} units done"
    tiles.append(Tile("rows read", f"{read:,}", done))
    quarantined = f"{totals['quarantined']:,} quarantined ({percent(totals['quarantined'], read)})"
    is_curation = report["operation"] == "curate"
    encoded = "" if is_curation else f"{totals['encoded']:,} encoded, "
    tiles.append(Tile("documents", f"{totals['documents']:,}", f"{encoded}{quarantined}"))
    chunks = " (chunks)" if totals["rows"] != totals["documents"] else ""
    sizes = f"{counted(files['files'], 'file')}, {format_bytes(files['size_bytes'])}"
    tiles.append(Tile(f"rows written{chunks}", f"{totals['rows']:,}", sizes))
    facts = [] if source is None else [("source", str(source["uri"])), ("format", str(source["format"]))]
    facts += [("table", str(report["table"]))]
    if totals["rows_kept"]:
        facts.append(("rows in files that stay as they were", f"{totals['rows_kept']:,}"))
    if totals["animated"]:
        facts.append(("pictures of several frames, of which the first is embedded", f"{totals['animated']:,}"))
    if totals["unconverted"]:
        facts.append(("pictures with a colour profile that cannot be used", f"{totals['unconverted']:,}"))
    notes = [Text(f"Left out: {sentence}", tone="warning") for sentence in report["left_out"]]
    notes += [Text(f"Read {sentence}") for sentence in report["dialects"]]
    lead = "Every row that was read has a vector or is quarantined. Known texts and pages are not encoded again."
    if is_curation:
        lead = "Every row that was read is in the table with a verdict, or is quarantined."
    return Section("in-and-out", "What went in and out", [Tiles(tiles, flow=True), Table((), facts), *notes], lead)
