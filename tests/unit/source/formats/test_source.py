from __future__ import annotations

import io
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors import storage
from actors.errors import ConfigError, DataError
from actors.schema import Shard
from actors.source.read_unit import SourceSpec, check_source, corpus_root


def parquet(**columns) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def check(shards, **settings) -> SourceSpec:
    return check_source(shards, root="/corpus", **settings)


def test_a_valid_source(put):
    shard = put("a.parquet", parquet(doc=[1], text=["a"], lang=pa.array(["de"]).dictionary_encode(), extra=[1.5]))
    spec = check([shard], id="doc", text=("text",), keep=("lang", "extra"))
    assert spec == SourceSpec(
        "parquet", "/corpus", ("text",), "doc", (("lang", pa.string()), ("extra", pa.float64())), None, True
    )
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.schema().names == ["id", "lang", "extra", "_content", "_hash", "_shard", "_position"]


@pytest.mark.parametrize("key", ["id", "text", "keep", "task"])
def test_a_missing_column_is_reported_with_all_columns_and_the_nearest(put, key):
    shard = put("a.parquet", parquet(text=["a"], title=["b"]))
    value = "titel" if key in ("id", "task") else ("titel",)
    with pytest.raises(ConfigError, match=r"'titel'.*\['text', 'title'\]; did you mean 'title'\?"):
        check([shard], **{key: value})


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"text": ("n",)}, r"source\.text names 'n', which is int64 in .*must be text\."),
        ({"text": ("b",)}, r"source\.text names 'b', which is binary"),
        ({"id": "f"}, r"source\.id names 'f', which is bool .*must be text or whole numbers"),
        ({"task": "n"}, r"source\.task_column names 'n', which is int64"),
        ({"keep": ("d",)}, r"source\.keep names 'd', which is duration.*Delta Lake has no such type"),
        ({"keep": ("id",)}, r"source\.keep names 'id', which is reserved for the table"),
        ({"keep": ("_x",)}, r"source\.keep names '_x', which is reserved for the table"),
        ({"text": ()}, r"source\.text names no column"),
        ({"text": ("_position",)}, "'_position' is reserved for the readers"),
    ],
)
def test_a_column_of_a_wrong_type_or_name(put, settings, rule):
    data = parquet(text=["a"], n=[1], b=[b"a"], f=[True], d=pa.array([1], pa.duration("s")))
    with pytest.raises(ConfigError, match=rule):
        check([put("a.parquet", data)], **settings)


def test_a_text_column_that_a_later_shard_lacks_names_the_shard(put):
    shards = [put("a.parquet", parquet(text=["a"])), put("b.parquet", parquet(body=["a"]))]
    with pytest.raises(
        ConfigError, match=r"'text', which .*a\.parquet' has and .*b\.parquet' has not: it has \['body'\]"
    ):
        check(shards)


def test_a_kept_column_may_be_missing_in_some_shards_and_widens(put):
    shards = [
        put("a.parquet", parquet(text=["a"])),
        put("b.parquet", parquet(text=["a"], n=pa.array([1], pa.int32()))),
        put("c.parquet", parquet(text=["a"], n=pa.array([None], pa.null()))),
        put("d.parquet", parquet(text=["a"], n=pa.array([1], pa.int64()))),
    ]
    assert check(shards, keep=("n",)).keep == (("n", pa.int64()),)


def test_a_kept_column_of_two_kinds_is_refused_by_name(put):
    shards = [put("a.parquet", parquet(text=["a"], n=[1])), put("b.parquet", parquet(text=["a"], n=["x"]))]
    with pytest.raises(
        ConfigError, match=r"'n', which is not of one type: int64 in .*a\.parquet', string in .*b\.parq"
    ):
        check(shards, keep=("n",))


def test_json_lines_are_checked_row_by_row(put):
    shards = [
        put("a.jsonl", json.dumps({"id": 1, "text": 5, "n": 1}).encode()),
        put("b.jsonl", b"\n"),
        put("c.jsonl", json.dumps({"text": "a", "n": "x", "nested": {}}).encode()),
    ]
    spec = check(shards, id="id", keep=("n", "nested"))
    assert spec.keep == (("n", pa.string()), ("nested", pa.string()))
    assert spec.format == "jsonl"


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", b""), ("a.jsonl", b"\n \n"), ("a.csv", b""), ("a.csv.gz", b"")])
def test_files_without_a_readable_row_are_refused(put, name, data):
    with pytest.raises(ConfigError, match="none of the 1 files at '/corpus' has a row that can be read as"):
        check([put(name, data)])


def test_shards_without_rows_are_ignored(put):
    check([put("a.csv", b""), put("b.csv", b"text\na\n")])


def test_a_source_without_files_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there are no files at '/corpus'\. Check source\.uri"):
        check(storage.glob(str(tmp_path)).shards)


def test_mixed_formats_name_two_files(put):
    shards = [put("a.parquet", parquet(text=["a"])), put("b.csv", b"text\na\n")]
    with pytest.raises(ConfigError, match=r"a\.parquet' is parquet and .*b\.csv' is csv: a source has one format"):
        check(shards)


def test_a_truncated_shard_is_found_by_name(put):
    shards = [put("a.parquet", parquet(text=["a"])), put("b.parquet", parquet(text=["a"])[:-9])]
    with pytest.raises(DataError, match=r"b\.parquet' cannot be read as Parquet"):
        check(shards)


def test_documents_need_no_settings(put):
    spec = check([put("a.md", b"# A"), put("b.txt", b"")], keep=("name",))
    assert spec == SourceSpec("text", "/corpus", ("text",), None, (("name", pa.string()),))


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("/data/wiki/*.parquet", "/data/wiki"),
        ("/data/wiki/part-*/x?.parquet", "/data/wiki"),
        ("/data/wiki/", "/data/wiki"),
        ("file:///data/wiki", "/data/wiki"),
        ("/data/wiki/one.parquet", "/data/wiki"),
        ("memory://data/wiki/*.parquet", "memory:///data/wiki"),
    ],
)
def test_the_root_of_a_corpus_is_spelled_as_its_shards(uri, root):
    assert corpus_root(uri, [Shard("/data/wiki/one.parquet", 1, "")]) == root


def test_the_root_of_a_store(put_in_memory):
    shard = put_in_memory("a.txt", b"a")
    folder = shard.path.rsplit("/", 1)[0].replace("memory:///", "memory://")
    for uri in (folder, folder + "/", f"{folder}/*.txt", f"{folder}/a.txt"):
        found = storage.glob(uri).shards
        assert [each.path for each in found] == [shard.path]
        assert shard.path == corpus_root(uri, found) + "/a.txt"


@pytest.mark.parametrize(
    ("data", "holds"),
    [
        (b'{"documents": [{"text": "a"}, {"text": "b"}]}\n', "one JSON object around a list, 'documents'"),
        (b'{"body": "a"}\n{"body": "b"}\n', r"no row with one of the text columns \['text'\], but with \['body'\]"),
    ],
)
def test_a_file_none_of_whose_rows_has_a_text_is_refused(put, data, holds):
    with pytest.raises(DataError, match=rf"b\.jsonl' holds {holds}.*leave it out"):
        check([put("a.jsonl", b'{"text": "a"}\n'), put("b.jsonl", data)])
