"""Printing of evaluations: tables of scores with intervals, of tasks, and of what tasks cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Column, Table

from actors.quantities import counted, format_duration
from jobs import output

if TYPE_CHECKING:
    from pipeline.evaluate.judge import Judgement
    from pipeline.evaluate.result import Evaluation
    from pipeline.evaluate.tasks import Cost

_ITEMS = {"sts": "pairs", "negation": "triplets", "alignment": "pairs", "cross-language retrieval": "rows"}


def print_evaluation(result: Evaluation) -> None:
    """Print the scores of an evaluation, a row for each model, version or form of vectors."""
    _notes(result.notes)
    console = output.console()
    console.print(f"{result.of}: {result.ability} of {result.items:,} {_ITEMS.get(result.ability, 'queries')}")
    measures = [result.main, *(name for name in result.rows[0].scores if name != result.main)]
    compared = any(row.differences for row in result.rows)
    sized = any(row.bytes_per_vector is not None for row in result.rows)
    tasked = any(row.task for row in result.rows)
    table = Table(
        Column("", no_wrap=True),
        *(Column(name, no_wrap=True) for name in ("task",) if tasked),
        *(Column(name, justify="right", no_wrap=True) for name in measures),
        *(Column("bytes", justify="right", no_wrap=True) for _ in range(sized)),
        *(Column(f"{result.main}, difference to the first row", no_wrap=True) for _ in range(compared)),
        box=box.SIMPLE,
    )
    for row in result.rows:
        cells = [row.label, *([row.task or ""] if tasked else [])]
        cells += [
            str(row.scores[name]) if name == result.main else f"{row.scores[name].value:.4f}" for name in measures
        ]
        if sized:
            cells.append("" if row.bytes_per_vector is None else f"{row.bytes_per_vector:,.0f}")
        cells += [str(row.differences.get(result.main) or "")] if compared else []
        table.add_row(*cells)
    console.print(table)
    for matrix in result.matrices:
        console.print(matrix.title)
        grid = Table("", *(Column(name, justify="right", no_wrap=True) for name in matrix.columns), box=box.SIMPLE)
        for name, values in zip(matrix.rows, matrix.cells, strict=True):
            grid.add_row(name, *("" if value is None else f"{value:.3f}" for value in values))
        console.print(grid)


def print_judgement(result: Judgement) -> None:
    """Print the main score of each task, a column for each model."""
    _notes(result.notes)
    console = output.console()
    compared = len(result.models) == 2
    for name, count in zip(result.models, result.encoded, strict=True):
        console.print(f"{name}: {counted(count, 'text')} encoded")
    table = Table(
        Column("task", no_wrap=True),
        Column("type", no_wrap=True),
        Column("measure", no_wrap=True),
        *(Column(f"model {number}", justify="right", no_wrap=True) for number, _ in enumerate(result.models, 1)),
        Column("words alone", justify="right", no_wrap=True),
        *(Column("nDCG@10, difference of the queries", no_wrap=True) for _ in range(compared)),
        box=box.SIMPLE,
    )
    for task in result.tasks:
        cells = [task.task, task.type, task.main, *(f"{score:.4f}" for score in task.scores)]
        cells.append("" if task.words is None else f"{task.words:.4f}")
        table.add_row(*cells, *([str(task.difference or "")] if compared else []))
    if len(result.tasks) > 1:
        over_tasks = [] if result.difference is None else [f"of the tasks: {result.difference}"]
        table.add_row(
            f"mean of {len(result.tasks)} tasks", "", "", *(f"{mean:.4f}" for mean in result.means), "", *over_tasks
        )
    console.print(table)
    console.print(f"results: {result.results}")


def print_costs(costs: Sequence[Cost], rate: str) -> None:
    """Print what tasks cost, and the sum.

    Args:
        costs: The cost of each task.
        rate: A sentence about the rate of the encoders.
    """
    priced = any(cost.price is not None for cost in costs)
    names = ("task", "type", "texts", "pictures", "tokens", "time", *(["price"] if priced else []), "data")
    right = ("texts", "pictures", "tokens", "time", "price")
    table = Table(
        *(Column(name, justify="right" if name in right else "left", no_wrap=True) for name in names), box=box.SIMPLE
    )
    known = [cost for cost in costs if cost.texts is not None]
    for cost in costs:
        table.add_row(cost.task, cost.type, *_numbers([cost], priced=priced), cost.data)
    table.add_row(f"{len(costs):,} tasks", "", *_numbers(known, priced=priced), "")
    console = output.console()
    console.print(table)
    console.print(f"{rate}; tokens are estimated from mteb's counts of characters: 4 each in Latin script, 2 in others")
    if len(known) < len(costs):
        console.print(f"mteb has no statistics of {len(costs) - len(known):,} tasks, which are not in the sums")


def _numbers(costs: Sequence[Cost], *, priced: bool) -> list[str]:
    if not costs or costs[0].texts is None:
        return ["?"] * (5 if priced else 4)
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    prices = [cost.price for cost in costs if cost.price is not None]
    return [
        f"{sum(cost.texts or 0 for cost in costs):,}",
        f"{sum(cost.pictures for cost in costs):,}",
        f"{sum(cost.tokens for cost in costs):,}",
        format_duration(sum(seconds)) if seconds else "?",
        *([f"{sum(prices):,.2f}"] if priced else []),
    ]


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
