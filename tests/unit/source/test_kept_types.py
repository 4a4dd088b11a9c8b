"""What a source check accepts can be published and comes back equal; what it refuses is refused before anything is read.

Each case goes the way of a run: a Parquet file, the source check, a unit, the writer, one commit, and readers of the table.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, reject
from hypothesis import strategies as st

from actors import storage
from actors.errors import ConfigError
from actors.schema import Unit
from actors.source.formats import open_format
from actors.source.formats.types import stored_type
from actors.source.read_unit import check_source, read_unit
from actors.unit.unit_batch import UnitBatch
from actors.unit.writer import WriterSpec, table_schema, write_unit
from actors.vectors import VectorColumn
from pipeline.job.config import parse_job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.corpus import list_corpus, survey
from pipeline.table import delta_table
from pipeline.table.commit import Publication, files_of, publish
from tests.examples import examples

SPEC = delta_table.EmbeddingSpec("f", {"model": "m", "dim": 2}, {"model": "m"})


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """Return a function that creates new folders, because hypothesis examples share the folder of a test."""
    root = tmp_path_factory.mktemp("kept")
    numbers = itertools.count()

    def make() -> Path:
        folder: Path = root / str(next(numbers))
        folder.mkdir()
        return folder

    return make


def put(folder: Path, columns: dict[str, pa.Array], name: str = "a.parquet", **options) -> None:
    count = len(next(iter(columns.values())))
    table = pa.table({"doc": pa.array(range(count), pa.int64()), "text": ["a text"] * count, **columns})
    (folder / "source").mkdir(exist_ok=True)
    pq.write_table(table, folder / "source" / name, **options)


def published(folder: Path, keep: list[str], partition_by: tuple[str, ...] = ()) -> tuple[DeltaTable, list[str]]:
    """The table of all shards, and the reasons of the rows that were quarantined."""
    document = {
        "source": {"uri": str(folder / "source"), "id": "doc", "keep": keep, "unique_ids": False},
        "table": {"uri": str(folder / "table"), "partition_by": list(partition_by)},
        "encoder": {"model": "m"},
    }
    job = parse_job(document)
    found = survey(job, list_corpus(job).shards, modality="text")
    pieces = [piece for shard in found.shards for piece in open_format("parquet", shard.path).pieces(shard, 1000)]
    result = read_unit(Unit(0, tuple(pieces)), found.source)
    rows = result.table.num_rows
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2 * rows, np.float32)), 2)
    table = result.table.append_column("embedding", vectors).append_column("tokens", pa.array([1] * rows, pa.int32()))
    outputs = (VectorColumn("embedding", "dense", 2),)
    schema, url = table_schema(found.keep_schema, outputs), str(folder / "table")
    spec = WriterSpec(url, Ledger(url, "run1").url, "run1", schema, partition_by, "float32", json.dumps({}), outputs)
    unit_batch = UnitBatch(0, table, bad=result.bad, rows_read=result.rows_read, counts={"documents": rows})
    receipt = write_unit(unit_batch, spec)
    publish(url, Publication("c", "run1", "backfill", SPEC, schema, partition_by, None, receipt.files))
    opened = DeltaTable(url)
    assert sum(file.rows for file in files_of(opened).values()) == rows
    # Polars takes partition values from the path, and names of columns as they are there.
    if all(name.isidentifier() and name.isascii() and len(name) < 100 for name in partition_by):
        import polars as pl

        assert pl.read_delta(url).height == rows
    return opened, [row.reason for row in result.bad]


def came_back(table: DeltaTable, name: str) -> list[object]:
    rows = table.to_pyarrow_table()
    return [
        value
        for _, value in sorted(
            zip(rows["id"].to_pylist(), rows[name].to_pylist(), strict=True), key=lambda p: int(p[0])
        )
    ]


def naive(*parts: int, tzinfo: dt.tzinfo | None = None) -> dt.datetime:
    first = dt.datetime.fromisoformat(f"{parts[0]:04d}-01-01")
    names = ("month", "day", "hour", "minute", "second", "microsecond")
    return first.replace(**dict(zip(names, parts[1:], strict=False)), tzinfo=tzinfo)


DAY, TIME = dt.date(1, 1, 1), naive(9999, 12, 31, 23, 59, 59, 999999)
NUMBERS: list[tuple[pa.DataType, object]] = [
    (pa.int8(), -(2**7)),
    (pa.int16(), 2**15 - 1),
    (pa.int32(), -(2**31)),
    (pa.int64(), 2**63 - 1),
]
NUMBERS += [(pa.uint8(), 255), (pa.uint16(), 2**16 - 1), (pa.uint32(), 2**32 - 1), (pa.uint64(), 2**63 - 1)]
NUMBERS += [(pa.float16(), -0.0), (pa.float32(), float("inf")), (pa.float64(), 5e-324)]
NUMBERS += [
    (pa.decimal128(38, 10), Decimal("-0.5")),
    (pa.decimal256(38, 38), Decimal("0.5")),
    (pa.decimal32(5, 2), Decimal(7)),
]
LEAVES: list[tuple[pa.DataType, object]] = [
    (pa.bool_(), True),
    (pa.string(), "ü\0 "),
    (pa.large_string(), ""),
    (pa.string_view(), "x" * 50),
]
LEAVES += [(pa.binary(), b"\0\xff"), (pa.large_binary(), b""), (pa.binary_view(), b"x" * 50), (pa.binary(2), b"ab")]
LEAVES += [(pa.date32(), DAY), (pa.date64(), dt.date(9999, 12, 31)), (pa.timestamp("s"), naive(1, 1, 1))]
LEAVES += [(pa.timestamp("ms"), naive(1969, 12, 31, 23, 59, 59, 999000)), (pa.timestamp("us"), TIME)]
LEAVES += [(pa.timestamp("ns"), naive(2262, 4, 11, 23, 47, 16, 854775)), (pa.null(), None)]
LEAVES += [(pa.timestamp("us", "Asia/Tokyo"), naive(2024, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC))]
LEAVES += [(pa.dictionary(pa.int8(), pa.string()), "a"), *NUMBERS]


def _struct_of(pairs):
    kinds = pa.struct([(f"f {number}", kind) for number, (kind, _) in enumerate(pairs)])
    return kinds, {f"f {number}": value for number, (_, value) in enumerate(pairs)}


PAIRS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: (
        inner.map(lambda pair: (pa.list_(pair[0]), [pair[1], None, pair[1]]))
        | inner.map(lambda pair: (pa.large_list(pair[0]), []))
        | inner.map(lambda pair: (pa.list_(pair[0], 2), [pair[1], None]))
        | inner.map(lambda pair: (pa.list_view(pair[0]), [pair[1]]))
        | inner.map(lambda pair: (pa.map_(pa.string(), pair[0]), [("k", pair[1]), ("", None)]))
        | st.lists(inner, min_size=1, max_size=3).map(_struct_of)
    ),
    max_leaves=4,
)


def check_comes_back(folder: Path, kind: pa.DataType, value: object) -> None:
    array = pa.array([value, None, value], kind)
    put(folder, {"c": array})
    table, bad = published(folder, ["c"])
    assert bad == []
    back = came_back(table, "c")
    assert back == [value, None, value]
    if isinstance(value, float):
        assert str(back[0]) == str(value)  # -0.0 is equal to 0.0
    assert pa.schema(table.schema().to_arrow()).field("c").type == stored_type(kind)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "value"), LEAVES, ids=lambda part: str(part) if isinstance(part, pa.DataType) else "")
def test_each_type_comes_back_equal(tmp_path, kind, value):
    check_comes_back(tmp_path, kind, value)


@examples(20)
@given(pair=PAIRS)
def test_nested_types_come_back_equal(new, pair):
    folder = new()
    try:
        put(folder, {"c": pa.array([pair[1], None, pair[1]], pair[0])})
    except pa.ArrowNotImplementedError:
        reject()  # pyarrow writes no such Parquet file
    check_comes_back(folder, *pair)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (pa.array([1], pa.duration("s")), "Delta Lake has no such type"),
        (pa.array([1], pa.time32("ms")), "Delta Lake has no such type"),
        (pa.array([[1]], pa.list_(pa.time64("us"))), r"Delta Lake has no such type \(time64\[us\] in \[\]\)"),
        (pa.array([Decimal(1)], pa.decimal256(39, 0)), "Delta Lake has no such type"),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([uuid.UUID(int=5).bytes], pa.binary(16))), "no such type"),
        (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())), "Delta Lake has no such type"),
        (pa.array([{"A": 1, "a": 2}]), "the fields 'A' and 'a', which are the same name"),
        (pa.array([[{"x": {"ẞ": 1, "ß": 2}}]]), r"\[\].x has the fields 'ẞ' and 'ß'"),
        (pa.array([{"a\0b": 1}]), "no name may have a NUL"),
        (pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), "the fields 'a' and 'a'"),
    ],
)  # fmt: skip
def test_a_column_that_no_table_has_is_refused_with_its_reason(tmp_path, array, reason):
    put(tmp_path, {"c": array})
    with pytest.raises(ConfigError, match=rf"source\.keep names 'c', which is .*a\.parquet': .*{reason}"):
        published(tmp_path, ["c"])
    assert not (tmp_path / "table").exists()


NAMES = [
    "a b",
    "a,b;c",
    "{a}",
    "(a)",
    "a\nb\tc\r",
    "a=b",
    "a.b",
    "a`b'c\"",
    "ä/%\\",
    "日本",
    "select",
    "x" * 300,
    " ",
    "#",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("partitioned", [False, True])
def test_a_column_may_have_any_name(tmp_path, name, partitioned):
    inner = [{name: 1, "z": {name: 2}}, None, {name: None, "z": {name: None}}]
    put(tmp_path, {name: pa.array(["u", None, "w"]), "s": pa.array(inner)})
    table, bad = published(tmp_path, [name, "s"], (name,) if partitioned else ())
    assert (came_back(table, name), came_back(table, "s"), bad) == (["u", None, "w"], inner, [])


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (["ID"], "'ID', and the table has a column 'id' of its own"),
        (["Embedding"], "'Embedding', and the table has a column 'embedding'"),
        (["Tokens"], "'Tokens', and the table has"),
        (["Lang", "x", "lang"], "'Lang' and 'lang'. To Delta Lake, names that differ only in case are"),
        (["Ä", "ä"], "'Ä' and 'ä'"),
        (["İ", "i\u0307"], "'İ' and 'i\u0307'"),
        (["ſ", "S"], "'ſ' and 'S'"),
        (["a\0"], "no NUL character in a name"),
        (["_x"], "which is reserved for the table"),
    ],
)
def test_names_that_differ_only_in_case_are_refused(tmp_path, keep, reason):
    put(tmp_path, {name: pa.array(["a"]) for name in keep})
    with pytest.raises(ConfigError, match=f"keep names .*{reason}"):
        published(tmp_path, keep)
    with pytest.raises(ConfigError, match=rf"source\.keep names .*{reason}"):
        check_source(storage.glob(str(tmp_path / "source")).shards, root=str(tmp_path), keep=keep)


def test_names_of_chunk_columns_are_reserved_only_with_chunking():
    document = {"source": {"uri": "a", "keep": ["Start"]}, "table": {"uri": "t"}, "encoder": {"model": "m"}}
    parse_job(document)
    with pytest.raises(ConfigError, match=r"source\.keep names 'Start', and the table has a column 'start' of its own"):
        parse_job({**document, "chunking": {"mode": "split"}})


def test_fields_of_two_shards_that_differ_only_in_case_are_refused(tmp_path):
    put(tmp_path, {"m": pa.array([{"ID": 1}])})
    put(tmp_path, {"m": pa.array([{"id": 1}])}, "b.parquet")
    with pytest.raises(ConfigError, match="over all 2 files: the type has the fields 'ID' and 'id'"):
        published(tmp_path, ["m"])


@pytest.mark.parametrize(("key", "name"), [("text", "text"), ("id", "doc"), ("keep", "k"), ("task", "t")])
def test_a_repeated_column_is_refused_if_the_job_needs_it(tmp_path, key, name):
    names = ["text", "doc", "k", "t", "other", name, "other"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * len(names), names), tmp_path / "a.parquet")
    shards = storage.glob(str(tmp_path)).shards
    wanted: dict[str, Any] = {"text": ("text",), key: (name,) if key in ("text", "keep") else name}
    key = "task_column" if key == "task" else key
    with pytest.raises(ConfigError, match=rf"source\.{key} names '{name}', and .*a\.parquet' has two columns of that"):
        check_source(shards, root=str(tmp_path), **wanted)
    check_source(shards, root=str(tmp_path), text=("doc" if name == "text" else "text",))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shards",
    [
        [pa.array([[], []], pa.list_(pa.null())), pa.array([[2020], [2021]])],
        [pa.array([1, None], pa.int8()), pa.array([0.1, float("inf")], pa.float32()), pa.array([2**31 - 1], pa.int32())],
        [pa.array([Decimal("1.25")]), pa.array([Decimal("12345.6")]), pa.array([7], pa.int64())],
        [pa.array(["a"]).dictionary_encode(), pa.array(["b"], pa.large_string()), pa.nulls(1)],
        [pa.array([{"a": None, "b": 1}]), pa.array([{"c": "x", "a": [1]}]), pa.array([None, {"b": 1.5}])],
        [pa.array([[("k", None)]], pa.map_(pa.string(), pa.null())), pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))],
        [pa.array([dt.date(2020, 1, 1)]), pa.array([naive(2020, 1, 1, 5)], pa.timestamp("ns"))],
        [pa.array([2**53, 1]), pa.array([0.5])],
    ],
)  # fmt: skip
def test_shards_of_several_types_make_one_column_with_every_value(new, shards):
    found = []
    for order in (shards, shards[::-1]):
        folder = new()
        for number, array in enumerate(order):
            put(folder, {"c": array}, f"{number}.parquet")
        table, bad = published(folder, ["c"])
        assert bad == []
        values = table.to_pyarrow_table().filter(pa.compute.is_valid(pa.compute.field("c")))["c"]
        found.append((values.type, sorted(map(str, values.to_pylist()))))
    assert found[0] == found[1]
    assert len(found[0][1]) == sum(len(array) - array.null_count for array in shards)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.string(), ["", " ", "a/b", "100%", "ü", "a=b", "\n", "x" * 300, None]),
        (pa.int8(), [-128, 0, None]),
        (pa.uint64(), [2**63 - 1, None]),
        (pa.bool_(), [True, False, None]),
        (pa.date64(), [dt.date(1, 1, 1), dt.date(9999, 12, 31), None]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", "NULL", "null"]),
    ],
    ids=str,
)
def test_partition_values_come_back(tmp_path, kind, values):
    put(tmp_path, {"c": pa.array(values, kind)})
    table, bad = published(tmp_path, ["c"], ("c",))
    assert bad == []
    # By Delta Lake's protocol an empty text is null there.
    assert came_back(table, "c") == [None if value == "" else value for value in values]


@pytest.mark.parametrize("array", [pa.array([0.5]), pa.array([Decimal(1)]), pa.array([TIME]), pa.array([b"a"])])
def test_partition_columns_of_other_types_are_refused(tmp_path, array):
    put(tmp_path, {"c": array})
    with pytest.raises(ConfigError, match=r"table\.partition_by names 'c', which is"):
        published(tmp_path, ["c"], ("c",))
