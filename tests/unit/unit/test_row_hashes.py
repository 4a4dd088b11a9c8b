"""Digests of rows: independent of layout, sensitive to every value."""

from __future__ import annotations

import datetime as dt
import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.unit.row_hashes import digest_of, row_hashes, total
from tests.examples import examples

_TIME = dt.datetime(2024, 5, 6, 7, 8, 9, 123456, dt.UTC)
# Two values of each type of column that a table may have.
_VALUES = {
    "text": (pa.string(), "a", "b"),
    "empty text": (pa.string(), "", "\0"),
    "bytes": (pa.binary(), b"\xff\x00", b"\xff\x01"),
    "int": (pa.int32(), 0, -1),
    "long": (pa.int64(), 2**62, 2**62 + 1),
    "double": (pa.float64(), 0.1, 0.1 + 2**-56),
    "bool": (pa.bool_(), True, False),
    "date": (pa.date32(), dt.date(2024, 1, 1), dt.date(2024, 1, 2)),
    "time": (pa.timestamp("us", "UTC"), _TIME, _TIME + dt.timedelta(microseconds=1)),
    "decimal": (pa.decimal128(20, 3), decimal.Decimal("1.001"), decimal.Decimal("1.002")),
    "vector": (pa.list_(pa.float32()), [1.0, 2.0], [2.0, 1.0]),
    "negated vector": (pa.list_(pa.float32()), [1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]),
    "longer vector": (pa.list_(pa.float32()), [1.0], [1.0, 0.0]),
    "vectors": (pa.list_(pa.list_(pa.float32())), [[1.0, 2.0], [3.0, 4.0]], [[3.0, 4.0], [1.0, 2.0]]),
    "tags": (pa.list_(pa.string()), ["a", "b"], ["ab"]),
    "null in a list": (pa.list_(pa.string()), ["a", None], ["a"]),
    "empty list": (pa.list_(pa.int64()), [], [0]),
    "struct": (pa.struct([("x", pa.int64()), ("y", pa.int64())]), {"x": 1, "y": 2}, {"x": 2, "y": 1}),
    "map": (pa.map_(pa.string(), pa.int64()), [("a", 1)], [("a", 2)]),
    "null": (pa.string(), "", None),
    "null list": (pa.list_(pa.float32()), [], None),
    "null struct": (pa.struct([("x", pa.list_(pa.string()))]), {"x": ["a"]}, None),
}


def _table(kind: pa.DataType, *values: object) -> pa.Table:
    return pa.table({"id": [str(n) for n in range(len(values))], "v": pa.array(values, kind)})


@pytest.mark.parametrize("name", _VALUES)
def test_a_digest_changes_with_each_value(name):
    kind, one, other = _VALUES[name]
    digests = {digest_of(_table(kind, *values), {}) for values in ((one, one), (one, other), (other, one))}
    assert len(digests) == 3


def test_a_value_counts_for_its_column_and_its_row():
    swapped_columns = [pa.table({"a": ["x"], "b": ["y"]}), pa.table({"a": ["y"], "b": ["x"]})]
    swapped_rows = [pa.table({"a": ["x", "y"], "b": ["1", "2"]}), pa.table({"a": ["x", "y"], "b": ["2", "1"]})]
    for one, other in (swapped_columns, swapped_rows):
        assert digest_of(one, {}) != digest_of(other, {})


def test_a_repeated_row_counts_each_time():
    row = _table(pa.string(), "a")
    assert len({digest_of(pa.concat_tables([row] * times), {}) for times in range(1, 5)}) == 4


@examples(50)
@given(st.data())
def test_a_digest_does_not_depend_on_layout(data):
    """Other files, another order of rows and columns, other chunks."""
    count = data.draw(st.integers(1, 12))
    columns = {"id": pa.array([str(n % 5) for n in range(count)])}
    for name in data.draw(st.lists(st.sampled_from(list(_VALUES)), unique=True, max_size=5)):
        kind, one, other = _VALUES[name]
        columns[name] = pa.array([data.draw(st.sampled_from([one, other, None])) for _ in range(count)], kind)
    rows = pa.table(columns)
    order = data.draw(st.permutations(range(count)))
    cut = data.draw(st.integers(0, count))
    moved = rows.take(pa.array(order, pa.int64())).select(data.draw(st.permutations(rows.column_names)))
    digests = [digest_of(part, {"lang": "de"}) for part in (moved.slice(0, cut), moved.slice(cut))]
    assert total(digests) == digest_of(rows, {"lang": "de"})
    chunked = pa.concat_tables([rows.slice(0, cut), rows.slice(cut)])
    np.testing.assert_array_equal(row_hashes(chunked), row_hashes(rows))


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (pa.string(), pa.large_string()),
        (pa.string(), pa.dictionary(pa.int32(), pa.string())),
        (pa.binary(), pa.large_binary()),
        (pa.int32(), pa.int64()),
        (pa.float32(), pa.float64()),
        (pa.timestamp("us"), pa.timestamp("ns")),
        (pa.list_(pa.float32()), pa.large_list(pa.float32())),
        (pa.list_(pa.float32()), pa.list_(pa.float32(), 2)),
        (pa.list_(pa.string()), pa.large_list(pa.large_string())),
    ],
    ids=str,
)
def test_a_digest_does_not_depend_on_the_encoding(stored, read):
    values = {
        "string": ["a", None, "é"],
        "binary": [b"a", None, b""],
        "int32": [1, None, -3],
        "float": [1.5, None, -0.25],
        "timestamp[us]": [_TIME.replace(tzinfo=None), None],
        "list<item: float>": [[1.0, 2.0], [3.0, 4.0]],
        "list<item: string>": [["a", None], None, []],
    }[str(stored)]
    column = pa.array(values, stored)
    assert digest_of(pa.table({"v": column}), {}) == digest_of(pa.table({"v": column.cast(read)}), {})


def test_a_column_that_the_table_gained_later_changes_nothing():
    rows = _table(pa.string(), "a", "b")
    wider = rows.append_column("new", pa.nulls(2, pa.list_(pa.float32())))
    assert digest_of(rows, {"p": None}) == digest_of(wider, {})


def test_few_texts_are_hashed_as_many_are():
    few = pa.array(["a", "b", None, ""] * 50)
    one_by_one = [digest_of(pa.table({"v": few.slice(n, 1)}), {}) for n in range(len(few))]
    assert total(one_by_one) == digest_of(pa.table({"v": few}), {})
