"""Conditions on the rows of a source: any SQL condition that DuckDB reads, without access to files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from actors.errors import ConfigError


class Where:
    """A condition.

    Args:
        sql: The condition, without the word WHERE.
        types: Columns of the source.
        name: Key of the job, for messages.

    Attributes:
        columns: Columns that the condition reads.

    Raises:
        ConfigError: it is no condition, or names a column that is not there.
    """

    def __init__(self, sql: str, types: Mapping[str, pa.DataType], name: str) -> None:
        self._sql, self._name = sql, name
        try:
            columns = [*sqlglot.parse_one(sql, dialect="duckdb").find_all(exp.Column)]
        except SqlglotError:
            raise ConfigError(f"{name} {sql!r} is no SQL condition, such as `kept` or `score > 0.5`") from None
        by_name = {column.lower(): column for column in types}  # SQL ignores the case of names
        # `meta.lang` is a field of the column `meta`, if there is one of this name.
        firsts = [(column.parts[0].name, column.name) for column in columns]
        named = {first if first.lower() in by_name else last for first, last in firsts}
        if missing := sorted(column for column in named if column.lower() not in by_name):
            raise ConfigError(
                f"{name} {sql!r} reads the column {missing[0]!r}, which is not there; it has {list(types)}"
            )
        self.columns = sorted(by_name[column.lower()] for column in named)
        self._row = "_row"
        while self._row in by_name:
            self._row += "_"
        if find_spec("duckdb") is None:
            raise ConfigError(f"{name} needs the package duckdb; install it with: pip install 'vectide[train]'")
        empty = pa.table({column: pa.array([], types[column]) for column in self.columns})
        self.select(empty)
        kind = self._ask("select ({sql}) from rows", empty).description[0][1]
        if str(kind) not in ("BOOLEAN", "NULL"):
            raise ConfigError(f"{name} {sql!r} is {str(kind).lower()} and not boolean; compare it with a value")

    def select(self, rows: pa.Table) -> pa.Table:
        """Return the rows that meet the condition, in their order; a condition that is null is not met."""
        query = f"select {self._row} from rows where ({{sql}}) order by {self._row}"  # noqa: S608
        found = self._ask(query, rows).fetchnumpy()[self._row]
        return rows.take(pa.array(found, pa.int64()))

    def _ask(self, query: str, rows: pa.Table) -> Any:
        """Run a query with the condition in it on some rows."""
        import duckdb

        connection = duckdb.connect(config={"enable_external_access": "false"})
        numbers = pa.array(range(rows.num_rows), pa.int64())
        connection.register("rows", rows.select(self.columns).append_column(self._row, numbers))
        try:
            # The line break ends a comment of the condition.
            return connection.execute(query.replace("{sql}", f"{self._sql}\n"))
        except duckdb.Error as error:
            reason = str(error).split("\n", 1)[0]
            raise ConfigError(f"{self._name} {self._sql!r} is no condition on these rows: {reason}") from None
