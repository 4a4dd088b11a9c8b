"""Duplicate ids: found by hash, compared as texts, and only the first row is kept."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import storage
from actors.unit import row_hashes
from actors.unit.receipt import DataFile, Receipt
from actors.unit.row_hashes import hash_strings
from pipeline.ledger.duplicates import brings_ids, find_duplicates, quarantine_duplicates
from pipeline.ledger.ledger import Ledger, units_to_table
from pipeline.ledger.run_description import RunDescription
from tests.examples import examples


def write(table, unit, ids):
    path = f"data/r/{unit}.parquet"
    rows = pa.table({"id": pa.array(ids, pa.string()), "_shard": [f"s{unit}"] * len(ids)})
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    data = bytes(sink.getvalue())
    storage.put(storage.join(table, path), data)
    file = DataFile(path, len(data), len(ids), {}, "{}")
    return Receipt(unit, "a", (file,), len(ids), len(ids), len(ids), 0, 0, 0)


@given(st.lists(st.text(), max_size=50), st.integers(1, 7))
def test_hashes_do_not_depend_on_chunks_of_the_column(texts, cut):
    whole = pa.chunked_array([pa.array(texts, pa.string())])
    parts = pa.chunked_array(
        [pa.array(texts[i : i + cut], pa.string()) for i in range(0, len(texts), cut)], pa.string()
    )
    hashes = hash_strings(whole)
    np.testing.assert_array_equal(hashes, hash_strings(parts))
    np.testing.assert_array_equal(hashes[1:], hash_strings(whole.slice(1)))
    assert len(set(hashes.tolist())) == len(set(texts))


@given(texts=st.lists(st.text(max_size=12), max_size=30), text_bytes=st.integers(1, 20))
def test_hashes_do_not_depend_on_the_text_hashed_at_once(texts, text_bytes):
    column = pa.chunked_array([pa.array(texts, pa.string())])
    at_once = hash_strings(column)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_hashes, "_TEXT_BYTES", text_bytes)
        np.testing.assert_array_equal(hash_strings(column), at_once)


@pytest.mark.slow
def test_neighbouring_ids_do_not_collide():
    ids = [f"doc-{number:07d}" for number in range(200_000)]
    hashes = hash_strings(pa.chunked_array([pa.array(ids)]))
    assert len(np.unique(hashes)) == len(ids)
    assert len(np.unique(hashes % np.uint64(1024))) == 1024


@examples(25)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6, unique=True), max_size=6),
    st.sampled_from([8, 1 << 30]),
)
def test_duplicates_are_those_that_a_plain_loop_finds(units, limit_bytes):
    import tempfile

    with tempfile.TemporaryDirectory() as table:
        receipts = [write(table, unit, ids) for unit, ids in enumerate(units)]
        paths = [receipt.files[0].path for receipt in receipts]
        expected: dict[str, set[str]] = {}
        seen: set[str] = set()
        for path, ids in zip(paths, units, strict=True):
            if repeated := set(ids) & seen:
                expected[path] = repeated
            seen |= set(ids)
        assert find_duplicates(table, paths, limit_bytes=limit_bytes) == expected


def test_brings_ids_is_false_if_the_replaced_files_had_all_ids(tmp_path):
    table = str(tmp_path)
    paths = [
        file.path for unit, ids in enumerate(["abc", "de", "ae", "ef", ""]) for file in write(table, unit, ids).files
    ]
    assert not brings_ids(table, [paths[2]], paths[:2])
    assert not brings_ids(table, [paths[4]], [])
    assert brings_ids(table, [paths[3]], paths[:2])
    assert brings_ids(table, [paths[0]], [])
    assert brings_ids(table, [paths[2]], paths[:2], limit_bytes=4)


def test_duplicates_are_quarantined_and_the_receipt_adds_up(tmp_path):
    table, ledger = str(tmp_path), Ledger(str(tmp_path), "r")
    ledger.freeze(RunDescription("backfill", 1, 3), units_to_table([]))
    receipt = write(table, 4, ["a", "b", "c"])
    overridden = quarantine_duplicates(table, ledger.home(), receipt, {"b"}, run="r", outputs=())
    assert (overridden.rows, overridden.documents, overridden.rows_quarantined, overridden.rows_read) == (2, 2, 1, 3)
    (file,) = overridden.files
    with storage.open_read(storage.join(table, file.path)) as opened:
        rows = pq.read_table(opened, partitioning=None)
    assert rows["id"].to_pylist() == ["a", "c"]
    (bad,) = ledger.quarantine([overridden]).to_pylist()
    assert (bad["id"], bad["shard"], bad["reason"], bad["unit"]) == ("b", "s4", "duplicate_id", 4)
    assert storage.exists(storage.join(table, receipt.files[0].path))
    emptied = quarantine_duplicates(table, ledger.home(), receipt, {"a", "b", "c"}, run="r", outputs=())
    assert (emptied.files, emptied.rows, emptied.rows_quarantined) == ((), 0, 3)


def test_receipts_are_overridden_once(tmp_path):
    table, ledger = str(tmp_path), Ledger(str(tmp_path), "r")
    ledger.freeze(RunDescription("backfill", 1, 3), units_to_table([]))
    receipt = write(table, 0, ["a", "b"])
    storage.create(storage.join(ledger.home(), "receipts/000000/000000000.json"), receipt.to_json().encode())
    overridden = quarantine_duplicates(table, ledger.home(), receipt, {"b"}, run="r", outputs=())
    assert ledger.override_receipts([overridden])
    assert not ledger.override_receipts([receipt])
    assert ledger.receipts() == {0: overridden}
