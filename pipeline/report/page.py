"""Renders a report as one HTML page that needs no network and runs no script.

jinja2 escapes every text, and the page's own policy forbids scripts and requests, so a text of a corpus is only shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from actors import storage
from actors.arguments import need_place
from actors.errors import ConfigError
from actors.quantities import counted, format_bytes
from pipeline.report.blocks import Tile, duration, percent, short
from pipeline.report.load import load_report
from pipeline.report.measure import Report, seconds_of
from pipeline.report.sections import SECTIONS

_TITLES = {"generation": "Re-embedding", "compact": "Compaction"}
_STATES = {"published": "good", "finished": "good", "failed": "bad"}


def render(report: Report) -> str:
    """Return the page of a report."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not needed to import vectide

    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    table = str(report["table"]).rstrip("/")
    return environment.get_template("page.html").render(
        report=report,
        name=urlsplit(table).path.rsplit("/", 1)[-1] or table,
        title=_TITLES.get(report["operation"], str(report["operation"]).capitalize()),
        tone=_STATES.get(report["state"], "fair"),
        when=_when(report),
        error=next((call["error"] for call in report["calls"][-1:] if call["error"]), None),
        tiles=list(_tiles(report)),
        sections=[section for make in SECTIONS if (section := make(report)) is not None],
    )


def render_evaluation(of: str, found: dict[str, Any]) -> str:
    """Return the page of an evaluation, which has no run and no ledger.

    Args:
        of: What was evaluated.
        found: The result as plain data.
    """
    known: Report = {"table": of, "run": "", "operation": "evaluation", "state": "finished", "version": None}
    unknown: Report = {"vectide": None, "command": "", "checks": [], "left_out": [], "dialects": [], "calls": []}
    return render(known | unknown | {"evaluation": found})


def report(table: str | Path, out: str | Path, *, run: str | None = None) -> str:
    """Write the page of a run to a path or URL, and return its URL.

    Args:
        table: URI of the table.
        out: Where to write the page.
        run: Name of the run; see `load_report`.

    Raises:
        ConfigError: there is no such table or run, or `out` is a folder.
    """
    url = storage.absolute(need_place(out, "out"))
    if storage.is_local(url) and storage.local_path(url).is_dir():
        raise ConfigError(f"out is {url!r}, which is a folder; name a file, as in report.html")
    page = render(load_report(need_place(table, "table"), run))
    storage.put(url, page.encode("utf-8", "backslashreplace"))
    return url


def _when(report: Report) -> str:
    times = [call["ended"] or call["started"] for call in report["calls"]]
    return f"{max(times)[:16].replace('T', ' ')} UTC" if times else ""


def _tiles(report: Report) -> Iterator[Tile]:
    """Yield the figures at the top of the page."""
    totals = report.get("totals")
    if totals is None:
        return
    is_published = report["state"] in ("published", "finished")
    yield Tile("rows", short(totals["rows"]), "published" if is_published else "written, not published")
    if totals["tokens"]:
        yield Tile("tokens", short(totals["tokens"]), f"{short(totals['encoded'])} texts and pages encoded")
    took_s = sum(seconds_of(call["ended"]) - seconds_of(call["started"]) for call in report["calls"] if call["ended"])
    if took_s:
        calls = len(report["calls"])
        yield Tile("time", duration(took_s), "from start to end" if calls == 1 else f"in {calls} calls")
    work_s = sum(period["seconds"] for period in report["throughput"])
    if work_s and totals["tokens"]:
        yield Tile(
            "tokens a second", short(totals["tokens"] / work_s), f"{short(totals['documents'] / work_s)} rows a second"
        )
    bad, files = totals["quarantined"], report["files"]
    yield Tile("quarantined", percent(bad, totals["rows_read"]), counted(bad, "row"))
    yield Tile("written", format_bytes(files["size_bytes"]), f"in {counted(files['files'], 'file')}")
