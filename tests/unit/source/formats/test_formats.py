from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest

from actors.errors import ConfigError
from actors.source.formats import open_format
from actors.source.formats.types import is_id, is_text, merged, stored_type


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("s3://bucket/a.parquet", "parquet"),
        ("/data/A.JSONL", "jsonl"),
        ("a.ndjson.gz", "jsonl"),
        ("a.jsonl.zst", "jsonl"),
        ("a.csv", "csv"),
        ("a.tsv.gz", "csv"),
        ("a.md", "text"),
        ("a.txt", "text"),
    ],
)
def test_the_ending_determines_the_format(path, name):
    assert open_format("auto", path).name == name
    assert open_format(name, "/data/no-ending").name == name


@pytest.mark.parametrize("path", ["/data/a.json", "/data/README", "/data/a.parquet.gz", "/data/a.txt.gz"])
def test_an_unknown_ending_is_refused(path):
    with pytest.raises(ConfigError, match=rf"{path}.*source\.format to one of parquet, jsonl, csv, text"):
        open_format("auto", path)


def test_an_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(
        ConfigError, match=r"'parket' is not a format; known are auto, parquet.*did you mean 'parquet'\?"
    ):
        open_format("parket", "a.parquet")


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.null(), pa.string()),
        (pa.uint8(), pa.int16()),
        (pa.uint64(), pa.int64()),
        (pa.int8(), pa.int8()),
        (pa.float16(), pa.float32()),
        (pa.large_binary(), pa.binary()),
        (pa.binary(16), pa.binary()),
        (pa.date64(), pa.date32()),
        (pa.timestamp("ns"), pa.timestamp("us")),
        (pa.timestamp("s", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.decimal256(30, 2), pa.decimal128(30, 2)),
        (pa.large_list(pa.uint32()), pa.list_(pa.int64())),
        (pa.list_(pa.float32(), 3), pa.list_(pa.float32())),
        (pa.struct([("a", pa.large_string())]), pa.struct([("a", pa.string())])),
        (pa.map_(pa.string(), pa.uint8()), pa.map_(pa.string(), pa.int16())),
        (pa.json_(), pa.string()),
        (pa.decimal256(60, 2), None),
        (pa.duration("s"), None),
        (pa.time32("s"), None),
        (pa.uuid(), None),
        (pa.struct([("a", pa.list_(pa.duration("s")))]), None),
        (pa.list_(pa.time64("us")), None),
        (pa.map_(pa.string(), pa.duration("s")), None),
        (pa.struct([]), None),
    ],
    ids=str,
)
def test_a_kept_column_has_a_type_of_delta_lake(kind, want):
    assert stored_type(kind) == want
    if want is not None:
        assert stored_type(want) == want


def test_text_and_id_types():
    assert is_text(pa.dictionary(pa.int8(), pa.string()))
    assert not is_text(pa.dictionary(pa.int8(), pa.int8()))
    assert not is_text(pa.binary())
    assert is_id(pa.uint64())
    assert is_id(pa.float64())
    assert not is_id(pa.bool_())


def test_one_type_for_several_shards():
    assert merged([pa.int32(), pa.int64(), pa.null()]) == pa.int64()
    assert merged([pa.int64(), pa.float64()]) == pa.float64()
    assert merged([pa.int64(), pa.string()]) is None


@pytest.mark.slow
def test_reading_imports_no_torch_no_ray_no_pandas():
    code = (
        "import sys, actors.source.read_unit; "
        "print([m for m in ('torch', 'transformers', 'ray', 'pandas', 'pyarrow.dataset') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
