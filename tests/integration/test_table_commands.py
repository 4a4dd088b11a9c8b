"""Commands on an existing table: versions, rollback, diff, compact, vacuum."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors.errors import ConfigError, TableConflict
from actors.quantities import parse_bytes
from pipeline.ledger.ledger import run_names
from pipeline.ledger.table_lock import lock_table
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.packs import pack
from pipeline.run.refresh import refresh
from pipeline.table.diff import diff
from pipeline.table.vacuum import vacuum
from pipeline.table.versions import rollback, versions
from tests.integration.conftest import Silent, Stopping, Stops, make_job, rows, write_corpus
from tests.integration.test_refresh import assert_same, stored


def edited(count, *numbers):
    """Return `rows(count)` with edited texts in the rows `numbers`."""
    return [
        {**row, "text": f"edited {row['text']}"} if number in numbers else row for number, row in enumerate(rows(count))
    ]


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "corpus", [rows(40)])


@pytest.fixture
def job(tmp_path, corpus, tiny_model, reporter):
    """Return a job whose table has two versions. The second has two rows edited, one removed and one added."""
    job = make_job(corpus, tmp_path / "table", tiny_model, table__partition_by=["lang"], table__file_size=None)
    backfill(job, reporter)
    write_corpus(corpus, [[*edited(40, 3, 7)[:-1], *rows(1, start=90)]])
    refresh(job, reporter)
    return job


def files(table, version=None):
    return set(DeltaTable(str(table), version=version).get_add_actions(flatten=True).column("path").to_pylist())


def on_disk(table):
    return {str(path.relative_to(table)) for path in Path(table).glob("data/**/*.parquet")}


# ------------------------------------------------------------------------------------------------- versions and rollback


def test_versions_have_operation_rows_files_and_model(tmp_path, job):
    listed = versions(str(tmp_path / "table"))
    assert [(version.number, version.operation, version.rows) for version in listed[:2]] == [
        (2, "refresh", 40),
        (1, "backfill", 40),
    ]
    assert listed[0].model == job.encoder.model
    assert listed[0].files == len(files(tmp_path / "table"))


def test_a_rollback_restores_every_row_and_a_refresh_continues_from_it(tmp_path, corpus, job, reporter, tiny_model):
    table = tmp_path / "table"
    before = DeltaTable(str(table), version=1).to_pyarrow_table().sort_by("id")
    done = rollback(str(table), 1)
    assert (done.version, done.rows) == (3, 40)
    assert DeltaTable(str(table)).to_pyarrow_table().sort_by("id").equals(before)
    # The statistics are restored too: readers prune by them.
    stats = DeltaTable(str(table)).get_add_actions(flatten=True).column("max.id").to_pylist()
    assert None not in stats
    again = rollback(str(table), 1)
    assert (again.version, again.files_added) == (3, 0)
    outcome = refresh(job, reporter)
    assert outcome.version == 4
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model, table__partition_by=["lang"]), reporter)
    assert_same(table, tmp_path / "fresh")


def test_a_rollback_to_a_missing_version_is_refused(tmp_path, job):
    table = str(tmp_path / "table")
    with pytest.raises(TableConflict, match="has no version 9"):
        rollback(table, 9)
    with pytest.raises(TableConflict, match="version 0 of .* holds no rows"):
        rollback(table, 0)
    with pytest.raises(ConfigError, match="there is no table at"):
        rollback(str(tmp_path / "nothing"), 1)


# ------------------------------------------------------------------------------------------------------ ---------- diff


def test_a_diff_counts_added_changed_and_removed_rows(tmp_path, job):
    difference = diff(str(tmp_path / "table"), 1, 2)
    assert (difference.added, difference.changed, difference.removed, difference.embedding_spec_changed) == (
        1,
        2,
        1,
        False,
    )
    reverse = diff(str(tmp_path / "table"), 2, 1)
    assert (reverse.added, reverse.changed, reverse.removed) == (1, 2, 1)
    same = diff(str(tmp_path / "table"), 2, 2)
    assert (same.added, same.changed, same.removed) == (0, 0, 0)


def test_a_diff_counts_a_changed_kept_column_but_no_moved_row(tmp_path, corpus, job, reporter):
    source = [*edited(40, 3, 7)[:-1], *rows(1, start=90)]
    source[11] = {**source[11], "lang": "l9"}
    for shard in corpus.glob("*"):
        shard.unlink()
    write_corpus(corpus, [source[20:], source[:20]])
    refresh(job, reporter)
    difference = diff(str(tmp_path / "table"), 2, 3)
    assert (difference.added, difference.changed, difference.removed) == (0, 1, 0)


def test_a_diff_in_many_passes_has_the_same_result(tmp_path, job):
    difference = diff(str(tmp_path / "table"), 1, 2, limit_rows=7)
    assert (difference.added, difference.changed, difference.removed) == (1, 2, 1)


def test_a_new_embedding_spec_changes_every_row(tmp_path, job, reporter):
    refresh(job.model_copy(update={"encoder": job.encoder.model_copy(update={"max_tokens": 5})}), reporter)
    difference = diff(str(tmp_path / "table"), 2, 3)
    assert (difference.added, difference.changed, difference.removed, difference.embedding_spec_changed) == (
        0,
        40,
        0,
        True,
    )


# --------------------------------------------------------------------------------------------------------------- compact


def test_a_compaction_changes_files_but_no_rows(tmp_path, corpus, job, reporter, tiny_model):
    table = tmp_path / "table"
    before = DeltaTable(str(table)).to_pyarrow_table().sort_by("id")
    old = files(table)
    done = compact(str(table), reporter)
    assert (done.version, done.published, done.files_before) == (3, True, len(old))
    assert len(files(table)) == done.files_after == 3  # one for each lang
    after = DeltaTable(str(table)).to_pyarrow_table().sort_by("id")
    assert after.equals(before)
    footer = pq.read_metadata(table / min(files(table))).metadata
    assert json.loads(footer[b"vectide"])["model"] == job.encoder.model
    log = (table / "_delta_log" / "00000000000000000003.json").read_text()
    assert '"dataChange":true' not in log
    assert compact(str(table), reporter).published is False
    # A refresh works as before: unchanged shards are not opened, changed ones replace only their own rows.
    assert refresh(job, reporter).published is False
    write_corpus(corpus, [[*edited(40, 3, 7, 9)[:-1], *rows(1, start=90)]])
    assert refresh(job, reporter).encoded == 1
    backfill(make_job(corpus, tmp_path / "fresh", tiny_model, table__partition_by=["lang"]), reporter)
    assert_same(table, tmp_path / "fresh")


def test_an_interrupted_compaction_resumes(tmp_path, job, reporter):
    table = tmp_path / "table"
    with pytest.raises(Stops):
        compact(str(table), Stopping())
    assert DeltaTable(str(table)).version() == 2
    second_reporter = Silent()
    done = compact(str(table), second_reporter)
    assert (done.version, done.files_after) == (3, 3)
    assert len(second_reporter.receipts) == 2  # of three


@pytest.mark.ray
def test_a_compaction_runs_on_ray(ray_session, tmp_path, job):
    reporter = Silent()
    done = compact(str(tmp_path / "table"), reporter, address="local", inline_bytes=0)
    assert (done.published, done.files_after, len(reporter.receipts)) == (True, 3, 3)


def test_a_pack_has_one_partition_and_about_the_target_size():
    from actors.unit.receipt import DataFile

    def file(name, size_bytes, lang):
        return DataFile(name, size_bytes, 1, {"lang": lang}, "{}")

    data_files = [file(f"{lang}{n}", 30, lang) for lang in "ab" for n in range(5)] + [
        file("c", 1, "c"),
        file("a9", 80, "a"),
    ]
    packs = list(pack(data_files, 100, 50))
    assert [[data_file.path for data_file in files_of_pack] for files_of_pack in packs] == [
        ["a0", "a1", "a2", "a3"],
        ["b0", "b1", "b2", "b3"],
    ]


# ---------------------------------------------------------------------------------------------------------------- vacuum


def test_a_vacuum_removes_what_only_old_versions_need(tmp_path, job, reporter):
    table = tmp_path / "table"
    compact(str(table), reporter)
    before = stored(table)
    dry_run = vacuum(str(table), 0, dry_run=True)
    assert on_disk(table) == files(table, 1) | files(table, 2) | files(table, 3)
    done = vacuum(str(table), 0)
    assert (done.files, done.size_bytes, done.versions) == (dry_run.files, dry_run.size_bytes, 1)
    assert done.files > 0
    assert on_disk(table) == files(table)
    assert stored(table).keys() == before.keys()
    with pytest.raises(TableConflict, match="files of version 1 of .* are gone .*: a vacuum took them"):
        rollback(str(table), 1)
    with pytest.raises(TableConflict, match="a vacuum took them"):
        diff(str(table), 1, 3)
    assert vacuum(str(table), 0).files == 0
    assert refresh(job, reporter).published is False


def test_a_vacuum_keeps_the_versions_within_the_given_time(tmp_path, job):
    table = tmp_path / "table"
    done = vacuum(str(table), 3600)
    assert (done.files, done.versions) == (0, 3)
    assert len(DeltaTable(str(table), version=1).to_pyarrow_table()) == 40


def test_a_vacuum_keeps_the_files_of_an_unfinished_run(tmp_path, corpus, job):
    table = tmp_path / "table"
    write_corpus(corpus, [edited(40, *range(40))])
    with pytest.raises(Stops):
        refresh(job, Stopping())
    orphan = table / "data" / "dead" / "000000000-x.parquet"
    orphan.parent.mkdir()
    orphan.write_bytes(b"written by a crashed attempt")
    done = vacuum(str(table), 0)
    assert done.unfinished == 1
    assert not orphan.exists()
    reporter = Silent()
    outcome = refresh(job, reporter)
    assert (outcome.version, outcome.rows, len(reporter.receipts)) == (3, 40, outcome.units - 1)


def test_vacuum_unfinished_removes_an_unfinished_run_and_its_files(tmp_path, corpus, job, reporter):
    table = tmp_path / "table"
    write_corpus(corpus, [edited(40, *range(40))])
    with pytest.raises(Stops):
        refresh(job, Stopping())
    runs_before = run_names(str(table))
    done = vacuum(str(table), 0, unfinished=True)
    assert (done.unfinished, done.versions) == (0, 1)
    assert len(run_names(str(table))) < len(runs_before)
    assert on_disk(table) == files(table)
    assert refresh(job, reporter).encoded == 38  # all but the two texts whose vectors the table already had


@pytest.mark.parametrize("name", ["a b", "100%", "é ü", "日本", "a&b#c", "q?x", "[z]"])
def test_a_table_in_a_folder_of_any_name_has_its_versions(tmp_path, corpus, tiny_model, reporter, name):
    """`deltalake` escapes such names in another way than we do. Once the log was not found, and a vacuum removed all files."""
    table = tmp_path / name / name
    job = make_job(corpus, table, tiny_model)
    assert backfill(job, reporter).version == 1
    write_corpus(corpus, [edited(40, 3)])
    assert refresh(job, reporter).version == 2
    assert [version.operation for version in versions(str(table))][:2] == ["refresh", "backfill"]
    assert vacuum(str(table), 0).versions == 1
    assert on_disk(table) == {unquote(path) for path in files(table)}
    assert len(stored(table)) == 40


def test_a_vacuum_keeps_the_current_version_without_its_commit_in_the_log(tmp_path, job, monkeypatch):
    table = tmp_path / "table"
    monkeypatch.setattr("pipeline.table.delta_table.commits", lambda _: iter(()))
    vacuum(str(table), 0)
    assert files(table) <= on_disk(table)
    assert len(stored(table)) == 40


def test_a_vacuum_of_a_locked_or_missing_table_is_refused(tmp_path, job):
    table = str(tmp_path / "table")
    with (
        lock_table(table, "another-run", what="vectide refresh"),
        pytest.raises(TableConflict, match="is held by vectide refresh"),
    ):
        vacuum(table, 0)
    with pytest.raises(ConfigError, match="there is no table and no run at"):
        vacuum(str(tmp_path / "nothing"), 0)


# ------------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("128MiB", 128 << 20), ("1gb", 10**9), ("65536", 65536), ("1.5 KiB", 1536)]
)
def test_a_size_is_parsed(text, size_bytes):
    assert parse_bytes(text, option="--target") == size_bytes


@pytest.mark.parametrize("text", ["0", "-1MiB", "big", "1XiB", ""])
def test_an_invalid_size_is_refused(text):
    with pytest.raises(ConfigError, match="must be a size above 0"):
        parse_bytes(text, option="--target")


def test_a_table_of_another_tool_is_refused(tmp_path, reporter):
    from deltalake import write_deltalake

    write_deltalake(str(tmp_path / "other"), pa.table({"a": [1]}))
    for call in (lambda url: compact(url, reporter), lambda url: rollback(url, 0), lambda url: diff(url, 0, 0)):
        with pytest.raises(TableConflict, match="that vectide did not make"):
            call(str(tmp_path / "other"))
