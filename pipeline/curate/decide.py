"""Decides about all rows, step after step, in a DuckDB database on a local disk with a limit of memory.

The database has the texts and measures of all rows (`all_rows`). Rows have two numbers: `place`, their place in the source,
and `n`, their place by id. A step sees a view of the rows that no earlier step dropped. Its decision is copied and checked.
Nothing depends on threads or on the order of files: of equal rows the one with the smallest `n` counts.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import InvariantBroken, StorageError
from actors.quantities import parse_bytes
from actors.schema import ID
from actors.storage.errors import redact
from actors.storage.temp_dirs import SharedTempDir
from pipeline.curate.context import DROPPED_BY, KEPT, Context
from pipeline.curate.database import insert
from pipeline.curate.read import Measured, folder_of
from pipeline.curate.steps.base import Decision, Seen
from pipeline.execute.progress import Reporter
from pipeline.job.curation import SOURCE

if TYPE_CHECKING:
    import duckdb

_LEAST_MEMORY, _MOST_MEMORY = 512 << 20, 16 << 30
_BATCH_ROWS = 1 << 16
# All rows of the source; those with a repeated id have no number.
_PLACES = "(select place, n from numbered union all select place, null as n from repeated)"


@dataclass(frozen=True, slots=True)
class Decided:
    """What a step decided.

    Attributes:
        rows: Number of rows that it saw.
        dropped: Number of rows that it dropped.
        evidence: What the step says about it.
    """

    name: str
    rows: int
    dropped: int
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> str:
        """Name of the table in the database with its decision."""
        return f"decided_{self.name}"


class Rows:
    """Database of the rows of one curation. It is a context manager; its exit removes the files on the disk.

    Args:
        reporter: Receives the steps.
        of_steps: Receives the progress inside of steps, such as that of backfills, which are runs of their own.
    """

    def __init__(self, context: Context, results: Sequence[Measured], reporter: Reporter, of_steps: Reporter) -> None:
        self._context = context
        self._results = results
        self._reporter, self._of_steps = reporter, of_steps
        self._folder = SharedTempDir(f"curate-{secrets.token_hex(6)}")
        self.connection = _connect(self._folder.path, context.job.run.memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self._folder.leave()
        import duckdb

        if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException):
            raise failure(error) from error

    def load(self) -> int:
        """Number the rows and load their texts and measures; return the number of rows with a repeated id."""
        run = self.connection.execute
        run("create table ids (place bigint, id varchar)")
        self._insert("ids", self._ids())
        source = self._context.read.source
        run("create table repeated (place bigint)")
        if source.id is not None and source.unique_ids:
            run(
                "insert into repeated select place from ids join (select id, min(place) as first from ids group by id "
                "having count(*) > 1) using (id) where place <> first"
            )
        # The number of a row is its place in this table, whose order DuckDB keeps.
        run("create table ordered as select place from ids anti join repeated using (place) order by id, place")
        run("create table numbered as select place, rowid as n from ordered order by place")
        run("drop table ordered")
        run("drop table ids")
        self._load_rows()
        run("create table drops (n bigint, step integer)")
        return int(run("select count(*) from repeated").fetchall()[0][0])

    def _load_rows(self) -> None:
        context = self._context
        raw = [each for step in context.steps for each in step.raw()]
        texts = [pa.field(name, pa.string()) for name in (ID, SOURCE, *context.read.sides)]
        schema = pa.schema([("n", pa.int64()), *dict.fromkeys([*texts, *raw])])
        stored = [field.name for field in schema if field.name not in ("n", SOURCE)]
        has_source = SOURCE in context.read.source.kept_schema().names
        empty = schema.empty_table()
        self.connection.register("incoming", empty)
        self.connection.execute("create table all_rows as select * from incoming")
        self.connection.unregister("incoming")
        self._insert("all_rows", self._rows(stored, schema.names, has_source=has_source))

    def _ids(self) -> Iterator[pa.Table]:
        """Yield the place and the id of the rows of each unit."""
        place = 0
        for result in self._results:
            ids = read_result(result, [ID])
            yield ids.add_column(0, "place", pa.array(range(place, place + ids.num_rows), pa.int64()))
            place += ids.num_rows

    def _rows(self, stored: list[str], names: list[str], *, has_source: bool) -> Iterator[pa.Table]:
        """Yield the rows of each unit with their number, without those with a repeated id."""
        numbers = self._by_unit(f"select n from {_PLACES} order by place")
        for result, numbered in zip(self._results, numbers, strict=True):
            rows = read_result(result, [*stored, *([SOURCE] if has_source else [])])
            if not has_source:
                rows = rows.append_column(SOURCE, pa.nulls(rows.num_rows, pa.string()))
            rows = rows.add_column(0, "n", numbered["n"])
            yield rows.filter(pc.is_valid(rows["n"])).select(names)

    def _insert(self, table: str, parts: Iterable[pa.Table]) -> None:
        """Insert rows, many at once: each insert waits for the disk, and a transaction stays in memory to its end."""
        waiting: list[pa.Table] = []
        for part in itertools.chain(parts, [None]):
            if part is not None:
                waiting.append(part)
            if waiting and (part is None or sum(each.num_rows for each in waiting) >= _BATCH_ROWS):
                insert(self.connection, table, pa.concat_tables(waiting))
                waiting.clear()

    def _by_unit(self, query: str) -> Iterator[pa.Table]:
        """Yield the result of a query, which has one row for each row of the source in order, unit by unit."""
        reader = self.connection.cursor().sql(query).to_arrow_reader(_BATCH_ROWS)
        if reader is None:
            raise InvariantBroken("a query of the database gave no rows.")
        schema, waiting = reader.schema, reader.schema.empty_table()
        for result in self._results:
            while waiting.num_rows < result.rows:
                try:
                    waiting = pa.concat_tables([waiting, pa.Table.from_batches([reader.read_next_batch()], schema)])
                except StopIteration:
                    raise InvariantBroken(f"the rows of unit {result.unit} have no verdict.") from None
            yield waiting.slice(0, result.rows)
            waiting = waiting.slice(result.rows)

    def decide(self) -> list[Decided]:
        """Run the steps in their order."""
        run = self.connection.execute
        done = []
        for number, step in enumerate(self._context.steps):
            self._reporter.step(f"deciding: {step.name}")
            view = f"seen_{step.name}"
            run(f"create view {view} as select r.* from all_rows r anti join drops using (n)")
            seen = Seen(
                self.connection,
                view,
                self._context.read.sides,
                self._of_steps,
                folder_of(self._context.url),
                self._context.job.run,
            )
            rows = run(f"select count(*) from {view}").fetchall()[0][0]
            decided = self._take(step.name, step.schema().names, step.decide(seen), view, rows)
            run(f"insert into drops select n, {number} from {decided.table} where dropped")
            done.append(decided)
        return done

    def _take(self, name: str, columns: list[str], decision: Decision, view: str, rows: int) -> Decided:
        """Copy a decision, in the order of the rows, and check it."""
        run, table = self.connection.execute, f"decided_{name}"
        wanted = ", ".join(["n", *(f'"{column}"' for column in columns), "coalesce(dropped, false) as dropped"])
        run(f"create table {table} as select {wanted} from {decision.table} order by n")
        count, different, dropped = run(
            f"select count(*), count(distinct n), count(*) filter (where dropped) from {table}"
        ).fetchall()[0]
        unseen = run(f"select count(*) from {table} anti join {view} using (n)").fetchall()[0][0]
        if count != different or unseen or count > rows:
            raise InvariantBroken(
                f"the step {name} decided about {count} rows ({different} of them different) of {rows}."
            )
        return Decided(name, rows, dropped, decision.evidence)

    def join(self, decided: Sequence[Decided]) -> None:
        """Write the table `verdicts`: `place`, `n`, the columns of all steps, `kept` and `dropped_by`, in the order of the source.

        `n` and all others are null in a row with a repeated id.
        """
        columns = [
            f'{each.table}."{name}"'
            for each, step in zip(decided, self._context.steps, strict=True)
            for name in step.schema().names
        ]
        names = " ".join(f"when {number} then '{each.name}'" for number, each in enumerate(decided))
        joins = " ".join(f"left join {each.table} using (n)" for each in decided)
        self.connection.execute(
            f"create table verdicts as select place, n, {', '.join([*columns, ''])}"
            f"case when n is not null then drops.step is null end as {KEPT}, case drops.step {names} end as {DROPPED_BY} "
            f"from {_PLACES} {joins} "
            "left join drops using (n) order by place"
        )

    def count(self) -> int:
        """Return the number of rows."""
        return int(self.connection.execute("select count(*) from numbered").fetchall()[0][0])

    def verdicts(self) -> Iterator[pa.Table]:
        """Yield the rows of `verdicts` without `place`, unit by unit."""
        yield from self._by_unit("select * exclude place from verdicts")


def read_result(result: Measured, columns: list[str] | None = None) -> pa.Table:
    """Return columns of the rows of a unit."""
    with storage.open_arrow(result.path) as file:
        return pq.ParquetFile(file).read(columns=columns)


def failure(error: Exception) -> StorageError:
    """Return the error to raise for one of DuckDB."""
    text = redact(error).partition(" Possible solutions")[0]
    return StorageError(
        f"the local database of the curation failed: {text}. It is in the folder for temporary files (TMPDIR) and takes about "
        f"twice the size of the texts: free some space, or set run.memory to more. Run the same command again: what was read "
        f"is kept"
    )


def _connect(folder: Path, memory: str | None) -> duckdb.DuckDBPyConnection:
    import duckdb  # an extra

    connection = duckdb.connect(str(folder / "rows.duckdb"))
    limit = _default_memory() if memory is None else int(parse_bytes(memory, option="run.memory"))
    connection.execute(f"set memory_limit = '{limit}B'")
    connection.execute("set temp_directory = $folder", {"folder": str(folder / "spill")})
    connection.execute(f"set threads = {os.cpu_count() or 1}")
    return connection


def _default_memory() -> int:
    """Return a quarter of the machine's memory, within limits."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(total // 4, _LEAST_MEMORY), _MOST_MEMORY)
