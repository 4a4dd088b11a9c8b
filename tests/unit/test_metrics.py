"""The list of metrics, its page and its dashboard say the same; and encoders tell what changed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.metrics import COMMON, METRICS

ROOT = Path(__file__).parents[2]
RAYS_OWN = {"NodeAddress", "WorkerId", "le"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "vectide.json").read_text())
    return loaded


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_page_has_every_metric_as_it_is():
    page = (ROOT / "docs" / "metrics.md").read_text()
    lines = re.findall(r"^\| `(vectide_\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", page, re.MULTILINE)
    written = {name: (kind, tuple(re.findall(r"`(\w+)`", tags))) for name, kind, tags, _ in lines}
    assert written == {name: (metric.kind, metric.tags) for name, metric in METRICS.items()}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_names_end_with_their_unit(metric):
    if metric.kind == "counter":
        assert metric.name.endswith("_total")
    else:
        assert re.search("_(seconds|bytes|ratio|tokens)$", metric.name)


def test_the_dashboard_shows_every_metric_and_no_other(dashboard):
    shown = {
        re.sub("_bucket$", "", name)
        for text in expressions(dashboard)
        for name in re.findall(r"ray_(vectide_\w+)", text)
    }
    assert shown == METRICS.keys()


def test_the_dashboard_asks_for_tags_that_are_there(dashboard):
    for text in expressions(dashboard):
        (names,) = {tuple(re.findall(r"ray_(vectide_\w+?)(?:_bucket)?\{", text))}
        known = {*COMMON, *RAYS_OWN, *(tag for name in names for tag in METRICS[name].tags)}
        used = re.findall(r"(\w+)=~?\"", text) + [
            tag.strip() for group in re.findall(r"by \(([^)]*)\)", text) for tag in group.split(",")
        ]
        assert set(used) <= known, text
        assert text.count("(") == text.count(")")
        assert text.count("{") == text.count("}") == len(names)


def test_the_dashboard_can_be_drawn(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }  # no two panels in one place, none beyond the 24 columns
        assert not taken & cells
        taken |= cells
        assert place["x"] + place["w"] <= 24
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", *COMMON}
    text = json.dumps(dashboard)
    assert set(re.findall(r"\$\{?(\w+)", text)) <= variables | {"__rate_interval", "__all"}
