"""Small files are merged before the commit: the table has the same rows in few files, whatever happens in between."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from deltalake import DeltaTable

from actors.errors import ConfigError
from pipeline.ledger.ledger import Ledger, merge_ledger
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.table.export import changes
from pipeline.table.vacuum import vacuum
from pipeline.table.versions import versions
from tests.integration.conftest import Silent, Stops, make_job, rows, write_corpus, write_one
from tests.integration.test_refresh import assert_same


class StoppingAtMerge(Silent):
    """Stops a run when its merge begins, or right after its merge."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when

    def step(self, what: str) -> None:
        super().step(what)
        if what.startswith(self.when):
            raise Stops


def files_of_partitions(table) -> Counter[str]:
    """Number of files of the current version by language."""
    actions = DeltaTable(str(table)).get_add_actions(flatten=True)
    return Counter(actions.column("partition.lang").to_pylist())


def on_disk(table) -> set[str]:
    return {str(path.relative_to(table)) for path in table.glob("data/**/*.parquet")}


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus", [rows(48), rows(48, start=48)])


@pytest.fixture
def new_job(tmp_path, corpus, tiny_model):
    """Return a function that makes a job of many units and three partitions."""

    def make(table="table", **changes):
        return make_job(corpus, tmp_path / table, tiny_model, table__partition_by=["lang"], run__unit_rows=8, **changes)

    return make


def test_a_backfill_ends_in_few_files_in_one_commit_with_the_same_rows(tmp_path, new_job):
    reporter = Silent()
    outcome = backfill(new_job(), reporter)
    backfill(new_job("plain", table__file_size=None), Silent())
    assert set(files_of_partitions(tmp_path / "plain").values()) == {len(reporter.receipts)}
    assert set(files_of_partitions(tmp_path / "table").values()) == {1}
    assert outcome.files == 3
    assert outcome.version == 1
    assert_same(tmp_path / "table", tmp_path / "plain")
    assert on_disk(tmp_path / "table") == set(DeltaTable(str(tmp_path / "table")).get_add_actions()["path"].to_pylist())


def test_large_files_and_few_files_are_not_merged(tmp_path, corpus, new_job):
    backfill(new_job(table__file_size="8KiB"), Silent())  # below a KiB is small
    backfill(new_job("plain", table__file_size=None), Silent())
    assert files_of_partitions(tmp_path / "table") == files_of_partitions(tmp_path / "plain")
    (corpus / "part-0001.parquet").unlink()
    write_corpus(corpus, [rows(16)])
    backfill(new_job("few"), Silent())
    assert set(files_of_partitions(tmp_path / "few").values()) == {2}


@pytest.mark.parametrize("when", ["merging", "publishing"])
@pytest.mark.parametrize("vacuumed", [False, True])
def test_a_run_stopped_during_its_merge_resumes(tmp_path, new_job, when, vacuumed):
    with pytest.raises(Stops):
        backfill(new_job(), StoppingAtMerge(when))
    if vacuumed:
        vacuum(str(tmp_path / "table"), 0)
    reporter = Silent()
    outcome = backfill(new_job(), reporter)
    assert (outcome.version, outcome.rows, reporter.receipts) == (1, 96, [])
    assert set(files_of_partitions(tmp_path / "table").values()) == {1}
    assert merge_ledger(Ledger(str(tmp_path / "table"), outcome.run)).done() == {0, 1, 2}
    backfill(new_job("plain", table__file_size=None), Silent())
    assert_same(tmp_path / "table", tmp_path / "plain")


def test_refreshes_do_not_accumulate_small_files(tmp_path, corpus, new_job):
    backfill(new_job(), Silent())
    most = 0
    for number in range(14):
        write_one(corpus / f"new-{number}.parquet", rows(3, start=1000 + 3 * number))
        assert refresh(new_job(), Silent()).encoded == 3
        most = max(most, *files_of_partitions(tmp_path / "table").values())
    assert most == 8
    assert [version.operation for version in versions(str(tmp_path / "table"))][:2] == ["refresh", "refresh"]
    backfill(new_job("fresh"), Silent())
    assert_same(tmp_path / "table", tmp_path / "fresh")
    found = changes(str(tmp_path / "table"), since=1, out=str(tmp_path / "changes"))
    assert (found.upserts, found.deletes) == (42, 0)


@pytest.mark.parametrize("size", ["0", "large", "-1MiB", "", 0])
def test_an_invalid_size_is_refused(new_job, size):
    with pytest.raises(ConfigError, match=re.escape(f"table.file_size: the size '{size}' must be a size above 0")):
        new_job(table__file_size=size)


def test_a_size_in_bytes_may_be_a_number(new_job):
    assert new_job(table__file_size=65536).table == new_job(table__file_size="65536").table
