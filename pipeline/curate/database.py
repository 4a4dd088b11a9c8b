"""Statements that the parts of a curation have in common, for its DuckDB database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    import duckdb


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Append rows to a table with the same columns in the same order."""
    connection.register("incoming", rows)
    connection.execute(f"insert into {table} select * from incoming")
    connection.unregister("incoming")


def stream(connection: duckdb.DuckDBPyConnection, query: str, batch_rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a query in parts, while the connection stays free for other statements."""
    cursor = connection.cursor()
    try:
        for batch in cursor.sql(query).to_arrow_reader(batch_rows):
            yield pa.Table.from_batches([batch])
    finally:
        cursor.close()


def literal(text: str) -> str:
    """Return the SQL of a text."""
    return "'" + text.replace("'", "''") + "'"
