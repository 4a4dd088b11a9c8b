"""Section: what the steps of a curation measured: histograms, counts of values, and the evidence of each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.blocks import Bar, Chart, Section, Table, Text
from pipeline.report.measure import Report
from pipeline.report.sections.curation import by_verdict

Block = Table | Text | Chart


def curation_measures(report: Report) -> Section | None:
    """Return the section; None if the report is not of a curation, or no step has evidence or measures."""
    found = report.get("curation")
    if found is None:
        return None
    names = [step["name"] for step in found["steps"]]
    blocks: list[Block] = []
    for step in found["steps"]:
        shown = [*_evidence(step["evidence"]), *_measured(found["measures"][step["name"]], step["name"], names)]
        blocks += [Text(step["name"], tone="heading"), *shown] if shown else []
    lead = "Histograms are of all rows that have the measure; a row that an earlier step dropped has none."
    return Section("measures", "What the steps measured", blocks, lead) if blocks else None


def _evidence(evidence: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the evidence of a step: single facts in one table, each list of rows in one of its own."""
    facts = [(_words(key), _text(value)) for key, value in evidence.items() if not isinstance(value, list)]
    if facts:
        yield Table((), facts)
    for key, value in evidence.items():
        if not isinstance(value, list) or not value:
            continue
        if isinstance(value[0], Mapping):
            columns = [name for name in value[0] if any(row[name] is not None for row in value)]
            numbers = frozenset(
                number for number, name in enumerate(columns) if isinstance(value[0][name], int | float)
            )
            rows = [[_text(row[name]) for name in columns] for row in value]
            yield Table([_words(name) for name in columns], rows, numbers, _words(key))
        else:
            yield from (Text(_text(each), tone="warning") for each in value)


def _measured(measures: Sequence[Mapping[str, Any]], step: str, steps: Sequence[str]) -> Iterator[Block]:
    """Yield a chart for each number, and a table for each text."""
    for measure in measures:
        name = _words(measure["name"])
        if "values" in measure:
            more = measure["values_not_shown"]
            yield by_verdict(name, measure["values"], steps, f"{more:,} more values are not shown" if more else "")
            continue
        bounds = [f"{bound:g}" for bound in measure["bounds"]]
        ends = [f"to below {bound}" for bound in bounds[1:]] + ["and above"]
        bars = [
            Bar(rows, bound, f"{name} {bound} {end}: {rows:,} rows, {dropped:,} of them dropped by {step}")
            for bound, end, rows, dropped in zip(bounds, ends, measure["rows"], measure["dropped"], strict=True)
        ]
        yield Chart(f"rows by {name}", bars, "rows", f"{name}, from")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: object) -> str:
    """Return a value of the evidence in one cell."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(key))} {_text(part)}" for key, part in value.items())
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
