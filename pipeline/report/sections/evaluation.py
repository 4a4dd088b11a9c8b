"""Section: the scores of an evaluation, by its rows or by tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.quality.bootstrap import Difference, Interval
from pipeline.report.blocks import Section, Table, Text
from pipeline.report.measure import Report


def evaluation(report: Report) -> Section | None:
    """Return the section; None if the report is not of an evaluation."""
    found = report.get("evaluation")
    if found is None:
        return None
    table = _by_task(found) if "tasks" in found else _by_row(found)
    notes = [Text(note, tone="warning") for note in found["notes"]]
    lead = "The 95 % interval is in brackets; p is by paired bootstrap."
    grids = [block for matrix in found.get("matrices", ()) for block in _grid(matrix)]
    return Section("evaluation", "Evaluation", [table, *grids, *notes], lead)


def _by_row(found: Mapping[str, Any]) -> Table:
    """Return a row for each model, version or form of vectors."""
    main = found["main"]
    others = [name for name in found["rows"][0]["scores"] if name != main]
    columns = ("", "task", main, *others, "bytes", f"{main}, difference to the first row")
    rows = [
        (
            row["label"],
            row["task"] or "",
            str(Interval(**row["scores"][main])),
            *(f"{row['scores'][name]['value']:.4f}" for name in others),
            "" if row["bytes_per_vector"] is None else f"{row['bytes_per_vector']:,.0f}",
            _difference(row["differences"].get(main)),
        )
        for row in found["rows"]
    ]
    return Table(columns, rows, frozenset(range(2, 4 + len(others))), f"{found['ability']}, {found['items']:,} items")


def _grid(found: Mapping[str, Any]) -> tuple[Text, Table]:
    """Return a matrix of a measure, and the line above it."""
    rows = [
        (name, *("" if cell is None else f"{cell:.3f}" for cell in cells))
        for name, cells in zip(found["rows"], found["cells"], strict=True)
    ]
    first, second = found["axes"]
    title = f"{found['label']}: {found['measure']}; rows: {first}, columns: {second}"
    return Text(title), Table(("", *found["columns"]), rows, frozenset(range(1, 1 + len(found["columns"]))))


def _by_task(found: Mapping[str, Any]) -> Table:
    """Return a row for each task, with the score of each model, and the means."""
    models = found["models"]
    columns = ("task", "type", "measure", *models, "words alone", "nDCG@10, difference of the queries")
    rows = [
        (
            task["task"],
            task["type"],
            task["main"],
            *(f"{score:.4f}" for score in task["scores"]),
            "" if task["words"] is None else f"{task['words']:.4f}",
            _difference(task["difference"]),
        )
        for task in found["tasks"]
    ]
    over_tasks = _difference(found["difference"])
    means = (
        "mean",
        "",
        "",
        *(f"{mean:.4f}" for mean in found["means"]),
        "",
        over_tasks and f"of the tasks: {over_tasks}",
    )
    return Table(columns, [*rows, means], frozenset(range(3, 4 + len(models))))


def _difference(found: Mapping[str, float] | None) -> str:
    return "" if found is None else str(Difference(**found))
