"""Section: what a mining of hard negatives found, and how near the negatives are."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.report.blocks import Bar, Chart, Section, Share, Shares, Table, Text, Tile, Tiles
from pipeline.report.measure import Report


def mining(report: Report) -> Section | None:
    """Return the section; None if the report is not of a mining."""
    found = report.get("mining")
    if found is None:
        return None
    note = f"{found['full']:,} with all that were asked for"
    tiles = [
        Tile("pairs", f"{found['pairs']:,}", f"{found['queries']:,} queries"),
        Tile("rows near them", f"{found['candidates']:,}", f"of {found['table']}, version {found['version']}"),
        Tile("negatives", f"{found['negatives']:,}", f"of {found['rows']:,} pairs, {note}"),
    ]
    blocks: list[Tiles | Chart | Shares | Table | Text] = [Tiles(tiles, flow=True)]
    if left_out := list(_left_out(report)):
        blocks.append(Table(("left out", "pairs"), left_out, frozenset({1})))
    if found["removed"]:
        blocks += [Text("Rows that a threshold removed", tone="heading")]
        blocks += [Shares([Share(name, count, f"{count:,}") for name, count in found["removed"].items()])]
    bars = [Bar(count, gap, f"from {gap}: {count:,}") for gap, count in found["gaps"].items()]
    title = "Negatives by the score of the positive minus theirs"
    blocks += [Text(title, tone="heading"), Chart(title, bars, "negatives", "least difference")]
    return Section("mining", "Hard negatives", blocks, "If most differences are large, the negatives are too easy.")


def _left_out(report: Report) -> Iterator[tuple[str, str]]:
    found = report["mining"]
    yield from ((str(reason), f"{count:,}") for reason, count in found["bad"].items())
    reasons = (("the passage is not in the table", found["missing"]), ("no negative is left", found["without"]))
    yield from ((reason, f"{count:,}") for reason, count in reasons if count)
