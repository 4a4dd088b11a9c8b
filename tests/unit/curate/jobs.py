"""Curation jobs of tests: pairs in Parquet files, and the table as plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from pipeline.job.curation import Curation, parse_curation

Pair = tuple[str | None, str | None, str | None]  # id, query, passage


def write_pairs(path: Path, pairs: Sequence[Pair], **columns: Sequence[Any]) -> None:
    """Write pairs as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids, queries, passages = zip(*pairs, strict=True)
    table = {
        name: pa.array(values, pa.string()) for name, values in (("id", ids), ("query", queries), ("passage", passages))
    }
    pq.write_table(pa.table({**table, **columns}), path)


def job_of(
    folder: Path, steps: list[Any], *, table: str = "table", run: dict[str, Any] | None = None, **pairs: Any
) -> Curation:
    """Return a job over the Parquet files of a folder."""
    return parse_curation(
        {
            "pairs": {"uri": str(folder / "pairs" / "*.parquet"), "id": "id", **pairs},
            "steps": steps,
            "table": {"uri": str(folder / table)},
            "run": {"address": "inline", **(run or {})},
        }
    )


def rows_of(folder: Path, table: str = "table") -> dict[str, dict[str, Any]]:
    """Return the rows of a table by their id; raise if an id is there twice."""
    rows = DeltaTable(str(folder / table)).to_pyarrow_table().to_pylist()
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def verdicts_of(folder: Path, table: str = "table") -> dict[str, str | None]:
    """Return what dropped each row."""
    return {key: row["dropped_by"] for key, row in rows_of(folder, table).items()}
