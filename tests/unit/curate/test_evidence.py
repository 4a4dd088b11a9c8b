"""The evidence of a curation: in its documented form, true to the table, and shown without risk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import jsonschema
import pyarrow as pa
import pytest

from pipeline.curate.evidence import _measure
from pipeline.curate.run import curate
from pipeline.report.load import load_report
from pipeline.report.page import render
from tests.unit.curate.jobs import Pair, job_of, rows_of, write_pairs

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "report.md").read_text(), re.DOTALL))[0])
EVIL = "<script>alert('x')</script>"
STEPS = ["dedup", "overlap"]


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    copies: list[Pair] = [(f"copy {number:02}", f"{EVIL} the same", "text " * 60) for number in range(30)]
    shares: list[Pair] = [
        (f"share {number}", " ".join("abcdefghij"), " ".join("abcdefghij"[:number]) + " k" * 12) for number in range(10)
    ]
    write_pairs(folder / "pairs" / "0.parquet", copies + shares, site=[f"<b>{number % 2}" for number in range(40)])
    job = job_of(folder, STEPS, source_column="site")
    curate(job)
    write_pairs(folder / "pairs" / "1.parquet", [("a copy", f"{EVIL} the same", "text " * 60)], site=["<b>0"])
    curate(job)
    return folder


@pytest.mark.slow
def test_the_report_has_the_documented_form_and_the_figures_of_the_table(curated):
    report = load_report(str(curated / "table"))
    jsonschema.validate(report, SCHEMA)
    found, rows = report["curation"], rows_of(curated).values()
    assert found["rows"] == len(rows) == 41
    assert [(step["name"], step["rows"], step["dropped"]) for step in found["steps"]] == [
        ("dedup", 41, 30),
        ("overlap", 11, 1),
    ]
    assert found["sources"] == [
        {
            "value": site,
            "rows": {
                name: sum(row["source"] == site and (row["dropped_by"] or "kept") == name for row in rows)
                for name in names
            },
        }
        for site, names in (("<b>0", ["dedup", "kept"]), ("<b>1", ["dedup", "kept", "overlap"]))
    ]
    assert found["changes"] == {
        "since": 1,
        "new_rows": 1,
        "gone_rows": 0,
        "changed": [{"was": "kept", "is": "dedup", "rows": 1, "ids": ["copy 00"]}],
    }
    (overlap,) = found["measures"]["overlap"]
    assert (overlap["bounds"][0], overlap["bounds"][-1]) == (0.0, 0.85)
    assert sum(overlap["rows"]) == sum(row["overlap"] is not None for row in rows)
    assert overlap["rows"][overlap["bounds"].index(0.8)] == 1  # a share is in the bin that begins with it
    assert overlap["dropped"] == [0] * (len(overlap["bounds"]) - 1) + [1]


@pytest.mark.slow
def test_samples_are_cut_and_the_page_shows_them_as_texts(curated):
    report = load_report(str(curated / "table"))
    samples = report["curation"]["samples"]["dedup"]
    assert len(samples) == 20
    assert len({row["id"] for row in samples}) == 20
    assert {row["passage"] for row in samples} == {("text " * 60)[:200] + "…"}
    assert {row["measures"]["duplicate_of"] for row in samples} == {"a copy"}
    page = render(report)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 20
    for part in ("What each step dropped", "rows by overlap", "dedup: 20 of 30 rows", "1 old verdicts changed"):
        assert part in page


@pytest.mark.parametrize(
    ("values", "kind", "bounds", "rows"),
    [
        ([0, 1, 4, 7, 30], pa.int64(), [0, 1, 2, 5, 10, 20], [1, 1, 1, 1, 0, 1]),
        ([0.1, 0.14, 0.2, 0.25], pa.float32(), [0.1, 0.15, 0.2], [2, 0, 2]),
        ([0.96, 0.99], pa.float32(), [0.95], [2]),
        ([-0.2, 0.0, None], pa.float64(), [-0.2, -0.15, -0.1, -0.05], [1, 0, 0, 1]),
        ([3, 3, 3], pa.int64(), None, None),
        ([None, None], pa.float32(), None, None),
    ],
)
def test_a_histogram_counts_each_value_once(values, kind, bounds, rows):
    connection = duckdb.connect()
    connection.register("incoming", pa.table({"m": pa.array(values, kind), "dropped_by": ["s"] * len(values)}))
    connection.execute("create table verdicts as select * from incoming")
    found = _measure(connection, "s", pa.field("m", kind))
    if bounds is None:
        assert found is None
    else:
        assert found == {"name": "m", "bounds": bounds, "rows": rows, "dropped": rows}
