"""The commands that are killed, each with what is there before it. Run in children of the zygote.

One more is a `Scenario` in `SCENARIOS`: a function that makes what is there before, and one that is the command. The command must
be one that may be repeated: after every death it is run again, and the table must be as if it had not died.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.transaction import AddAction

from actors import storage
from actors.encoders.families.detect import FAMILIES
from actors.unit.writer import parquet_bytes
from pipeline.job.config import Job
from pipeline.ledger.table_lock import TTL_S, TableLock
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.table import delta_table
from pipeline.table.vacuum import vacuum
from pipeline.table.versions import rollback
from tests.integration.conftest import Silent, Stopping, Stops, make_job, rows, write_one
from tests.toys.late import layout, write_late


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scenario happens. The source and the model are shared; each crash point has a table of its own."""

    source: Path
    table: Path
    model: Path

    def job(
        self, corpus: str = "corpus", *, max_tokens: int | None = None, foreign: str = "refuse", unit_rows: int = 8
    ) -> Job:
        """Two partitions, by default two units, and a limit above its quarantined rows."""
        return make_job(
            self.source / corpus,
            self.table,
            self.model,
            table__partition_by=["lang"],
            table__foreign_commits=foreign,
            encoder__max_tokens=max_tokens,
            run__unit_rows=unit_rows,
            run__max_quarantined=0.5,
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command that is killed.

    Attributes:
        before: Makes the source, and the table as it is when the command begins.
        command: What is killed, and run again.
    """

    name: str
    before: Callable[[Place], None]
    command: Callable[[Place], object]


# The other job of each command: another source, the same table.
OTHER = "other"
BAD: dict[str, object] = {"id": "bad", "title": None, "text": None, "lang": "l0"}
TWICE: dict[str, object] = {"id": "r1", "title": "another", "text": "of the same id", "lang": "l1"}


def write_source(place: Place) -> None:
    """A row that cannot be read, and an id that two units have."""
    corpus = place.source / "corpus"
    write_one(corpus / "a.parquet", [*rows(4, langs=2), BAD])
    write_one(corpus / "b.parquet", rows(3, start=10, langs=2))
    write_one(corpus / "c.parquet", [*rows(7, start=20, langs=2), TWICE])
    write_one(place.source / OTHER / "x.parquet", [*rows(6, start=2, langs=2), BAD])


def change_source(place: Place) -> None:
    """An edit, a file that goes, and one that is cut in two."""
    corpus = place.source / "corpus"
    edited = rows(4, langs=2)
    edited[2]["text"] = "something new"
    write_one(corpus / "a.parquet", [*edited, BAD])
    (corpus / "b.parquet").unlink()
    kept = rows(7, start=20, langs=2)
    write_one(corpus / "c.parquet", kept[:3])
    write_one(corpus / "d.parquet", kept[3:])


def _first(place: Place) -> None:
    write_source(place)
    backfill(place.job(), Silent())


def _first_then_changed(place: Place) -> None:
    _first(place)
    change_source(place)


def _second(place: Place) -> None:
    """Two versions, and a run that did not end."""
    _first_then_changed(place)
    refresh(place.job(), Silent())
    with contextlib.suppress(Stops):
        refresh(place.job(max_tokens=5), Stopping())


def _changed_by_another_tool(place: Place) -> None:
    """A source that changed, and a table that lost rows of files that change and of files that do not."""
    _first_then_changed(place)
    DeltaTable(str(place.table)).delete("id in ('r3', 'r21', 'r10')")


def _late_job(place: Place) -> Job:
    """A job with a dense vector and many vectors a row."""
    FAMILIES["toy_late"] = (layout, "tests.toys.late:build")
    if not (model := place.source / "late").exists():
        write_late(model, "embedding", "embedding_multi")
    return make_job(place.source / "corpus", place.table, model, source__text=["title"], run__unit_rows=4)


def _late_then_changed(place: Place) -> None:
    corpus = place.source / "corpus"
    write_one(corpus / "a.parquet", rows(4))
    write_one(corpus / "b.parquet", rows(7, start=20))
    backfill(_late_job(place), Silent())
    write_one(corpus / "b.parquet", rows(7, start=21))


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("backfill", write_source, lambda place: backfill(place.job(), Silent())),
        Scenario("merge", write_source, lambda place: backfill(place.job(unit_rows=4), Silent())),
        Scenario("refresh", _first_then_changed, lambda place: refresh(place.job(), Silent())),
        Scenario("keep", _changed_by_another_tool, lambda place: refresh(place.job(foreign="keep"), Silent())),
        Scenario("restore", _changed_by_another_tool, lambda place: refresh(place.job(foreign="restore"), Silent())),
        Scenario("cut-over", _first, lambda place: refresh(place.job(max_tokens=5), Silent())),
        Scenario("many vectors", _late_then_changed, lambda place: refresh(_late_job(place), Silent())),
        Scenario("compact", _second, lambda place: compact(str(place.table), Silent())),
        Scenario("rollback", _second, lambda place: rollback(str(place.table), 1)),
        Scenario("vacuum", _second, lambda place: vacuum(str(place.table), 0)),
    )
}


def prepare(name: str, place: Place) -> None:
    """What is there before the command of a scenario."""
    SCENARIOS[name].before(place)


def command(name: str, place: Place) -> None:
    """The command of a scenario."""
    SCENARIOS[name].command(place)


def careless(name: str, place: Place) -> None:
    """A command that does not know what it has done already: it appends a row by a commit with the run of the one before."""
    SCENARIOS[name].command(place)
    opened = DeltaTable(str(place.table))
    row = opened.to_pyarrow_table().slice(0, 1).drop_columns(["lang"])
    data, stats = parquet_bytes(row.set_column(0, "id", pa.array(["careless"])), "{}", ())
    path = f"data/lang=l0/{secrets.token_hex(6)}.parquet"
    storage.put(f"{place.table}/{path}", data)
    action = AddAction(path, len(data), {"lang": "l0"}, 0, data_change=True, stats=stats)
    state = delta_table.state_of(opened)
    assert state is not None
    named = CommitProperties(custom_metadata={delta_table.RUN: state.run})
    opened.create_write_transaction(
        [action], mode="append", schema=opened.schema(), partition_by=["lang"], commit_properties=named
    )


def clear(place: Place) -> None:
    """Run a vacuum that keeps no file for its age and removes unfinished runs."""
    vacuum(str(place.table), 0, unfinished=True)


def other_job(place: Place) -> None:
    """Another job on the same table."""
    refresh(place.job(OTHER), Silent())


def other_job_ahead(place: Place) -> None:
    """The same with a clock that is an hour ahead: every other owner of the table lock seems to be long dead."""
    _be_ahead()
    other_job(place)


def vacuum_ahead(place: Place) -> None:
    """A vacuum with such a clock that keeps nothing for its age."""
    _be_ahead()
    vacuum(str(place.table), 0)


def _be_ahead() -> None:
    TableLock.__init__.__kwdefaults__ = {"alone": False, "ttl_s": TTL_S, "clock": lambda: time.time() + 3600}


def copy(source: Place, table: Path) -> Place:
    """The same place with a copy of its table."""
    if source.table.exists():
        shutil.copytree(source.table, table)
    return Place(source.source, table, source.model)
