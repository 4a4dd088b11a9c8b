"""Section: tokens and rows a second over the time in which units ran."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.report.blocks import Bar, Chart, Section, Tile, Tiles, duration, short
from pipeline.report.measure import Report


def throughput(report: Report) -> Section | None:
    """Return the section; None if no unit has ended."""
    series = report.get("throughput")
    if not series:
        return None
    work_s = max(sum(period["seconds"] for period in series), 1e-3)
    totals = {name: sum(sum(period[name]) for period in series) for name in ("tokens", "rows")}
    tiles = Tiles(
        (
            Tile("tokens a second", short(totals["tokens"] / work_s), "mean over the run"),
            Tile("rows a second", short(totals["rows"] / work_s), "mean over the run"),
            Tile("time in units", duration(work_s), f"in {len(series)} periods" if len(series) > 1 else ""),
        )
    )
    name = "tokens" if totals["tokens"] else "rows"
    bars = list(_bars(series, name))
    chart = Chart(f"{name} a second over time", bars, f"{name} a second", "time in which units ran")
    lead = "Rows of a unit are spread over the time since the unit before it ended, of the first over the time it took."
    if len(series) > 1:
        lead += " A dashed line marks where the run was stopped and resumed."
    return Section("throughput", "Throughput", [tiles, *([chart] if len(bars) > 1 else [])], lead)


def _bars(series: list[dict[str, Any]], name: str) -> Iterator[Bar]:
    passed_s = 0.0
    for period in series:
        for number, count in enumerate(period[name]):
            since_s = number * period["step_s"]
            width_s = max(min(period["step_s"], period["seconds"] - since_s), 1e-3)
            hint = f"{short(count / width_s)} {name} a second, {duration(passed_s + since_s)} after the start"
            yield Bar(count / width_s, duration(passed_s + since_s), hint, breaks=number == 0 and passed_s > 0)
        passed_s += period["seconds"]
