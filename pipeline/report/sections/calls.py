"""Section: the calls of the command that the run took."""

from __future__ import annotations

from pipeline.report.blocks import Section, Table, Text, duration
from pipeline.report.measure import Call, Report, seconds_of


def calls(report: Report) -> Section | None:
    """Return the section; None if no call is known, as for a run of an older release."""
    listed = report["calls"]
    if not listed:
        return None
    blocks: list[Table | Text] = [
        Table(
            ("started (UTC)", "took", "ended", "on", "units done before", "crashed workers"),
            [_row(call) for call in listed],
            frozenset({1, 4, 5}),
        )
    ]
    for call in listed:
        if call["error"]:
            blocks.append(Text(f"{_minute(call['started'])}: {call['error']}", tone="error"))
        blocks += [Text(f"unit {failed['unit']}: {failed['error']}", tone="error") for failed in call["failed_units"]]
    lead = "After a stop the same command continues the run, and finished units are not done again."
    return Section("calls", "Calls of the command", blocks, lead)


def _row(call: Call) -> tuple[str, ...]:
    took = duration(seconds_of(call["ended"]) - seconds_of(call["started"])) if call["ended"] else "unknown"
    machine = f"{call['host']}, {call['replicas']} x {call['device']}" if call["device"] else str(call["host"])
    end = "still running, or its process was killed" if call["end"] == "running" else call["end"]
    before, crashes = ("" if call[name] is None else f"{call[name]:,}" for name in ("units_before", "crashes"))
    return _minute(call["started"]), took, end, machine, before, crashes


def _minute(time: str) -> str:
    return time[:19].replace("T", " ")
