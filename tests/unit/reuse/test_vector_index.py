"""The index of known texts is the same however little memory it may take, and leaves nothing on the disk."""

from __future__ import annotations

import errno
import os
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import storage
from actors.errors import StorageError
from actors.source.content_hash import content_hashes
from actors.storage.temp_dirs import SharedTempDir
from actors.vectors import VectorColumn
from pipeline.ledger.ledger import Ledger, units_to_table
from pipeline.ledger.run_description import RunDescription
from pipeline.reuse import spill, vector_index
from pipeline.reuse.lookup import STORED, reuse_of
from pipeline.reuse.spill import TEXT, Buckets, as_texts, contains, hash_bytes
from pipeline.reuse.vector_index import build_index
from tests.examples import examples

LITTLE = 3
OUTPUTS = (VectorColumn("embedding", "dense", 2),)


@pytest.fixture(autouse=True)
def shared(tmp_path, monkeypatch):
    """The folder of the shared temp dirs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp" / f"vectide-{os.getuid()}"


def entries_of(shared):
    return list(shared.iterdir()) if shared.exists() else []


def hashes_of(texts):
    return content_hashes(pa.array([f"text {text}" for text in texts], pa.string()))


def write_files(table, files):
    """Files of a table: in each, texts with one vector a chunk."""
    paths = []
    for number, documents in enumerate(files):
        ids, texts = [], []
        places: list[int] = []
        numbers: list[int] = []
        for place, (text, chunks) in enumerate(documents):
            ids += [f"{number}-{place}"] * chunks
            texts += [text] * chunks
            places += [place] * chunks
            numbers += range(chunks)
        rows = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "_hash": hashes_of(texts),
                "start": pa.array([number] * len(ids), pa.int32()),
                "tokens": pa.array(places, pa.int32()),
                "chunk": pa.array(numbers, pa.int32()),
                "embedding": pa.array([[0.6, 0.8]] * len(ids), pa.list_(pa.float32(), 2)),
            }
        )
        path = f"data/{number}.parquet"
        os.makedirs(os.path.join(table, "data"), exist_ok=True)
        pq.write_table(rows, os.path.join(table, path))
        paths.append(path)
    return paths


def ask(table, run, paths, wanted, asked, *, limit=LITTLE):
    """What a driver and then a reader find with memory for `limit` rows: the index, and the vectors of `asked`."""
    with pytest.MonkeyPatch.context() as patch, Buckets(TEXT) as texts:
        patch.setattr(spill, "LIMIT_ROWS", limit)
        patch.setattr(vector_index, "_THREADS", 2)
        for part in wanted or ():
            texts.add(as_texts(hash_bytes(pa.chunked_array([hashes_of(part)]))))
        with build_index(table, paths, None if wanted is None else texts) as built:
            ledger = Ledger(table, run)
            ledger.freeze(RunDescription("backfill", 0, 0), units_to_table([]), reuse=built.tables())
            facts = built.rows, built.unknown, built.parts
    if built.parts == 0:
        return facts, [], []
    rows = pa.table({"_hash": hashes_of(asked)})
    unknown, ready = reuse_of(table, ledger.home(), built.parts).split(rows, STORED, OUTPUTS)
    return facts, unknown["_hash"].to_pylist(), [] if ready is None else ready.to_pylist()


texts = st.integers(0, 30)
documents = st.lists(st.tuples(texts, st.integers(1, 3)), max_size=12)


@pytest.mark.slow
@examples(25)
@given(
    st.lists(documents, max_size=5),
    st.none() | st.lists(st.lists(texts, max_size=10), max_size=4),
    st.lists(texts, max_size=12),
)
def test_the_memory_limit_changes_no_result(files, wanted, asked):
    with tempfile.TemporaryDirectory() as table:
        paths = write_files(table, files)
        (rows, unknown, _), *much = ask(table, "much", paths, wanted, asked, limit=1000)
        (rows_, unknown_, parts), *little = ask(table, "little", paths, wanted, asked)
        places: dict[int, tuple[int, int]] = {}
        for number, file in enumerate(files):
            for place, (text, _) in enumerate(file):
                if wanted is None or any(text in part for part in wanted):
                    places.setdefault(text, (number, place))
        assert (rows, unknown) == (rows_, unknown_)
        assert rows == len(places)
        if wanted is not None:
            assert unknown == len({text for part in wanted for text in part} - places.keys())
        assert parts >= rows / LITTLE
        assert much == little
        if places:
            found = [(row["start"], row["tokens"]) for row in little[1] if row["chunk"] == 0]
            assert found == [places[text] for text in asked if text in places]
        reuse_of.cache_clear()


def test_no_file_is_left_on_the_disk(tmp_path, shared):
    files = [[(text, 1) for text in range(start, start + 10)] for start in range(0, 60, 10)]
    paths = write_files(str(tmp_path / "table"), files)
    wanted = [range(40), range(20, 80)]
    facts, *_ = ask(str(tmp_path / "table"), "run", paths, wanted, range(70))
    assert facts == (60, 20, facts[2])
    assert facts[2] >= 20
    assert [path.name[:6] for path in entries_of(shared) if path.suffix == ""] == ["known-"]  # what the reader maps
    reuse_of.cache_clear()
    assert entries_of(shared) == []


def test_no_file_is_left_on_the_disk_after_an_error(tmp_path, shared):
    files = [[(text, 1) for text in range(start, start + 10)] for start in range(0, 60, 10)]
    paths = write_files(str(tmp_path / "table"), files)
    with pytest.raises(FileNotFoundError, match="missing"):
        ask(str(tmp_path / "table"), "run", [*paths, "data/missing.parquet"], [range(60)], [])
    assert entries_of(shared) == []


def test_a_full_disk_is_reported_in_one_sentence(tmp_path, shared, monkeypatch):
    def refuses(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    paths = write_files(str(tmp_path / "table"), [[(text, 1) for text in range(20)]])
    monkeypatch.setattr(spill, "open", refuses, raising=False)
    with pytest.raises(StorageError, match="the disk is full. Free some space and run the same command again"):
        ask(str(tmp_path / "table"), "run", paths, None, [])
    assert entries_of(shared) == []


def test_a_reader_writes_all_files_after_another_was_killed(tmp_path, shared):
    table = str(tmp_path / "table")
    paths = write_files(table, [[(text, 1) for text in range(20)]])
    ask(table, "run", paths, None, [])
    reuse_of.cache_clear()
    parts = len(list(storage.walk(storage.join(Ledger(table, "run").home(), "reuse"))))
    stands = reuse_of(table, Ledger(table, "run").home(), parts)
    (known,) = [path for path in entries_of(shared) if path.is_dir()]
    stands_in = SharedTempDir(known.name)  # a second process
    (known / "index").rename(known / "unfinished")
    (known / "unfinished" / "hashes").write_bytes(b"half of it" * 1000)
    reuse_of.cache_clear()
    _, ready = reuse_of(table, Ledger(table, "run").home(), parts).split(
        pa.table({"_hash": hashes_of(range(20))}), [], OUTPUTS
    )
    assert ready is not None
    assert ready.num_rows == 20
    del stands
    reuse_of.cache_clear()
    assert known.exists()
    stands_in.leave()
    assert entries_of(shared) == []


def test_a_shared_temp_dir_of_a_killed_process_is_cleared_by_the_next(shared):
    killed, alive = SharedTempDir("killed"), SharedTempDir("alive")
    for temp_dir in (killed, alive):
        (temp_dir.path / "file").write_bytes(b"some")
    ended = killed.leave.detach()
    assert ended is not None
    os.close(ended[2][1])  # all that the system does for a process that is killed
    assert (killed.path / "file").exists()
    assert list(SharedTempDir("killed").path.iterdir()) == []
    assert (SharedTempDir("alive").path / "file").exists()
    alive.leave()
    assert entries_of(shared) == []


def test_a_temp_folder_of_another_user_is_not_used(shared, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 7)
    with pytest.raises(StorageError, match="another user's; set TMPDIR"):
        SharedTempDir("name")


def test_a_missing_part_is_an_error(tmp_path):
    table = str(tmp_path / "table")
    paths = write_files(table, [[(text, 1) for text in range(20)]])
    facts, *_ = ask(table, "run", paths, None, [])
    reuse_of.cache_clear()
    home = Ledger(table, "run").home()
    storage.delete(storage.join(home, "reuse", "001.parquet"))
    with pytest.raises(StorageError, match="another program removed a part of the plan"):
        reuse_of(table, home, facts[2])


def test_hashes_of_another_tool_are_compared_as_they_are():
    column = pa.chunked_array([pa.array(["b", "a" * 32], pa.string()), pa.array(["", "c" * 32], pa.string())])
    assert hash_bytes(column).tolist() == [b"b", b"a" * 32, b"", b"c" * 32]
    ours = pa.chunked_array([hashes_of(range(9)).slice(2, 4), hashes_of([1])])
    assert hash_bytes(ours).tolist() == [text.encode() for text in ours.to_pylist()]
    assert hash_bytes(pa.chunked_array([], pa.string())).tolist() == []
    np.testing.assert_array_equal(contains(np.zeros(0, "S32"), hash_bytes(ours)), [False] * 5)
