"""Types of kept columns: how those of several shards are joined, and what a cast does to each value."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.source.columns import cast_column
from actors.source.formats.types import fits, merged, refusal, stored_type

LEAVES = [
    pa.null(),
    pa.bool_(),
    pa.int8(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.uint8(),
    pa.uint32(),
    pa.uint64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.large_string(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int8(), pa.int64()),
    pa.binary(),
    pa.date32(),
    pa.timestamp("s"),
    pa.timestamp("ns"),
    pa.timestamp("us", "UTC"),
    pa.timestamp("ms", "Europe/Berlin"),
    pa.decimal128(5, 2),
    pa.decimal128(20, 0),
    pa.decimal256(38, 10),
    pa.duration("s"),
]


def _structs(inner):
    names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)
    return names.flatmap(lambda some: st.tuples(*(st.tuples(st.just(name), inner) for name in some)).map(pa.struct))


KINDS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: (
        inner.map(pa.list_)
        | inner.map(pa.large_list)
        | inner.map(lambda kind: pa.map_(pa.string(), kind))
        | _structs(inner)
    ),
    max_leaves=4,
)


@given(KINDS, KINDS, KINDS)
def test_the_order_of_the_shards_makes_no_difference(one, two, three):
    found = {str(merged(order)) for order in itertools.permutations((one, two, three))}
    assert len(found) == 1
    pair = merged([one, two])
    assert merged([one, two, three]) == (None if pair is None else merged([pair, three]))


@given(KINDS, KINDS)
def test_each_of_the_joined_types_fits_the_joined_one(one, two):
    both = merged([one, two])
    if both is not None:
        target = stored_type(both)
        assert target is not None
        assert fits(one, target)
        assert fits(two, target)
        assert stored_type(target) == target


@pytest.mark.parametrize(
    ("one", "two", "want"),
    [
        (pa.list_(pa.null()), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (pa.null(), pa.map_(pa.string(), pa.int8()), pa.map_(pa.string(), pa.int8())),
        (pa.map_(pa.string(), pa.null()), pa.map_(pa.string(), pa.int8()), pa.map_(pa.string(), pa.int8())),
        (
            pa.struct([("a", pa.null()), ("b", pa.int8())]),
            pa.struct([("c", pa.string()), ("a", pa.list_(pa.int8()))]),
            pa.struct([("a", pa.list_(pa.int8())), ("b", pa.int8()), ("c", pa.string())]),
        ),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int32(), pa.float64(), pa.float64()),
        (pa.int16(), pa.float32(), pa.float32()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.decimal128(5, 2), pa.decimal128(6, 4), pa.decimal128(7, 4)),
        (pa.decimal128(5, 2), pa.int32(), pa.decimal128(12, 2)),
        (pa.decimal128(38, 2), pa.decimal128(38, 4), None),
        (pa.decimal128(5, 2), pa.float64(), None),
        (pa.dictionary(pa.int8(), pa.string()), pa.large_string(), pa.string()),
        (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us")),
        (pa.timestamp("s", "Asia/Tokyo"), pa.timestamp("ns", "UTC"), pa.timestamp("us", "UTC")),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.date32(), pa.timestamp("ms"), pa.timestamp("us")),
        (pa.date32(), pa.timestamp("ms", "UTC"), None),
        (pa.string(), pa.binary(), pa.binary()),
        (pa.bool_(), pa.int8(), None),
        (pa.string(), pa.int8(), None),
        (pa.list_(pa.int8()), pa.int8(), None),
        (pa.list_(pa.int8()), pa.list_(pa.string()), None),
    ],
    ids=str,
)
def test_the_joined_type_of_two_shards(one, two, want):
    assert merged([one, two]) == merged([two, one]) == want


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.timestamp("us"), [dt.datetime.fromisoformat("2020-01-01T05:00"), None]),
        (pa.string(), ["5"]),
        (pa.float64(), [0.1]),
        (pa.decimal128(20, 0), [Decimal(10**19 + 1)]),
        (pa.bool_(), [True]),
        (pa.struct([("a", pa.int8()), ("b", pa.int8())]), [{"a": 1, "b": 2}]),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "target",
    [pa.date32(), pa.int64(), pa.float32(), pa.bool_(), pa.struct([("a", pa.int64())]), pa.timestamp("us", "UTC")],
    ids=str,
)
def test_a_cast_that_may_change_a_value_is_refused(kind, values, target):
    array = pa.array(values, kind)
    if kind == target:
        assert cast_column(array, target) == (array, {})
        return
    assert not fits(kind, target)
    with pytest.raises(pa.ArrowNotImplementedError, match="may change when it is cast to"):
        cast_column(array, target)


def ns(*values: int | None) -> pa.Array:
    return pa.array(values, pa.int64()).cast(pa.timestamp("ns"))


@pytest.mark.parametrize(
    ("array", "wrong", "text"),
    [
        (ns(1000, 1001, None, -1), [1, 3], "1970-01-01 00:00:00.000001001 has a part below a microsecond"),
        (pa.array([[1000], [1001]], pa.list_(pa.timestamp("ns"))), [1], "would lose data: 1001"),
        (pa.array([1, 2**63], pa.uint64()), [1], "9223372036854775808 is not exact as int64"),
        (pa.array([[1], [2**63]], pa.list_(pa.uint64())), [1], "9223372036854775808"),
        (pa.array([0, 253402300800], pa.timestamp("s")), [1], "10000-01-01 00:00:00.000000 is not of the years"),
        (pa.array([-62135596800000001, 0], pa.timestamp("us", "UTC")), [0], "0000-12-31 23:59:59.999999"),
        (pa.array([2**62, 0], pa.timestamp("s")), [0], "out of bounds"),
        (pa.array([2932897, 0, None], pa.int32()).cast(pa.date32()), [0], "10000-01-01 is not of the years"),
        (pa.array([86_400_000, 1], pa.int64()).view(pa.date64()), [1], "whole number of days"),
        (
            pa.array([[("k", 0)], [("k", 2**62)]], pa.map_(pa.string(), pa.timestamp("us"))),
            [1],
            "is not of the years 1 to 9999",
        ),
        (pa.array([{"a": 0}, {"a": -(2**62)}], pa.struct([("a", pa.timestamp("us"))])), [1], "is not of the years"),
    ],
)
def test_a_value_that_cannot_be_cast_is_quarantined_with_its_value(array, wrong, text):
    target = stored_type(array.type)
    assert target is not None
    # Behind a slice there is a value that does not fit, and no row of it.
    for part, shift in ((array, 0), (pa.concat_arrays([array.take([wrong[0]]), array]).slice(1), 0)):
        found, invalid = cast_column(part, target)
        assert sorted(invalid) == [index + shift for index in wrong]
        assert all(reason == "wrong_type" for reason, _ in invalid.values())
        assert text in invalid[wrong[0]][1]
        assert found.type == target
        assert found.null_count == array.null_count + len(wrong)
    sound, invalid = cast_column(array.take([index for index in range(len(array)) if index not in wrong]), target)
    assert not invalid
    outside = pa.concat_arrays([array.take([wrong[0]]), sound.cast(array.type)]).slice(1)
    assert cast_column(outside, target) == (sound, {})


@pytest.mark.parametrize(
    ("array", "target", "values"),
    [
        (pa.array([0.0, -0.0, float("inf"), 65504.0], pa.float16()), pa.float64(), [0.0, -0.0, float("inf"), 65504.0]),
        (pa.array([Decimal("1.5")], pa.decimal32(3, 1)), pa.decimal128(20, 3), [Decimal("1.500")]),
        (pa.array([7], pa.int16()), pa.decimal128(7, 2), [Decimal("7.00")]),
        (pa.array([2**53]), pa.float64(), [float(2**53)]),
        (pa.array([dt.date(9999, 12, 31)]), pa.timestamp("us"), [dt.datetime.fromisoformat("9999-12-31")]),
        (pa.array([[1, 2], None, [3], []], pa.list_view(pa.int8())), pa.list_(pa.int64()), [[1, 2], None, [3], []]),
        (
            pa.array([[{"a": [1], "b": "x"}], None], pa.list_(pa.struct([("a", pa.large_list_view(pa.int8())), ("b", pa.string())]))),
            pa.list_(pa.struct([("b", pa.string()), ("c", pa.null()), ("a", pa.list_(pa.int64()))])),
            [[{"b": "x", "c": None, "a": [1]}], None],
        ),
        (
            pa.array([[("k", [1])], None, [("z", None)]], pa.map_(pa.string(), pa.list_view(pa.int8()))),
            pa.map_(pa.string(), pa.list_(pa.int8())),
            [[("k", [1])], None, [("z", None)]],
        ),
        (pa.array([["x"], None], pa.list_(pa.dictionary(pa.int8(), pa.string()))), pa.list_(pa.string()), [["x"], None]),
        (pa.array([[None], []], pa.list_(pa.null())), pa.list_(pa.map_(pa.string(), pa.int8())), [[None], []]),
    ],
)  # fmt: skip
def test_a_cast_that_keeps_every_value(array, target, values):
    target = stored_type(target)
    assert target is not None
    found, invalid = cast_column(array, target)
    assert (found.type, found.to_pylist(), invalid) == (target, values, {})
    assert str(found.to_pylist()) == str(values)  # -0.0 is equal to 0.0


def test_not_a_number_is_a_value():
    found, invalid = cast_column(pa.array([float("nan"), -0.0], pa.float32()), pa.float64())
    assert (str(found.to_pylist()), invalid) == ("[nan, -0.0]", {})


def test_a_whole_number_that_no_float_equals_is_quarantined():
    found, invalid = cast_column(pa.array([1, 2**53 + 1]), pa.float64())
    assert found.to_pylist() == [1.0, None]
    assert invalid[1][1].startswith("9007199254740993 is not exact as double")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            pa.struct([("ID", pa.int8()), ("id", pa.int8())]),
            "the type has the fields 'ID' and 'id', which are the same name",
        ),
        (pa.struct([("a", pa.int8()), ("a", pa.int8())]), "the fields 'a' and 'a'"),
        (
            pa.list_(pa.struct([("m", pa.map_(pa.string(), pa.struct([("Ä", pa.int8()), ("ä", pa.int8())])))])),
            r"\[\]\.m\[value\] has the fields 'Ä' and 'ä'",
        ),
        (pa.struct([("a\0", pa.int8())]), "no name may have a NUL"),
        (pa.struct([("when", pa.list_(pa.time64("us")))]), r"no such type \(time64\[us\] in when\[\]\)"),
        (pa.struct([]), "no struct without fields"),
        (pa.list_(pa.struct([])), r"no struct without fields \(struct<> in \[\]\)"),
        (pa.duration("s"), "Delta Lake has no such type"),
        (pa.month_day_nano_interval(), "Delta Lake has no such type"),
        (pa.decimal256(39, 0), "Delta Lake has no such type"),
        (pa.uuid(), "Delta Lake has no such type"),
        (pa.sparse_union([pa.field("a", pa.int8())]), "Delta Lake has no such type"),
        (pa.list_(pa.dense_union([pa.field("a", pa.int8())])), "Delta Lake has no such type"),
        (pa.run_end_encoded(pa.int32(), pa.string()), "Delta Lake has no such type"),
    ],
    ids=str,
)
def test_why_a_table_cannot_have_a_column(kind, reason):
    with pytest.raises(AssertionError, match=reason):
        assert refusal(kind) is None, refusal(kind)


@given(KINDS)
def test_a_type_is_refused_or_stored(kind):
    assert (refusal(kind) is None) == (stored_type(kind) is not None)
