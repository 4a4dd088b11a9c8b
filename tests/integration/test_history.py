"""Any history of a small corpus and its table ends like a fresh backfill: rows added, edited, moved, deleted; shards
renamed and cut anew; ids that repeat; another setting of the model; runs and compactions that are stopped; vacuums and
rollbacks in between. And a text is encoded when it was never seen before, and not otherwise."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from actors.errors import TableConflict
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.table.vacuum import vacuum
from pipeline.table.versions import rollback, versions
from tests.integration.conftest import Silent, Stopping, Stops, make_job, write_one
from tests.integration.test_refresh import assert_same


class History(RuleBasedStateMachine):
    """After each refresh the table is what a fresh backfill would be."""

    model: Path

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        self.corpus = self.folder / "corpus"
        self.shards: dict[str, list[dict[str, object]]] = {}
        self.next_id = 0
        self.fresh = 0
        self.max_tokens = 64
        # Content hashes that each embedding spec has or had a vector of.
        self.ever: dict[int, set[str]] = defaultdict(set)
        self.add_shard(3)

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, name):
        write_one(self.corpus / name, self.shards[name])

    def _row(self, text):
        self.next_id += 1
        return {"id": f"r{self.next_id}", "title": "t", "text": text, "lang": f"l{self.next_id % 2}"}

    @rule(count=st.integers(1, 5))
    def add_shard(self, count):
        name = f"s{self.next_id:03d}.parquet"
        self.shards[name] = [self._row(f"text {self.next_id % 7}") for _ in range(count)]
        self._write(name)

    @precondition(lambda self: len(self.shards) > 1)
    @rule(data=st.data())
    def delete_shard(self, data):
        name = data.draw(st.sampled_from(sorted(self.shards)))
        del self.shards[name]
        (self.corpus / name).unlink()

    @rule(data=st.data())
    def rename_shard(self, data):
        name = data.draw(st.sampled_from(sorted(self.shards)))
        self.next_id += 1
        new = f"{data.draw(st.sampled_from('az'))}{self.next_id:03d}.parquet"
        self.shards[new] = self.shards.pop(name)
        (self.corpus / name).rename(self.corpus / new)

    @rule(data=st.data(), number=st.integers(0, 30))
    def edit_row(self, data, number):
        name = data.draw(st.sampled_from(sorted(self.shards)))
        row = data.draw(st.integers(0, len(self.shards[name]) - 1))
        self.shards[name][row] = {**self.shards[name][row], "text": f"edited {number}"}
        self._write(name)

    @rule(data=st.data())
    def repeat_an_id(self, data):
        """The same id in another shard: one of the two is quarantined."""
        name, other = (data.draw(st.sampled_from(sorted(self.shards))) for _ in range(2))
        row = data.draw(st.sampled_from(self.shards[name]))
        self.shards[other].append({**row, "text": "another text of the same id"})
        self._write(other)

    @rule(data=st.data())
    def delete_row(self, data):
        name = data.draw(st.sampled_from(sorted(self.shards)))
        if len(self.shards[name]) > 1:
            self.shards[name].pop(data.draw(st.integers(0, len(self.shards[name]) - 1)))
            self._write(name)

    @rule(data=st.data())
    def move_row(self, data):
        name, other = (data.draw(st.sampled_from(sorted(self.shards))) for _ in range(2))
        if name != other and len(self.shards[name]) > 1:
            self.shards[other].append(self.shards[name].pop())
            self._write(name)
            self._write(other)

    @rule()
    def reshard(self):
        everything = [row for shard in self.shards.values() for row in shard]
        for name in self.shards:
            (self.corpus / name).unlink()
        self.next_id += 1
        half = (len(everything) + 1) // 2
        parts = {f"p{self.next_id:03d}.parquet": everything[:half], f"q{self.next_id:03d}.parquet": everything[half:]}
        self.shards = {name: part for name, part in parts.items() if part}
        for name in self.shards:
            self._write(name)

    @property
    def table(self):
        return self.folder / "table"

    @property
    def is_there(self):
        return DeltaTable.is_deltatable(str(self.table)) and DeltaTable(str(self.table)).version() > 0

    @rule()
    def change_the_model(self):
        """Cut at four tokens, equal beginnings become equal vectors: another embedding spec."""
        self.max_tokens = 4 if self.max_tokens == 64 else 64

    @precondition(lambda self: self.is_there)
    @rule(stop=st.booleans())
    def compact(self, stop):
        before = content(self.table)
        try:
            compact(str(self.table), Stopping() if stop else Silent(), target_bytes=20_000)
        except Stops:
            assert content(self.table) == before
            if self.next_id % 2:  # whether it is taken up again at once, or left for others to find
                compact(str(self.table), Silent(), target_bytes=20_000)
        assert content(self.table) == before

    @precondition(lambda self: self.is_there)
    @rule(unfinished=st.booleans())
    def vacuum(self, unfinished):
        before = content(self.table)
        vacuum(str(self.table), 0, unfinished=unfinished)
        assert content(self.table) == before

    @precondition(lambda self: self.is_there)
    @rule(data=st.data())
    def roll_back(self, data):
        number = data.draw(st.sampled_from([version.number for version in versions(str(self.table)) if version.rows]))
        current = content(self.table)
        try:
            before = content(self.table, number)
        except OSError:  # a vacuum took its files
            before = None
        if before is None:
            with pytest.raises(TableConflict, match="a vacuum took them"):
                rollback(str(self.table), number)
            assert content(self.table) == current
        else:
            rollback(str(self.table), number)
            assert content(self.table) == before

    @rule(stop=st.booleans())
    def refresh(self, stop):
        job = make_job(
            self.corpus,
            self.table,
            self.model,
            run__max_quarantined=1,
            run__unit_rows=3,
            encoder__max_tokens=self.max_tokens,
        )
        before = hashes(self.table)
        if stop:
            with contextlib.suppress(Stops):
                refresh(job, Stopping())
        outcome = refresh(job, Silent())
        self.fresh += 1
        fresh = self.folder / f"fresh{self.fresh}"
        whole = backfill(job.model_copy(update={"table": job.table.model_copy(update={"uri": str(fresh)})}), Silent())
        assert_same(self.table, fresh)
        there = hashes(fresh)
        ever = self.ever[self.max_tokens]
        if outcome.published and not stop:
            # Each text that was never seen is encoded. Equal texts of two units may both be, and so is a text that is
            # quarantined for its id afterwards; but no row of the version before, if it has this embedding spec.
            assert len(set(there) - ever) <= outcome.encoded
            if self.published_with == self.max_tokens:
                assert outcome.encoded <= len([text for text in there if text not in before]) + whole.quarantined
        ever.update(there)
        shutil.rmtree(fresh)

    @property
    def published_with(self):
        """The embedding spec of the version before the current one, by its token limit."""
        from pipeline.table import delta_table

        current = DeltaTable(str(self.table)).version()
        if current < 2:
            return self.max_tokens
        embedding_spec = delta_table.embedding_spec_of(DeltaTable(str(self.table), version=current - 1))
        return embedding_spec.lineage["max_tokens"] if embedding_spec else None


def hashes(table):
    """The content hash of each row, with repeats; none where there is no table."""
    if not DeltaTable.is_deltatable(str(table)):
        return []
    return DeltaTable(str(table)).to_pyarrow_table(columns=["_hash"])["_hash"].to_pylist()


def content(table, version=None):
    """All that a reader sees, whatever the files."""
    found = DeltaTable(str(table), version=version).to_pyarrow_table().to_pylist()
    return sorted((row["id"], row["_shard"], row["lang"], row["_hash"], tuple(row["embedding"])) for row in found)


def test_any_history_ends_like_a_new_backfill(tiny_model):
    History.model = tiny_model
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
