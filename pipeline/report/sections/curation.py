"""Section: what each step of a curation saw and dropped, by step, source and language, and the verdicts that changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actors.quantities import counted
from pipeline.report.blocks import Section, Share, Shares, Table, Text, Tile, Tiles, percent
from pipeline.report.measure import Report

Block = Tiles | Table | Text | Shares


def curation(report: Report) -> Section | None:
    """Return the section; None if the report is not of a curation, or it has not decided."""
    found = report.get("curation")
    if found is None:
        return None
    steps = found["steps"]
    kept = found["rows"] - sum(step["dropped"] for step in steps)
    tiles = [Tile("rows", f"{found['rows']:,}", "of the source, without quarantined ones")]
    tiles += [
        Tile(step["name"], f"-{step['dropped']:,}" if step["dropped"] else "0", percent(step["dropped"], step["rows"]))
        for step in steps
    ]
    tiles.append(Tile("kept", f"{kept:,}", percent(kept, found["rows"])))
    rows = [
        (
            step["name"],
            *(f"{count:,}" for count in (step["rows"], step["dropped"], step["rows"] - step["dropped"])),
            percent(step["dropped"], step["rows"]),
        )
        for step in steps
    ]
    names = [step["name"] for step in steps]
    blocks: list[Block] = [
        Tiles(tiles, flow=True),
        Table(("step", "rows in", "dropped", "rows out", "dropped of rows in"), rows, frozenset(range(1, 5))),
    ]
    sources = found["sources"]
    if len(sources) > 1 or any(each["value"] is not None for each in sources):
        notes = (found["sources_not_shown"], "not shown"), (found["sources_with_one_row"]["count"], "with one row")
        note = "; ".join(f"{counted(count, 'source')} {what}" for count, what in notes if count)
        blocks.append(by_verdict("source", sources, names, note))
    changes = found["changes"]
    if changes is not None:
        blocks += _changes(changes)
    lead = "A step sees the rows that all steps before it kept. Every row of the source is in the table."
    return Section("curation", "What each step dropped", blocks, lead)


def by_verdict(what: str, values: Sequence[Mapping[str, Any]], steps: Iterable[str], note: str) -> Table:
    """Return a table of the rows of each value: all, those that each step dropped, those kept."""
    dropped = [step for step in steps if any(step in each["rows"] for each in values)]
    rows = []
    for each in values:
        all_rows = sum(each["rows"].values())
        counts = [all_rows, *(each["rows"].get(verdict, 0) for verdict in (*dropped, "kept"))]
        name = "(none)" if each["value"] is None else str(each["value"])
        rows.append((name, *(f"{count:,}" for count in counts), percent(counts[-1], all_rows)))
    columns = (what, "rows", *dropped, "kept", "kept of rows")
    notes = ["a step's column counts the rows that it dropped" if dropped else "", note]
    return Table(columns, rows, frozenset(range(1, len(columns))), "; ".join(filter(None, notes)))


def _changes(changes: Mapping[str, Any]) -> Iterable[Block]:
    """Yield what changed since the version before."""
    changed = changes["changed"]
    yield Text(
        f"Since version {changes['since']}: {changes['new_rows']:,} rows are new, {changes['gone_rows']:,} are gone, and "
        f"{sum(change['rows'] for change in changed):,} old verdicts changed."
    )
    if changed:
        yield Shares([Share(f"{each['was']} -> {each['is']}", each["rows"], f"{each['rows']:,}") for each in changed])
        rows = [(each["was"], each["is"], ", ".join(map(str, each["ids"]))) for each in changed]
        yield Table(("was", "is", "ids of the first"), rows)
