"""Readers that select files by the ranges in the log find the rows that they find without ranges."""

from __future__ import annotations

import datetime as dt
import json
import operator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors.unit import delta_statistics
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table.versions import rollback
from tests.integration.conftest import Silent, make_job

INF, NAN = float("inf"), float("nan")
LAST = "\U0010ffff"


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def naive(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


# Type, values of the first and of the second file, and values in neither.
COLUMNS: dict[str, tuple[pa.DataType, list[Any], list[Any], list[Any]]] = {
    "whole": (pa.int8(), [1, 5, None], [-128, 127, 0], [3]),
    "large": (pa.int64(), [2**53 + 1, None, -(2**63)], [2**63 - 1, 0, 1], [2**53]),
    "single": (pa.float32(), [0.1, 2.5, None], [-3.25, 3.3, 1e38], [0.25]),
    "double": (pa.float64(), [0.1, -0.0, 5e-324], [1e300, None, 3.5], [1e-5, -1.0]),
    "nan": (pa.float64(), [1.0, NAN, 3.0], [NAN, NAN, None], [2.0, 9.0]),
    "inf": (pa.float64(), [1.0, -INF, 3.0], [INF, 7.0, None], [2.0, 9.0]),
    "flag": (pa.bool_(), [True, True, None], [False, True, False], []),
    "day": (pa.date32(), [dt.date(1, 1, 1), dt.date(2026, 1, 2), None], [dt.date(9999, 12, 31)] * 3, [dt.date(2020, 1, 1)]),
    "zoned": (
        pa.timestamp("us", "UTC"),
        [utc("1969-12-31T23:59:59.999001"), utc("2026-01-02T03:04:05.123456"), None],
        [utc("0001-01-01T00:00:00.000001"), utc("9999-12-31T23:59:59.999999"), utc("2026-01-01")],
        [utc("2026-01-02T03:04:05.123457"), utc("1500-01-01")],
    ),
    "naive": (
        pa.timestamp("us"),
        [naive("1969-12-31T23:59:59.999001"), naive("2026-01-02T03:04:05.123456"), None],
        [naive("0001-01-01T00:00:00.000001"), naive("9999-12-31T23:59:59.999999"), naive("2026-01-01")],
        [naive("2026-01-02T03:04:05.123457"), naive("1500-01-01")],
    ),
    "price": (pa.decimal128(10, 2), [Decimal("-1.50"), Decimal("2.25"), None], [Decimal("0.01")] * 3, [Decimal("-1.49")]),
    "huge": (
        pa.decimal128(38, 2),
        [Decimal("123456789012345678901234567890123456.78"), Decimal(1), None],
        [Decimal("-123456789012345678901234567890123456.79"), Decimal(0), Decimal(2)],
        [Decimal("123456789012345678901234567890123456.77")],
    ),
    "raw": (pa.binary(), [b"a", b"\xff", None], [b"b", b"", b"c"], [b"bb"]),
    "word": (pa.string(), ["a", "é", None], ["", "\U00020000", "z\0"], ["b"]),
    "long": (pa.string(), ["a" * 65, "b" * 64, "c" * 200], ["y" * 64 + LAST * 2, LAST * 300, None], ["c" * 201, "y" * 65]),
    "gone": (pa.int32(), [None] * 3, [1, 2, 3], [4]),
}  # fmt: skip
COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


def write(folder, number, columns):
    names = {"id": [f"{number}-{row}" for row in range(3)], "content": [f"text {number} {row}" for row in range(3)]}
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({**names, **columns}), folder / f"{number}.parquet")


@pytest.fixture
def job(tmp_path, tiny_model):
    for number in range(2):
        write(
            tmp_path / "corpus", number, {name: pa.array(each[number + 1], each[0]) for name, each in COLUMNS.items()}
        )
    settings = {"source__text": ["content"], "source__keep": list(COLUMNS), "run__unit_rows": 3}
    return make_job(tmp_path / "corpus", tmp_path / "table", tiny_model, **settings)


def assert_filters_as_without_ranges(table: DeltaTable) -> None:
    dataset = table.to_pyarrow_dataset()
    rows = dataset.to_table()

    def check(condition):
        ids = sorted(rows.filter(condition)["id"].to_pylist())
        assert sorted(dataset.to_table(columns=["id"], filter=condition)["id"].to_pylist()) == ids, condition

    for name, (kind, first, second, outside) in COLUMNS.items():
        column = pc.field(name)
        check(column.is_null())
        check(column.is_valid())
        for value in [*first, *second, *outside]:
            # No range is true of NaN, and a comparison of all numbers with an infinite one is the only one that shows it.
            if value is not None and value == value and not (name == "nan" and abs(value) == INF):  # noqa: PLR0124
                for compare in COMPARISONS:
                    check(compare(column, pa.scalar(value, kind)))


def test_conditions_on_every_type_find_the_rows_of_a_loop(job):
    table = str(job.table.uri)
    backfill(job, Silent())
    assert len(DeltaTable(table).file_uris()) == 2
    assert_filters_as_without_ranges(DeltaTable(table))
    compact(table, Silent())
    assert len(DeltaTable(table).file_uris()) == 1
    assert_filters_as_without_ranges(DeltaTable(table))
    rollback(table, 1)
    assert len(DeltaTable(table).file_uris()) == 2
    assert_filters_as_without_ranges(DeltaTable(table))
    DeltaTable(table).delete("id = '0-0'")
    restoring = job.model_copy(update={"table": job.table.model_copy(update={"foreign_commits": "restore"})})
    refresh(restoring, Silent())
    assert_filters_as_without_ranges(DeltaTable(table))


@pytest.mark.parametrize("optimized", [False, True])
def test_searches_with_a_condition_find_infinite_values_and_long_texts(job, optimized):
    backfill(job, Silent())
    if optimized:  # deltalake truncates both ends of a range of timestamps
        DeltaTable(job.table.uri).optimize.compact()
    searcher = Searcher(job.table.uri, cache_size=None)
    for where, expected in {
        "zoned > '9999-12-31T23:59:59.9999Z'": ["1-1"],
        "naive > '2026-01-02T03:04:05.1234' AND naive < '2027-01-01'": ["0-1"],
        "inf > 5": ["1-0", "1-1"],
        "nan > 2": ["0-2"],
        f"long = '{'c' * 200}'": ["0-2"],
        "zoned > '2026-01-02T03:04:05.123Z'": ["0-1", "1-1"],
    }.items():
        assert sorted(hit.id for hit in searcher.search(["text"], where=where)[0]) == expected


@pytest.mark.parametrize("escaped", [False, True], ids=["now", "in an earlier release"])
@pytest.mark.parametrize("name", ["\U00020000", "\U0010ffff", "\U0001f600", "x" * 200])
def test_files_of_shards_with_any_name_stay_when_others_change(tmp_path, tiny_model, monkeypatch, *, name, escaped):
    if escaped:
        monkeypatch.setattr(
            delta_statistics, "statistics_json", lambda **statistics: json.dumps(statistics, default=str)
        )
    corpus, table = tmp_path / "corpus", tmp_path / "table"
    for number in (name, "b"):
        write(corpus, number, {})
    settings = {"source__text": ["content"], "source__keep": [], "run__unit_rows": 3, "table__file_size": None}
    job = make_job(corpus, table, tiny_model, **settings)
    backfill(job, Silent())
    (corpus / "b.parquet").unlink()
    refresh(job, Silent())
    assert sorted(DeltaTable(str(table)).to_pyarrow_table()["id"].to_pylist()) == [f"{name}-{row}" for row in range(3)]
