"""Figures of a curation for its report: rows by source and verdict, and samples of what each step dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.curate.context import DROPPED_BY, Context

if TYPE_CHECKING:
    import duckdb

_SAMPLES = 20
_SOURCES = 100
_CHARACTERS = 300


def evidence_of(context: Context, connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Return the rows by source and verdict, and samples. The samples of a table are always the same."""
    run, sides = connection.execute, context.read.sides
    counted = run(
        f"select source, {DROPPED_BY}, count(*) from verdicts join all_rows using (n) group by all order by all"
    ).fetchall()
    sources: dict[str | None, dict[str, int]] = {}
    for source, step, count in counted:
        sources.setdefault(source, {})[step or "kept"] = count
    largest = sorted(sources.items(), key=lambda item: -sum(item[1].values()))[:_SOURCES]
    texts = ", ".join(f'"{side}"[:{_CHARACTERS}]' for side in sides)
    samples = {}
    for step in context.steps:
        rows = run(
            f"select id, {texts} from (select n from verdicts where {DROPPED_BY} = '{step.name}' "
            f"order by hash(n), n limit {_SAMPLES}) join all_rows using (n) order by n"
        ).fetchall()
        samples[step.name] = [dict(zip(("id", *sides), row, strict=True)) for row in rows]
    return {"sources": [{"source": name, "rows": rows} for name, rows in largest], "samples": samples}
