"""The page shows every text as it is and runs none of it; charts hold whatever they are given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import count
from typing import Any

import pytest

from pipeline.report.blocks import Bar, Chart, duration, percent, short
from pipeline.report.page import render

EVIL = "<script>alert('x')</script>\"'&<img src=http://a.b onerror=x>"


def evil(value: Any, numbers: Iterator[int]) -> Any:
    """The same data with another hostile text in every place of a text."""
    if isinstance(value, dict):
        return {key: evil(part, numbers) for key, part in value.items()}
    if isinstance(value, list):
        return [evil(part, numbers) for part in value]
    return f"{EVIL}{next(numbers)};" if value == "TEXT" else value


REPORT: dict[str, Any] = {
    "format": 1,
    "vectide": "TEXT",
    "table": "TEXT",
    "run": "TEXT",
    "operation": "generation",
    "command": "TEXT",
    "version": 3,
    "state": "failed",
    "checks": ["TEXT"],
    "left_out": ["TEXT"],
    "dialects": ["TEXT"],
    "calls": [
        {
            "id": "a",
            "host": "TEXT",
            "started": "2026-11-29T10:00:00.000+00:00",
            "units_started": "2026-11-29T10:00:01.000+00:00",
            "units_ended": "2026-11-29T10:00:09.000+00:00",
            "ended": "2026-11-29T10:00:10.000+00:00",
            "end": "failed",
            "error": "TEXT",
            "units_before": 1,
            "replicas": 2,
            "device": "TEXT",
            "crashes": 1,
            "failed_units": [{"unit": 4, "error": "TEXT"}],
            "steps": [{"name": "TEXT", "seconds": 1.0}],
        }
    ],
    "totals": {
        "units_planned": 3,
        "units": 2,
        "rows_read": 12,
        "documents": 10,
        "rows": 11,
        "quarantined": 2,
        "truncated": 1,
        "encoded": 9,
        "tokens": 100,
        "padding": 10,
        "animated": 1,
        "unconverted": 1,
        "rows_kept": 5,
    },
    "seconds": {"write": 1.0, "read": 2.0, "encode": 3.0},
    "source": {"uri": "TEXT", "format": "TEXT", "shards": 2, "size_bytes": 10, "shards_read": 1},
    "throughput": [
        {"start": "2026-11-29T10:00:01.000+00:00", "seconds": 3.0, "step_s": 2.0, "rows": [1, 2], "tokens": [10, 20]},
        {"start": "2026-11-29T11:00:01.000+00:00", "seconds": 2.0, "step_s": 2.0, "rows": [7], "tokens": [70]},
    ],
    "token_lengths": {"bins": [0, 1, 2], "counts": [0, 4, 6], "longest": 2},
    "norms": {"TEXT": {"vectors": 11, "least": 0.5, "mean": 1.0, "most": 1.0}},
    "quarantine": {
        "carried": 1,
        "reasons": {"TEXT": 3},
        "samples": [{"reason": "TEXT", "shard": "TEXT", "position": 4, "id": "TEXT", "error": "TEXT"}],
    },
    "files": {
        "files": 9,
        "rows": 11,
        "size_bytes": 99,
        "smallest_bytes": 1,
        "largest_bytes": 20,
        "sizes": [0, 9],
        "merged": 2,
        "partitions": {"count": 30, "largest": [{"values": {"TEXT": "TEXT"}, "rows": 1, "files": 1, "size_bytes": 2}]},
    },
    "curation": {
        "rows": 12,
        "steps": [
            {
                "name": "near_dedup",
                "rows": 12,
                "dropped": 5,
                "evidence": {
                    "threshold": 0.8,
                    "note": "TEXT",
                    "by_kind": {"TEXT": 3},
                    "capped": [{"bucket": "TEXT", "rows": 9, "unset": None}],
                    "notes": ["TEXT"],
                },
            },
            {"name": "quiet", "rows": 7, "dropped": 0, "evidence": {}},
        ],
        "changes": {
            "since": 1,
            "new_rows": 3,
            "gone_rows": 1,
            "changed": [{"was": "kept", "is": "TEXT", "rows": 2, "ids": ["TEXT"]}],
        },
        "sources": [{"value": "TEXT", "rows": {"quiet": 1, "kept": 4}}, {"value": None, "rows": {"kept": 1}}],
        "sources_not_shown": 3,
        "sources_with_one_row": {"count": 1, "first": ["a"]},
        "measures": {
            "near_dedup": [
                {"name": "similarity", "bounds": [0.5, 0.55], "rows": [3, 4], "dropped": [0, 4]},
                {"name": "language", "values": [{"value": "TEXT", "rows": {"kept": 1}}], "values_not_shown": 2},
            ],
            "quiet": [],
        },
        "samples": {
            "near_dedup": [
                {"id": "TEXT", "source": None, "query": "TEXT", "measures": {"copy_of": "TEXT", "score": 0.5}}
            ],
            "quiet": [],
        },
    },
    "gate": {"min_agreement": 0.9, "queries": "TEXT", "max_ndcg_drop": 0.01},
    "lineage": {"model": "TEXT", "revision": None, "prompt": ""},
    "fingerprint": "TEXT",
    "job": {},
}


class Parsed(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_a_hostile_text_is_shown_in_every_place_and_is_nowhere_markup():
    numbers = count()
    page = render(evil(REPORT, numbers))
    assert "<script" not in page
    assert "<img" not in page
    parsed = Parsed(page)
    assert {"script", "img", "iframe", "link", "object"}.isdisjoint(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("src", "srcset")]
    assert all(str(value).startswith("#") for name, value in parsed.attributes if name == "href")
    assert [number for number in range(next(numbers)) if f"{EVIL}{number};" not in parsed.text] == []


def test_a_name_in_the_data_of_a_report_is_escaped_as_a_value_is():
    named = {
        **REPORT,
        "norms": {EVIL: REPORT["norms"]["TEXT"]},
        "quarantine": {"carried": 0, "reasons": {EVIL: 1}, "samples": []},
    }
    page = render(named)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2


def test_a_report_of_a_run_that_failed_before_its_plan_shows_its_error():
    keys = (
        "format",
        "vectide",
        "table",
        "run",
        "operation",
        "command",
        "version",
        "state",
        "checks",
        "left_out",
        "dialects",
    )
    page = render({key: REPORT[key] for key in (*keys, "calls")})
    assert "The last call ended with an error" in page
    assert 'id="throughput"' not in page


def test_nothing_is_loaded_from_elsewhere():
    page = render(REPORT)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?://|@import|url\(", page)


@pytest.mark.parametrize("values", [[0.0], [0, 0], [1], [1e-9, 3], [5e12] * 200, list(range(7))])
def test_bars_stay_within_the_chart_and_labels_do_not_overlap(values):
    chart = Chart("title", [Bar(value, f"{number:,}", "hint") for number, value in enumerate(values)], "unit", "axis")
    ends = -1.0
    for bar, place in chart.places():
        x, y, width, height = (float(place[name]) for name in ("x", "y", "width", "height"))
        assert chart.left <= x <= x + width <= chart.right + 0.1
        assert 0 <= y <= y + height <= chart.floor + 0.1
        assert width > 0
        if "label" in place:
            half = len(bar.label) * 3.3
            assert float(place["middle"]) - half > ends
            ends = float(place["middle"]) + half
    heights = [float(y) for y, _ in chart.ticks()]
    assert heights == sorted(heights, reverse=True)
    assert 2 <= len(heights) <= 6


def test_numbers_are_short():
    assert [short(value) for value in (0, 7, 12.34, 999.9, 1234, 56_789, 1e6, 2.5e9)] == [
        *("0", "7", "12.3", "1 k", "1.23 k", "56.8 k", "1 M", "2.5 G"),
    ]
    assert [percent(1, 3), percent(1, 1000), percent(0, 0), percent(3, 3)] == ["33.3 %", "0.1 %", "0 %", "100.0 %"]
    assert [duration(value) for value in (0, 0.123, 9.96, 45.2, 150, 7200)] == [
        *("0 s", "0.12 s", "10 s", "45 s", "2.5 min", "2.0 h"),
    ]
