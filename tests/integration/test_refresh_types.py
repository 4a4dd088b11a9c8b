"""A refresh where the type of a changed shard and that of the table's column meet: the table equals a backfill."""

from __future__ import annotations

import datetime as dt
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors.errors import ConfigError
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from tests.integration.conftest import make_job


def put(folder, name, array):
    folder.mkdir(exist_ok=True)
    ids = [f"{name}{number}" for number in range(len(array))]
    table = pa.table({"id": ids, "title": ids, "text": ids, **({} if array is None else {"c": array})})
    pq.write_table(table, folder / f"{name}.parquet")


def column(table):
    rows = DeltaTable(str(table)).to_pyarrow_table().sort_by("id")
    return rows["c"].type, rows["id"].to_pylist(), rows["c"].to_pylist()


TIMES = [dt.datetime.fromisoformat("2020-01-01T05:00:00.000001"), None]


@pytest.mark.parametrize(
    ("types", "encoded"),
    [
        ((pa.array([1, 2], pa.int32()), pa.array([2**40], pa.int64())), 0),
        ((pa.array([1, 2], pa.int64()), pa.nulls(1)), 0),
        ((pa.nulls(2), pa.array([3])), 0),
        ((pa.array([{"a": 1}, None]), pa.array([{"a": None, "b": "x"}])), 0),
        ((pa.array([dt.date(2020, 1, 1), None]), pa.array(TIMES[:1])), 0),
        ((pa.array([1, 2]), pa.array(["x"])), None),
        ((pa.array(TIMES), pa.array(TIMES[:1], pa.timestamp("us", "UTC"))), None),
    ],
)
def test_a_changed_shard_of_another_type(tmp_path, tiny_model, reporter, types, encoded):
    first, second = types
    corpus = tmp_path / "corpus"
    put(corpus, "a", first)
    put(corpus, "b", first[:1])
    job = make_job(corpus, tmp_path / "table", tiny_model, source__keep=["c"])
    backfill(job, reporter)
    before = column(tmp_path / "table")
    put(corpus, "b", second)
    if encoded is None:
        with pytest.raises(ConfigError, match=r"source\.keep names 'c', which is not of one type: .* in .*a\.parquet'"):
            refresh(job, reporter)
        assert column(tmp_path / "table") == before
        return
    outcome = refresh(job, reporter)
    assert (outcome.encoded, outcome.quarantined, outcome.rows) == (encoded, 0, 3)
    fresh = make_job(corpus, tmp_path / "fresh", tiny_model, source__keep=["c"])
    backfill(fresh, reporter)
    assert column(tmp_path / "table") == column(tmp_path / "fresh")
    assert not refresh(job, reporter).published


def test_a_changed_shard_without_the_column_is_null_there(tmp_path, tiny_model, reporter):
    corpus = tmp_path / "corpus"
    for name in ("a", "b"):
        put(corpus, name, pa.array([1]))
    job = make_job(corpus, tmp_path / "table", tiny_model, source__keep=["c"])
    backfill(job, reporter)
    pq.write_table(pa.table({"id": ["b0"], "title": ["b0"], "text": ["b0"]}), corpus / "b.parquet")
    assert refresh(job, reporter).encoded == 0
    assert column(tmp_path / "table") == (pa.int64(), ["a0", "b0"], [1, None])


def test_json_lines_whose_numbers_change_their_type(tmp_path, tiny_model, reporter):
    def lines(name, *values):
        rows = [{"id": f"{name}{value}", "title": "t", "text": f"{name}{value}", "c": value} for value in values]
        (corpus / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines("a", 1, 2)
    lines("b", 3)
    job = make_job(corpus, tmp_path / "table", tiny_model, source__keep=["c"])
    backfill(job, reporter)
    for values, want in (((3, 0.5), pa.float64()), ((3, "x"), pa.string())):
        lines("b", *values)
        outcome = refresh(job, reporter)
        assert (outcome.encoded, outcome.quarantined) == (1, 0)
        backfill(make_job(corpus, tmp_path / str(want), tiny_model, source__keep=["c"]), reporter)
        assert column(tmp_path / "table") == column(tmp_path / str(want))
        assert column(tmp_path / "table")[0] == want


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.map_(pa.string(), pa.timestamp("us"))], ids=str)
def test_the_first_time_without_a_zone_leaves_the_table_readable(tmp_path, tiny_model, reporter, kind):
    corpus = tmp_path / "corpus"
    values = [TIMES[0], None] if kind == pa.timestamp("us") else [[("k", TIMES[0])], None]
    put(corpus, "a", pa.array(values, kind))
    backfill(make_job(corpus, tmp_path / "table", tiny_model, source__keep=["title"]), reporter)
    job = make_job(corpus, tmp_path / "table", tiny_model, source__keep=["title", "c"])
    outcome = refresh(job, reporter)
    assert (outcome.published, outcome.encoded) == (True, 0)
    assert column(tmp_path / "table") == (kind, ["a0", "a1"], values)
    assert not refresh(job, reporter).published
    pq.write_table(
        pa.table({"id": ["a0"], "title": ["t"], "text": ["new"], "c": pa.array(values[:1], kind)}), corpus / "a.parquet"
    )
    assert refresh(job, reporter).encoded == 1
    assert column(tmp_path / "table") == (kind, ["a0"], values[:1])
