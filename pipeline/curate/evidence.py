"""Figures of a curation for its report: rows by source and verdict, the measures of each step, samples of what it dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actors.schema import ID
from pipeline.curate.context import DROPPED_BY, KEPT, Context
from pipeline.curate.steps.base import SEED, marks

if TYPE_CHECKING:
    import duckdb

_SAMPLES = 20
_SOURCES = 100
_SINGLE = 5  # sources with one row that are named
_VALUES = 30  # of a measure that is text
_CHARACTERS = 200
_BINS, _WIDTH = 20, 0.05
_NAMES_OF_ROWS = ("_of", "_hash")  # ends of columns whose values are not measures


def evidence_of(context: Context, connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Return rows by source and verdict, measures by step, and samples, which are the same for the same rows."""
    single = connection.execute(
        "select count(*) over (), source from all_rows group by source having count(*) = 1 order by source "
        f"limit {_SINGLE}"
    ).fetchall()
    sources, not_shown = _by_verdict(connection, "source", _SOURCES)
    return {
        "sources": sources,
        "sources_not_shown": not_shown,
        "sources_with_one_row": {"count": single[0][0] if single else 0, "first": [source for _, source in single]},
        "measures": {
            step.name: [found for each in step.schema() if (found := _measure(connection, step.name, each)) is not None]
            for step in context.steps
        },
        "samples": {
            step.name: _samples(connection, step.name, context.read.sides, step.schema().names)
            for step in context.steps
        },
    }


def _by_verdict(connection: duckdb.DuckDBPyConnection, column: str, most: int) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of the most common values by verdict, and the number of other values.

    A verdict is the step that dropped a row, or "kept".
    """
    counted = connection.execute(f"""
        with counted as (
            select {column}::varchar as value, coalesce({DROPPED_BY}, '{KEPT}') as verdict, count(*) as rows
            from verdicts join all_rows using (n) group by all
        ), totals as (select value, sum(rows) as total, count(*) over () as values from counted group by value)
        select value, verdict, rows, values from counted
        join (select value as common, total, values from totals order by total desc, value limit {most})
        on value is not distinct from common order by total desc, value, verdict
    """).fetchall()
    found: dict[str | None, dict[str, int]] = {}
    for value, verdict, rows, _ in counted:
        found.setdefault(value, {})[verdict] = rows
    others = counted[0][3] - len(found) if counted else 0
    return [{"value": value, "rows": rows} for value, rows in found.items()], others


def _measure(connection: duckdb.DuckDBPyConnection, step: str, field: pa.Field) -> dict[str, Any] | None:
    """Return how the values of a measure are distributed; None if it is no measure, or has no two values."""
    name = field.name
    if pa.types.is_string(field.type):
        if name.endswith(_NAMES_OF_ROWS):
            return None
        values, not_shown = _by_verdict(connection, name, _VALUES)
        known = [each for each in values if each["value"] is not None]
        return {"name": name, "values": known, "values_not_shown": not_shown} if known else None
    least, most = connection.execute(f"select min({name}), max({name}) from verdicts").fetchall()[0]
    if least is None or least == most:
        return None
    bounds = [0, *marks(most)] if pa.types.is_integer(field.type) else _steps(least, most)
    cases = " ".join(f"when {name} < {bound}::double then {number}" for number, bound in enumerate(bounds[1:]))
    counted = connection.execute(
        f"select case {cases or 'when false then 0'} else {len(bounds) - 1} end as bin, count(*), count(*) filter (where {DROPPED_BY} = '{step}') "
        f"from verdicts where {name} is not null group by bin"
    ).fetchall()
    rows, dropped = [0] * len(bounds), [0] * len(bounds)
    for number, count, of_step in counted:
        rows[number], dropped[number] = count, of_step
    return {"name": name, "bounds": bounds, "rows": rows, "dropped": dropped}


def _steps(least: float, most: float) -> list[float]:
    """Return the lower ends of equal bins: of 0.05 for shares and cosines."""
    if least >= -1 and most <= 1:
        first, last = math.floor(least / _WIDTH + 1e-6), math.ceil(most / _WIDTH - 1e-6)
        return [round(number * _WIDTH, 2) for number in range(first, max(last, first + 1))]
    return [least + (most - least) * number / _BINS for number in range(_BINS)]


def _samples(
    connection: duckdb.DuckDBPyConnection, step: str, sides: Sequence[str], measures: Sequence[str]
) -> list[dict[str, Any]]:
    """Return some rows that a step dropped, with the measures that it has of them."""
    texts = [
        f"case when length({side}) > {_CHARACTERS} then {side}[:{_CHARACTERS}] || '…' else {side} end" for side in sides
    ]
    rows = connection.execute(
        f"select {ID}, source, {', '.join([*texts, *(f'v.{name}' for name in measures)])} "
        f"from (select n from verdicts join all_rows using (n) where {DROPPED_BY} = '{step}' "
        f"order by md5('{SEED} ' || {ID}), n limit {_SAMPLES}) join all_rows using (n) join verdicts v using (n) order by n"
    ).fetchall()
    names = (ID, "source", *sides)
    return [
        {**dict(zip(names, row, strict=False)), "measures": dict(zip(measures, row[len(names) :], strict=True))}
        for row in rows
    ]
