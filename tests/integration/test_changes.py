"""Changes between versions: an index that applies them equals the table, also where a sink stopped on the way."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from actors import storage
from actors.errors import ConfigError, TableConflict
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.table.changes import Change, iter_changes
from pipeline.table.diff import Comparison
from pipeline.table.export import changes
from pipeline.table.row_diff import read_rows
from pipeline.table.vacuum import vacuum
from pipeline.table.versions import rollback
from tests.integration.conftest import Silent, make_job, rows, write_corpus, write_one

CHUNKS = {"mode": "split", "max_tokens": 4}
LONG = "one two three four five six seven eight nine ten " * 3


def content(table, version=None):
    """Return the rows of a version by key, without where they were read."""
    found = DeltaTable(str(table), version=version).to_pyarrow_table().drop_columns(["_shard"]).to_pylist()
    return {key_of(row): row for row in found}


def key_of(row):
    return (row["id"], row["chunk"]) if "chunk" in row else (row["id"],)


def apply(index, upserts, deletes):
    """Apply rows to an index, as its owner would."""
    for row in deletes:
        del index[tuple(row.values())]
    for row in upserts:
        index[key_of(row)] = {name: value for name, value in row.items() if name != "_shard"}


def read_export(out: Path):
    found = {}
    for kind in ("upserts", "deletes"):
        found[kind] = ds.dataset(out / kind).to_table().to_pylist() if (out / kind).exists() else []
    summary = json.loads((out / "changes.json").read_text())
    assert (len(found["upserts"]), len(found["deletes"])) == (summary["upserts"], summary["deletes"])
    return found["upserts"], found["deletes"]


def make_history(folder: Path, model: Path, chunking) -> Path:
    """Make a table with a version of each kind: refreshed, compacted, changed by another tool, rolled back, re-embedded."""
    shards = [rows(8), rows(8, start=8)]
    shards[0][5]["text"] = LONG
    corpus = write_corpus(folder / "corpus", shards)

    def job(**settings):
        table = {
            "table__partition_by": ["lang"],
            "table__foreign_commits": "keep",
            "table__file_size": None,
            "run__unit_rows": 4,
        }
        return make_job(corpus, folder / "table", model, chunking=chunking, **table, **settings)

    backfill(job(), Silent())
    shards[0][5]["text"] = "short now"
    shards[1] = [*shards[1][:-2], *rows(2, start=60)]
    write_corpus(corpus, shards)
    refresh(job(), Silent())
    compact(str(folder / "table"), Silent())
    DeltaTable(str(folder / "table")).delete("id in ('r1', 'r9')")
    write_one(corpus / "part-0000.parquet", [*shards[0][:-1], *rows(1, start=70)])
    refresh(job(), Silent())
    rollback(str(folder / "table"), 2)
    refresh(job(encoder__max_tokens=7), Silent())
    return folder / "table"


@pytest.fixture(scope="module", params=["documents", "chunks"])
def history(request, tmp_path_factory, tiny_model) -> Path:
    chunking = CHUNKS if request.param == "chunks" else {"mode": "none"}
    return make_history(tmp_path_factory.mktemp(request.param), tiny_model, chunking)


@pytest.fixture
def copied(history, tmp_path) -> Path:
    """A copy of the table of documents or chunks."""
    return Path(shutil.copytree(history, tmp_path / "table"))


@pytest.mark.parametrize("passes", ["one", "two"])
def test_an_index_that_applies_the_changes_equals_the_table(history, monkeypatch, passes):
    known = range(1, DeltaTable(str(history)).version() + 1)
    contents = {version: content(history, version) for version in known}
    if passes == "two":
        monkeypatch.setattr(Comparison.rows, "__defaults__", (len(contents[1]) * 3 // 2,))
    kinds = set()
    for since, version in permutations(known, 2):
        index = dict(contents[since])
        stream = iter_changes(str(history), since, version)
        assert (stream.since, stream.version) == (since, version)
        found = list(stream)
        upserts = [row for change in found for row in change.upserts.to_pylist()]
        deletes = [row for change in found for row in change.deletes.to_pylist()]
        touched = [key_of(row) for row in upserts] + [tuple(row.values()) for row in deletes]
        assert len(set(touched)) == len(touched), "a key is twice among upserts and deletes"
        apply(index, upserts, deletes)
        assert index == contents[version]
        kinds.add((bool(upserts), bool(deletes)))
    assert kinds > {(False, False), (True, True)}


def test_a_compaction_has_no_changes(history):
    assert list(iter_changes(str(history), 2, 3)) == []


def test_a_re_embedding_upserts_every_row_under_another_fingerprint(history):
    last = DeltaTable(str(history)).version()
    stream = iter_changes(str(history), last - 1)
    assert stream.embedding_spec_changed
    assert stream.fingerprint != iter_changes(str(history), 1, last - 1).fingerprint
    assert sum(change.upserts.num_rows for change in stream) == len(content(history))


def test_an_item_has_rows_of_one_file_and_only_that_file_is_read(history, monkeypatch):
    stream = iter_changes(str(history), 1, 2)
    read = []

    def read_and_note(url, file, *rest):
        read.append(file.path)
        return read_rows(url, file, *rest)

    monkeypatch.setattr("pipeline.table.diff.read_rows", read_and_note)
    compared = 0
    for number, change in enumerate(stream):
        if number == 0:
            compared = len(read) - 1  # every changed file was compared before the first item
        assert len(read) == compared + number + 1
        assert (change.upserts.num_rows > 0) != (change.deletes.num_rows > 0)


def test_a_sink_starts_again_from_a_stored_position(history):
    whole = list(iter_changes(str(history), 1, 2))
    positions = [change.position for change in whole]
    assert positions == sorted(set(positions))
    assert len(whole) > 3
    for number, stored in enumerate([0, *positions]):
        rest: list[Change] = list(iter_changes(str(history), 1, 2, start=stored))
        assert rest == whole[number:]
    with pytest.raises(ConfigError, match=rf"version 1 to 2 of .* positions 0 to \d+, not {positions[-1] + 99}; start"):
        iter_changes(str(history), 1, 2, start=positions[-1] + 99)


def test_a_row_whose_id_another_file_still_has_is_no_delete(tmp_path, tiny_model):
    twice = [*rows(4), {**rows(1)[0], "text": "the same id again"}]
    corpus = write_corpus(tmp_path / "corpus", [twice[:4], twice[4:]])
    table = tmp_path / "table"
    job = make_job(corpus, table, tiny_model, source__unique_ids=False, table__file_size=None)
    backfill(job, Silent())
    (corpus / "part-0001.parquet").unlink()
    refresh(job, Silent())
    index = content(table, 1)
    found = list(iter_changes(str(table), 1))
    assert [change.deletes.num_rows for change in found] == [0]
    apply(index, found[0].upserts.to_pylist(), [])
    assert index == content(table)


# ---------------------------------------------------------------------------------------------------------- the export


class Killed(BaseException):
    """What a test raises in the place of a kill."""


def killed_export(table: Path, out: Path, *, after: int) -> None:
    """Export the changes since version 2, and die after so many writes and deletions of objects."""
    calls = iter(range(after))

    def dying(call):
        def wrapped(*arguments):
            if next(calls, None) is None:
                raise Killed
            return call(*arguments)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "create", "delete"):
            patch.setattr(storage, name, dying(getattr(storage, name)))
        with pytest.raises(Killed):
            changes(str(table), 2, str(out))


def test_an_export_that_was_killed_anywhere_goes_on(copied, tmp_path):
    done = changes(str(copied), 2, str(tmp_path / "whole"))
    whole = read_export(tmp_path / "whole")
    assert done.upserts > 0
    assert done.deletes > 0
    objects = len([path for path in (tmp_path / "whole").rglob("*") if path.is_file()])
    for after in range(1, objects + 2):  # also between changes.json and the end
        out = tmp_path / f"killed-{after}"
        killed_export(copied, out, after=after)
        (out / ".part-00000.parquet.5f.tmp").write_bytes(b"half")  # what a kill during a write leaves
        again = changes(str(copied), 2, str(out))
        assert (again.upserts, again.deletes, again.version) == (done.upserts, done.deletes, done.version)
        assert read_export(out) == whole
        assert not (out / "unfinished.json").exists()
        with pytest.raises(ConfigError, match="holds something already"):
            changes(str(copied), 2, str(out))


def test_an_export_goes_on_to_the_version_that_it_began_with(copied, tmp_path):
    version = DeltaTable(str(copied)).version()
    changes(str(copied), 2, str(tmp_path / "whole"))
    killed_export(copied, tmp_path / "out", after=2)
    rollback(str(copied), 1)
    assert changes(str(copied), 2, str(tmp_path / "out")).version == version
    assert read_export(tmp_path / "out") == read_export(tmp_path / "whole")


def test_an_output_that_is_a_file_is_refused(copied, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        changes(str(copied), 1, str(tmp_path / "file"))


@pytest.mark.parametrize("out", ["", "/", "/out", "/data/out", "/../link/out/"])
def test_an_output_inside_of_the_table_is_refused(copied, tmp_path, out):
    (tmp_path / "link").symlink_to(copied)
    before = sorted(copied.rglob("*"))
    with pytest.raises(ConfigError, match=r"lies where the table .* keeps its own files.* name a folder outside of it"):
        changes(str(copied), 1, f"{copied}{out}")
    assert sorted(copied.rglob("*")) == before


def test_a_folder_with_something_else_is_refused_with_the_fix(copied, tmp_path):
    out = tmp_path / "out"
    killed_export(copied, out, after=2)
    with pytest.raises(
        ConfigError, match="an unfinished export of the changes since version 2 of .*repeat that command"
    ):
        changes(str(copied), 1, str(out))
    rollback(str(copied), 1)
    vacuum(str(copied), 0)
    with pytest.raises(TableConflict, match="are gone.*The unfinished export in .* cannot go on; name another folder"):
        changes(str(copied), 2, str(out))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something already; name a folder that is empty or not there"):
        changes(str(copied), 1, str(tmp_path / "mine"))
