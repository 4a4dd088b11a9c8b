"""Any sequence of our refreshes and of other tools' commits: the table has the rows that a model of it says, for each mode."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from actors.errors import DataError, ForeignCommits
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.table.vacuum import vacuum
from tests.integration.conftest import Silent, make_job, rows, write_corpus, write_one
from tests.integration.test_foreign import Here, clean_log


class Others(RuleBasedStateMachine):
    """Rows are (id, text). `theirs` were added by others, `gone` removed; both since the last refresh or kept by one."""

    model: Path

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        self.source = {f"r{n}": f"text {n}" for n in range(12)}
        self.added = 0
        self.gone: set[tuple[str, str]] = set()
        self.theirs: set[tuple[str, str]] = set()
        self.pending = False
        self._write()
        backfill(self._job("refuse"), Silent())
        self.table_rows = self._wanted()

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def _job(self, mode):
        return make_job(
            self.folder / "corpus", self.table, self.model, table__foreign_commits=mode, source__text=["text"]
        )

    @property
    def table(self):
        return self.folder / "table"

    def _write(self):
        for shard in range(3):
            part: list[dict[str, object]] = [
                {"id": name, "title": "t", "text": text, "lang": f"l{int(name[1:]) % 2}"}
                for name, text in self.source.items()
                if int(name[1:]) % 3 == shard
            ]
            write_one(self.folder / "corpus" / f"s{shard}.parquet", part)

    def _wanted(self):
        """The rows of the source that belong into the table, and those of others."""
        taken = {name for name, _ in self.theirs}
        ours = {(name, text) for name, text in self.source.items() if name not in taken}
        return (ours - self.gone) | self.theirs

    @rule(number=st.integers(0, 11), text=st.integers(0, 40))
    def edit(self, number, text):
        self.source[f"r{number}"] = f"other text {text}"
        self._write()

    @rule(number=st.integers(0, 11))
    def foreign_delete(self, number):
        rows = {row for row in self.table_rows if row[0] == f"r{number}"}
        if rows:
            DeltaTable(str(self.table)).delete(f"id = 'r{number}'")
            self.table_rows -= rows
            self.gone |= rows
            self.theirs -= rows
            self.pending = True

    @rule()
    def foreign_append(self):
        self.added += 1
        name = f"new{self.added}"
        row = DeltaTable(str(self.table)).to_pyarrow_table().slice(0, 1)
        if row.num_rows == 0:
            return
        for column, value in {"id": name, "_hash": f"{self.added:032x}"}.items():
            row = row.set_column(row.column_names.index(column), column, pa.array([value]))
        write_deltalake(str(self.table), row, mode="append")
        self.theirs.add((name, f"{self.added:032x}"))
        self.table_rows.add((name, f"{self.added:032x}"))
        self.pending = True

    @rule()
    def foreign_optimize(self):
        DeltaTable(str(self.table)).optimize.compact()

    @rule()
    def clean(self):
        clean_log(self.table)

    @rule()
    def our_vacuum(self):
        vacuum(str(self.table), 0)

    @rule()
    def our_compact(self):
        if not self.pending:
            compact(str(self.table), Silent())

    @rule(mode=st.sampled_from(["refuse", "keep", "restore"]))
    def refresh(self, mode):
        if mode == "refuse" and self.pending:
            with pytest.raises(ForeignCommits):
                refresh(self._job(mode), Silent())
        else:
            outcome = refresh(self._job(mode), Silent())
            if mode == "restore":
                self.gone, self.theirs = set(), set()
            self.pending = False
            before, self.table_rows = self.table_rows, self._wanted()
            assert outcome.encoded <= len(self.table_rows - before)
            assert not refresh(self._job("refuse"), Silent()).published
        found = DeltaTable(str(self.table)).to_pyarrow_table(columns=["id"])["id"].to_pylist()
        assert sorted(found) == sorted(name for name, _ in self.table_rows)
        if mode == "restore":
            fresh = self.folder / "fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            job = self._job(mode)
            backfill(job.model_copy(update={"table": job.table.model_copy(update={"uri": str(fresh)})}), Silent())
            assert pairs(self.table) == pairs(fresh)


def pairs(table):
    """Id and hash of each row."""
    found = DeltaTable(str(table)).to_pyarrow_table(columns=["id", "_hash"]).to_pylist()
    return sorted((row["id"], row["_hash"]) for row in found)


def test_any_sequence_of_commits_ends_as_the_job_says(tiny_model):
    Others.model = tiny_model
    run_state_machine_as_test(
        Others,
        settings=settings(
            max_examples=6, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize(
    ("before", "after", "columns"),
    [
        ({"table__keep_text": True}, {"table__keep_text": False}, {"lang": "l0"}),
        ({"table__keep_text": False}, {"table__keep_text": True}, {"lang": "l0", "text": None}),
        ({"source__keep": ["lang"]}, {"source__keep": ["lang", "title"]}, {"lang": "l0", "title": None}),
        ({"source__keep": ["lang", "title"]}, {"source__keep": ["title"]}, {"title": "title 0"}),
        ({"source__keep": ["lang"]}, {"source__keep": {"lang": "language"}}, {"language": None}),
    ],
)
def test_kept_rows_get_the_columns_of_the_job(tmp_path, tiny_model, before, after, columns):
    """Another tool's rows have no text and no value of a column that is new."""
    here = Here(tmp_path, tiny_model)
    backfill(here.job(**before), Silent())
    here.append(embedding=None)
    here.open.update({"_hash": "'x'"}, predicate="id in ('r8', 'r9')")
    ids = sorted([*(f"r{n}" for n in range(24)), "new"])
    outcome = here.refresh("keep", **after)
    assert (outcome.published, outcome.encoded) == (True, 0)
    assert here.ids() == ids
    new = next(row for row in here.open.to_pyarrow_table().to_pylist() if row["id"] == "new")
    assert {name: new[name] for name in new if name in {"lang", "language", "title", "text"}} == columns
    assert new["embedding"] is None
    assert not here.refresh(**after).published
    here.edit(0, r1="changed")
    assert here.refresh(**after).encoded == 1
    assert (here.refresh(**before).encoded, here.ids()) == (0, ids)


def test_kept_rows_that_do_not_fit_a_new_type_are_refused(tmp_path, tiny_model):
    here = Here(tmp_path, tiny_model)
    backfill(here.job(), Silent())
    here.append(lang="not a number")
    numbers = [{**row, "lang": number} for number, row in enumerate(rows(24))]
    shutil.rmtree(here.corpus)
    write_corpus(here.corpus, [numbers[8 * n : 8 * n + 8] for n in range(3)])
    with pytest.raises(
        DataError, match=r"rows of another tool whose 'lang' is string, .* makes it int64: .*'not a number'"
    ):
        here.refresh("keep")
    assert here.refresh("restore").encoded == 0
