"""Section: the files that the run wrote, by size and by partition."""

from __future__ import annotations

from actors.quantities import format_bytes
from pipeline.report.blocks import Bar, Chart, Section, Table, Tile, Tiles
from pipeline.report.measure import Report

_FEW = 8  # files that need no chart


def files(report: Report) -> Section | None:
    """Return the section; None if the run wrote no file."""
    written = report.get("files")
    if written is None or not written["files"]:
        return None
    size_bytes, rows = written["size_bytes"], max(written["rows"], 1)
    spread = f"{format_bytes(written['smallest_bytes'])} to {format_bytes(written['largest_bytes'])}"
    tiles = [
        Tile("files", f"{written['files']:,}", spread),
        Tile("size", format_bytes(size_bytes), f"{size_bytes / rows:,.0f} bytes a row"),
    ]
    if written["merged"]:
        tiles.append(Tile("small files merged", f"{written['merged']:,}", "before the commit"))
    blocks: list[Tiles | Chart | Table] = [Tiles(tiles)]
    if written["files"] > _FEW:
        first = next(number for number, count in enumerate(written["sizes"]) if count)
        bars = [
            Bar(
                count,
                format_bytes(1 << number),
                f"{count:,} files of {format_bytes(1 << number)} to {format_bytes(2 << number)}",
            )
            for number, count in enumerate(written["sizes"])
            if number >= first
        ]
        blocks.append(Chart("number of files by size", bars, "files", "size of a file, from"))
    partitions = written["partitions"]
    if partitions["count"]:
        largest = partitions["largest"]
        names = tuple(largest[0]["values"])
        table = [
            (
                *("null" if part["values"][name] is None else part["values"][name] for name in names),
                f"{part['rows']:,}",
                f"{part['files']:,}",
                format_bytes(part["size_bytes"]),
            )
            for part in largest
        ]
        more = partitions["count"] - len(largest)
        note = f"the {len(largest)} largest; {more:,} more" if more else ""
        numbers = frozenset(range(len(names), len(names) + 3))
        blocks.append(Table((*names, "rows", "files", "size"), table, numbers, note))
    return Section("files", "Files", blocks)
