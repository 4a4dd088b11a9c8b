"""Columns from folder names."""

from __future__ import annotations

import io
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import storage
from actors.errors import ConfigError
from actors.schema import Piece, Shard, Unit
from actors.source import hive
from actors.source.read_unit import SourceSpec, check_source, read_unit


def parquet(**columns) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def shards_of(*values: str) -> list[Shard]:
    return [Shard(f"/c/k={value}/a.txt", 1, "t") for value in values]


@pytest.fixture
def corpus(tmp_path):
    """Writes files below a folder and lists them."""

    def write(**files: bytes) -> list[Shard]:
        for name, data in files.items():
            storage.put(str(tmp_path / name), data)
        return list(storage.glob(str(tmp_path)).shards)

    return write


def check(shards: list[Shard], **settings) -> SourceSpec:
    return check_source(shards, root="/", folders_of=shards, **settings)


def rows(shards: list[Shard], source: SourceSpec) -> list[dict[str, object]]:
    pieces = [Piece(shard, 0, 1 << 40 if source.format in ("jsonl", "csv") else 1, 1) for shard in shards]
    if source.format == "csv":
        pieces = [Piece(piece.shard, 5, 1 << 40, 1) for piece in pieces]
    result = read_unit(Unit(0, tuple(pieces)), source)
    assert result.bad == []
    found: list[dict[str, object]] = result.table.to_pylist()
    return found


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/c/lang=de/year=2024/a.txt", {"lang": "de", "year": "2024"}),
        ("s3://bucket/lang=de/a.txt", {"lang": "de"}),
        ("/c/lang=de%2FAT/t=a%3Ab/a.txt", {"lang": "de/AT", "t": "a:b"}),
        ("/c/na%20me=a%20b/a.txt", {"na me": "a b"}),
        ("/c/lang=__HIVE_DEFAULT_PARTITION__/a.txt", {"lang": None}),
        ("/c/lang=/a.txt", {"lang": None}),
        ("/c/q=a=b/a.txt", {"q": "a=b"}),
        ("/c/=x/plain/a=b.txt", {}),
        ("/c/k=100%/l=%zz/m=%FF/a.txt", {"k": "100%", "l": "%zz", "m": "%FF"}),
    ],
)
def test_columns_from_folder_names(path, expected):
    assert hive.keys(path) == expected


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "20", "-3", "0"], pa.int64()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64()),
        ([str(2**63 - 1), str(-(2**63))], pa.int64()),
        ([str(2**63)], pa.string()),
        (["1", "007"], pa.string()),
        (["1", "+1"], pa.string()),
        (["1", "-0"], pa.string()),
        (["1", ""], pa.int64()),
        (["1", " 2"], pa.string()),
        (["1.0"], pa.string()),
        (["١"], pa.string()),
        (["2024-01-01"], pa.string()),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string()),
    ],
)
def test_a_folder_column_is_int64_only_if_each_value_round_trips(values, kind):
    (column,) = hive.columns(shards_of(*values))
    assert column.type == kind


@given(st.lists(st.one_of(st.integers().map(str), st.text(st.characters(exclude_categories=["Cs"]))), min_size=1))
def test_any_folder_value_round_trips(values):
    shards = shards_of(*(quote(value, safe="") for value in values))
    (column,) = hive.columns(shards)
    for shard, value in zip(shards, values, strict=True):
        (found,) = hive.values(((column.name, column.type),), shard, 1)["k"].to_pylist()
        assert found is None if value == "" else str(found) == value


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.parquet", parquet(text=["one"])),
        ("a.jsonl", b'{"text": "one"}\n'),
        ("a.csv", b"text\none\n"),
        ("a.txt", b"one"),
    ],
)
def test_every_format_gets_the_columns(corpus, name, data):
    shards = corpus(**{f"lang=de/year=2024/{name}": data, f"lang=fr/{name}": data})
    source = check(shards, keep=("lang", "year"))
    assert source.keep == (("lang", pa.string()), ("year", pa.int64()))
    found = rows(shards, source)
    assert [(row["lang"], row["year"]) for row in found] == [("de", 2024), ("fr", None)]


def test_folder_columns_for_text_id_or_task_are_text(corpus):
    data = parquet(text=["one"])
    shards = corpus(**{f"k={value}/id={value}/a.parquet": data for value in ("1", "2")})
    source = check(shards, text=("k", "text"), id="id", task="k", keep=("k",))
    assert source.keep == (("k", pa.string()),)
    assert [(row["id"], row["_content"], row["_task"], row["k"]) for row in rows(shards, source)] == [
        ("1", "1\n\none", "1", "1"),
        ("2", "2\n\none", "2", "2"),
    ]


def test_the_folder_value_overrides_a_kept_column_of_the_file(corpus):
    shards = corpus(**{"lang=de/a.parquet": parquet(text=["one"], lang=["fr"])})
    assert rows(shards, check(shards, keep=("lang",)))[0]["lang"] == "de"


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        (
            {"text=full/a.parquet": parquet(text=["a"])},
            {},
            "'text' as a column and as a folder, and the job needs that column",
        ),
        (
            {"id=1/a.parquet": parquet(text=["a"], id=["a"])},
            {"id": "id"},
            "'id' as a column and as a folder",
        ),
        (
            {"k=1/a.parquet": parquet(text=["a"]), "b.parquet": parquet(text=["a"], k=["x"])},
            {"keep": ("k",)},
            r"'k' is a folder of some files and, in '.*b\.parquet', a column without such a folder",
        ),
        (
            {"k=1/a.parquet": parquet(text=["a"]), "K=1/a.parquet": parquet(text=["a"])},
            {"keep": ("k",)},
            "differ only in case",
        ),
        (
            {"k=1/k=2/a.parquet": parquet(text=["a"])},
            {"keep": ("k",)},
            "two folders for 'k', with the values '1' and '2'",
        ),
        (
            {"k=1/a.parquet": parquet(text=["a"]), "b.parquet": parquet(text=["a"])},
            {"id": "k"},
            r"source\.id names 'k', which .* has and .*b\.parquet' has not",
        ),
        ({"lang=1/a.parquet": parquet(text=["a"])}, {"keep": ("Lang",)}, "did you mean 'lang'"),
    ],
)
def test_contradicting_folders_are_refused(corpus, files, settings, message):
    with pytest.raises(ConfigError, match=message):
        check(corpus(**files), **settings)


def test_folder_names_that_the_job_does_not_use_are_not_checked(corpus):
    shards = corpus(**{"k=1/k=2/text=x/a.parquet": parquet(body=["a"], text=["b"])})
    assert rows(shards, check(shards, text=("body",)))[0]["_content"] == "a"


def test_a_missing_column_that_is_a_folder_name_has_a_hint(corpus):
    shards = corpus(**{"lang=de/a.parquet": parquet(text=["a"])})
    with pytest.raises(ConfigError, match=r"the folder 'lang=de' has it: set source\.hive: true"):
        check_source(shards, root="/", keep=("lang",))
