"""Other Delta tools on a table of ours: what they remove, add, rewrite and clean up is found, named, and then kept or
undone as the job says; what changes no row costs nothing."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from actors.errors import ForeignCommits, TableConflict
from pipeline.ledger.ledger import Ledger
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.table import delta_table
from pipeline.table.status import status
from pipeline.table.vacuum import vacuum
from pipeline.table.versions import rollback
from tests.integration.conftest import Silent, Stopping, Stops, make_job, rows, write_corpus, write_one
from tests.integration.test_refresh import assert_same


class Here:
    """A corpus of three shards, its table, and jobs over them."""

    def __init__(self, folder: Path, model: Path, **changes: Any) -> None:
        self.folder, self.model, self.changes = folder, model, changes
        self.corpus = write_corpus(folder / "corpus", [rows(8, start=8 * n) for n in range(3)])
        self.table = folder / "table"

    def job(self, mode: str = "refuse", **changes: Any):
        merged = {**self.changes, "table__foreign_commits": mode, **changes}
        return make_job(self.corpus, changes.pop("to", self.table), self.model, **merged)

    def refresh(self, mode: str = "refuse", **changes: object):
        return refresh(self.job(mode, **changes), Silent())

    def edit(self, shard: int, **texts: str) -> None:
        """Other texts for some rows of a shard."""
        first = 8 * shard
        changed = [{**row, "text": texts.get(str(row["id"]), row["text"])} for row in rows(8, start=first)]
        write_one(self.corpus / f"part-{shard:04d}.parquet", changed)

    def fresh(self) -> Path:
        """What a backfill of today's source would make."""
        place = self.folder / "fresh"
        shutil.rmtree(place, ignore_errors=True)
        backfill(make_job(self.corpus, place, self.model, **self.changes), Silent())
        return place

    @property
    def open(self) -> DeltaTable:
        return DeltaTable(str(self.table))

    def ids(self) -> list[str]:
        return sorted(self.open.to_pyarrow_table()["id"].to_pylist(), key=str)

    def append(self, **columns: object) -> None:
        """A row as another tool would add it: a copy of one of ours with other values."""
        row = self.open.to_pyarrow_table().slice(0, 1)
        for name, value in {"id": "new", **columns}.items():
            column = pa.array([value], row.schema.field(name).type)
            row = row.set_column(row.column_names.index(name), name, column)
        write_deltalake(str(self.table), row, mode="append")

    def clean(self) -> None:
        clean_log(self.table)


def clean_log(table: Path) -> None:
    """Remove the log before a checkpoint."""
    settings = {"delta.logRetentionDuration": "interval 0 days", "delta.enableExpiredLogCleanup": "true"}
    DeltaTable(str(table)).alter.set_table_properties(settings)
    DeltaTable(str(table)).create_checkpoint()
    time.sleep(0.01)
    DeltaTable(str(table)).cleanup_metadata()


@pytest.fixture
def here(tmp_path, tiny_model) -> Here:
    made = Here(tmp_path, tiny_model)
    backfill(made.job(), Silent())
    return made


@pytest.fixture
def parted(tmp_path, tiny_model) -> Here:
    made = Here(tmp_path, tiny_model, table__partition_by=["lang"])
    backfill(made.job(), Silent())
    return made


def test_a_cleaned_log_changes_no_result(here):
    here.clean()
    assert not (here.table / "_delta_log" / f"{1:020d}.json").exists()
    outcome = here.refresh()
    assert (outcome.published, outcome.encoded) == (False, 0)
    found = status(str(here.table))
    assert [run.version for run in found.runs] == [1]
    assert found.foreign is None
    here.edit(1, r9="changed")
    assert here.refresh().encoded == 1
    assert_same(here.table, here.fresh())


@pytest.mark.parametrize("clean", [False, True], ids=["log kept", "log cleaned up"])
@pytest.mark.parametrize("vacuumed", [False, True], ids=["files kept", "files vacuumed"])
def test_an_optimize_of_another_tool_changes_no_row(parted, clean, vacuumed):
    parted.edit(0, r1="first")
    parted.refresh()
    parted.open.optimize.compact()
    if vacuumed:
        parted.open.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    if clean:
        parted.clean()
    assert not parted.refresh().published
    parted.edit(1, r9="changed")
    assert parted.refresh().encoded == 1
    assert_same(parted.table, parted.fresh())


@pytest.mark.parametrize("clean", [False, True], ids=["log kept", "log cleaned up"])
@pytest.mark.parametrize("change", ["update", "replace"])
def test_changed_rows_are_found_without_the_files_of_vectides_version(parted, change, clean):
    """As many rows as before, the log cleaned up and our files vacuumed: only digests tell."""
    if change == "update":
        parted.open.update(new_values={"lang": "zz"}, predicate="id = 'r3'")
    else:
        parted.open.delete("id = 'r3'")
        parted.append()
        parted.open.optimize.compact()
    parted.open.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    if clean:
        parted.clean()
    assert status(str(parted.table)).foreign is not None
    with pytest.raises(ForeignCommits, match=r"it had 24 rows and has 24, but not the same ones"):
        parted.refresh()
    assert parted.refresh("restore").encoded <= 1
    assert_same(parted.table, parted.fresh())
    assert not parted.refresh().published


def test_digests_stay_known_over_refreshes_compactions_and_rollbacks(parted):
    parted.edit(0, r1="first")
    parted.refresh()
    compact(str(parted.table), Silent())
    rollback(str(parted.table), 1)
    parted.refresh()
    parted.open.optimize.compact()
    parted.open.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    parted.clean()
    assert status(str(parted.table)).foreign is None
    assert not parted.refresh().published


def test_a_foreign_commit_is_refused_with_version_tool_and_rows(here):
    here.open.delete("id in ('r3', 'r9')")
    here.append()
    said = (
        r"since version 1: 2 rows removed .first id 'r\d'., 1 row added .first id 'new'.*version 2 by DELETE .delta-rs"
    )
    for command in (here.refresh, lambda: backfill(here.job("keep"), Silent())):
        with pytest.raises(
            ForeignCommits, match=said + ".*version 3 by WRITE.*--foreign-commits keep or restore"
        ) as caught:
            command()
        assert caught.value.exit_code == 1
    with pytest.raises(ForeignCommits, match="2 rows removed"):
        compact(str(here.table), Silent())
    assert "2 rows removed" in (status(str(here.table)).foreign or "")
    assert here.open.version() == 3


def test_keep_leaves_foreign_changes_for_good(parted):
    parted.open.delete("id in ('r3', 'r9')")
    parted.append(_shard=None, _hash=None)
    outcome = parted.refresh("keep")
    assert (outcome.published, outcome.encoded) == (True, 0)
    wanted = sorted([*(f"r{n}" for n in range(24) if n not in (3, 9)), "new"])
    assert parted.ids() == wanted
    for _ in range(2):
        assert not parted.refresh().published
        assert not backfill(parted.job(), Silent()).published
    parted.edit(0, r1="changed")
    assert parted.refresh().encoded == 1
    compact(str(parted.table), Silent())
    parted.clean()
    parted.edit(1, r10="changed")
    assert parted.refresh().encoded == 1
    assert parted.ids() == wanted
    parted.edit(0, r3="another text of the removed row")
    assert parted.refresh().encoded >= 1
    assert parted.ids() == sorted([*wanted, "r3"])


def test_rows_removed_by_another_tool_are_counted(here):
    here.open.delete("id like 'r1%'")  # half of the table: not bad rows, so no limit is met
    here.refresh("keep")
    state = delta_table.state_of(here.open)
    assert state is not None
    run = state.run
    ledger = Ledger(str(here.table), run)
    bad = ledger.quarantine(ledger.receipts().values())
    assert set(bad["reason"].to_pylist()) == {"changed_by_other_tool"}
    assert len(here.ids()) + bad.num_rows == 24


def test_restore_gives_the_table_of_a_backfill(parted):
    parted.open.delete("id in ('r3', 'r9')")
    parted.open.update({"lang": "'xx'"}, predicate="id = 'r5'")
    parted.append()
    outcome = parted.refresh("restore")
    assert (outcome.published, outcome.encoded) == (True, 0)
    assert_same(parted.table, parted.fresh())
    assert not parted.refresh("restore").published
    parted.open.delete("id = 'r3'")
    parted.edit(0, r3="changed", r4="changed too")
    assert parted.refresh("restore").encoded == 2
    assert_same(parted.table, parted.fresh())


def test_restore_undoes_changes_kept_before(parted):
    parted.open.delete("id in ('r3', 'r9')")
    parted.append()
    parted.refresh("keep")
    assert parted.refresh("restore").encoded <= 2
    assert_same(parted.table, parted.fresh())
    assert not parted.refresh().published


def test_restore_encodes_only_texts_without_a_stored_vector(parted):
    parted.open.delete("id in ('r3', 'r9')")
    parted.open.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(ForeignCommits, match="cannot keep that: the changed rows are unknown"):
        parted.refresh("keep")
    assert parted.refresh("restore").encoded == 2
    assert_same(parted.table, parted.fresh())


def test_vacuum_leaves_the_files_that_a_restore_needs(here):
    here.open.delete("id in ('r3', 'r9')")
    vacuum(str(here.table), 0)
    assert here.refresh("restore").encoded == 0
    assert_same(here.table, here.fresh())


def test_vectors_of_another_tool_are_not_reused(here):
    """Another tool overwrites vectors and keeps the hash; a copy of the text elsewhere must not get them."""
    zeros = "[" + ",".join(["0.0"] * len(here.open.to_pyarrow_table()["embedding"][0])) + "]"
    here.open.update({"embedding": zeros}, predicate="id in ('r3', 'r9')")
    with pytest.raises(ForeignCommits, match="2 rows removed.*2 rows added.*counts as both"):
        here.refresh()
    copied = shutil.copytree(here.table, here.folder / "kept")
    assert here.refresh("restore").encoded == 0
    assert_same(here.table, here.fresh())
    here.table = copied
    here.refresh("keep")
    twin = {**rows(1, start=9)[0], "id": "twin"}
    write_one(here.corpus / "part-0003.parquet", [twin])
    assert here.refresh().encoded == 1
    found = {row["id"]: row["embedding"] for row in here.open.to_pyarrow_table().to_pylist()}
    assert not np.any(found["r9"])
    assert np.any(found["twin"])


def test_a_restored_version_is_found(here):
    here.edit(0, r1="changed")
    (here.corpus / "part-0002.parquet").unlink()
    here.refresh()
    here.open.restore(1)
    with pytest.raises(ForeignCommits, match="1 row removed.*9 rows added.*version 3 by RESTORE"):
        here.refresh()
    copied = shutil.copytree(here.table, here.folder / "kept")
    assert here.refresh("restore").encoded == 0
    assert_same(here.table, here.fresh())
    here.table = copied
    before = here.ids()
    assert here.refresh("keep").encoded == 0
    assert here.ids() == before


def test_a_merge_is_found_and_kept(here):
    source = here.open.to_pyarrow_table().slice(0, 2)
    changed = source.set_column(source.column_names.index("lang"), "lang", pa.array(["zz", "zz"]))
    merged = here.open.merge(changed, "s.id = t.id", source_alias="s", target_alias="t")
    merged.when_matched_update_all().execute()
    with pytest.raises(ForeignCommits, match="2 rows removed.*2 rows added"):
        here.refresh()
    here.refresh("keep")
    first = min(changed["id"].to_pylist())
    here.edit(0, **{first: "the source changes it"})
    here.refresh()
    langs = dict(zip(*(here.open.to_pyarrow_table()[name].to_pylist() for name in ("id", "lang")), strict=True))
    assert len(here.ids()) == 24
    assert langs[first] == "zz"


def test_another_set_of_columns_is_refused_or_undone(here):
    row = pa.table({"id": ["new"], "note": ["x"]})
    write_deltalake(str(here.table), row, mode="append", schema_mode="merge")
    with pytest.raises(ForeignCommits, match=r"columns added: note: string.*--foreign-commits restore"):
        here.refresh()
    with pytest.raises(ForeignCommits, match="cannot keep that: the columns"):
        here.refresh("keep")
    assert here.refresh("restore").encoded == 0
    assert_same(here.table, here.fresh())
    assert "note" not in here.open.to_pyarrow_table().column_names


def test_an_overwritten_table_is_restored(here):
    write_deltalake(str(here.table), pa.table({"x": [1]}), mode="overwrite", schema_mode="overwrite")
    with pytest.raises(ForeignCommits, match="columns removed: id"):
        here.refresh()
    assert here.refresh("restore").encoded == 0
    assert_same(here.table, here.fresh())


def test_a_table_without_a_vectide_version_is_refused(here):
    here.clean()
    shutil.rmtree(here.table / "_vectide")
    for mode in ("refuse", "keep"):
        with pytest.raises(
            ForeignCommits, match="neither the log nor a record of vectide names the run that made the 24 rows"
        ):
            here.refresh(mode)
    assert here.refresh("restore").encoded == 0
    assert_same(here.table, here.fresh())
    assert not here.refresh().published


def test_another_model_leaves_out_rows_removed_by_others(here):
    here.open.delete("id in ('r3', 'r9')")
    with pytest.raises(ForeignCommits, match="2 rows removed"):
        here.refresh(encoder__max_tokens=4)
    here.refresh("keep", encoder__max_tokens=4)
    assert here.ids() == sorted(f"r{n}" for n in range(24) if n not in (3, 9))
    here.append()
    here.refresh("keep", encoder__max_tokens=4)
    with pytest.raises(TableConflict, match="1 rows that another tool added"):
        here.refresh()
    here.refresh("restore")
    assert_same(here.table, here.fresh())


def test_a_rollback_to_foreign_rows_is_refused_and_one_to_own_rows_is_not(here):
    here.open.delete("id in ('r3', 'r9')")
    with pytest.raises(ForeignCommits, match="no run of vectide made"):
        rollback(str(here.table), 2)
    rollback(str(here.table), 1)
    assert not here.refresh().published
    assert_same(here.table, here.fresh())


@pytest.mark.parametrize("mode", ["keep", "restore"])
def test_a_stopped_refresh_over_foreign_commits_resumes(parted, mode):
    parted.open.delete("id in ('r3', 'r9')")
    parted.append()
    parted.edit(0, r1="changed")
    parted.edit(2, r17="changed")
    with contextlib.suppress(Stops):
        refresh(parted.job(mode, run__unit_rows=4), Stopping())
    assert parted.open.version() == 3
    parted.refresh(mode, run__unit_rows=4)
    fresh = parted.fresh()
    if mode == "restore":
        assert_same(parted.table, fresh)
    wanted = {f"r{n}" for n in range(24)} - {"r3", "r9"} | {"new"} if mode == "keep" else {f"r{n}" for n in range(24)}
    assert parted.ids() == sorted(wanted)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"delta.appendOnly": "true"}, "allows nothing but appends"),
        ({"delta.constraints.short": "tokens < 100"}, "has check constraints"),
    ],
)
def test_unsupported_table_features_are_refused_first(here, settings, said):
    if "delta.appendOnly" in settings:
        here.open.alter.set_table_properties(settings)
    else:
        here.open.alter.add_constraint({"short": "tokens < 100"})
    here.edit(0, r1="changed")
    with pytest.raises(TableConflict, match=said):
        here.refresh()
