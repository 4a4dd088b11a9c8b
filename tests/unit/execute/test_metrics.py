"""The list of metrics, its page and its dashboard say the same; and encoders tell what changed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.encoders.compute.device import Compute, Memory
from actors.encoders.running import Stats
from actors.unit.receipt import DataFile, Receipt
from pipeline.execute.metrics import COMMON, METRICS, EncoderMeter, Meter, RunMeter

ROOT = Path(__file__).parents[3]
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


class Remembered(Meter):
    """A meter whose numbers go nowhere but here."""

    told: list[tuple[str, float, str]] = []  # noqa: RUF012  (emptied by the fixture)

    def add(self, name, value, **tags):
        if value > 0:
            self.told.append((name, value, *tags.values()))

    set = observe = add


@pytest.fixture
def meter():
    Remembered.told.clear()
    return Remembered("table", "run")


def test_a_finished_unit_is_counted_as_its_receipt_says(meter):
    file = DataFile(path="a", size_bytes=100, rows=9, partition={}, stats="{}")
    receipt = Receipt(1, "a", (file, file), 8, 6, 18, 2, 50, 1, encoded=5, seconds={"read": 0.5, "encode": 2.0})
    RunMeter(meter).finished(receipt, {"empty_text": 2})
    assert dict(told[:2] for told in meter.told if len(told) == 2) == {
        "vectide_rows_read_total": 8,
        "vectide_documents_total": 6,
        "vectide_rows_written_total": 18,
        "vectide_tokens_total": 50,
        "vectide_encoded_texts_total": 5,
        "vectide_truncated_documents_total": 1,
        "vectide_written_bytes_total": 200,
    }
    assert ("vectide_quarantined_rows_total", 2, "empty_text") in meter.told
    assert ("vectide_units_total", 1, "done") in meter.told
    for name in ("vectide_stage_seconds_total", "vectide_unit_stage_seconds"):
        assert [told[1:] for told in meter.told if told[0] == name] == [(0.5, "read"), (2.0, "encode")]


def test_a_death_is_counted_once_and_a_failure_is_no_success(meter):
    run = RunMeter(meter)
    for total in (0, 2, 2, 3):
        run.deaths(total)
    run.failed()
    assert meter.told == [
        ("vectide_process_deaths_total", 2),
        ("vectide_process_deaths_total", 1),
        ("vectide_units_total", 1, "failed"),
    ]


def test_an_encoder_tells_what_changed_since_the_last_unit(meter):
    no_card = Compute(torch.device("cpu"), torch.float32).memory()
    told = EncoderMeter(meter)
    for tokens, padding, batches, halved in ((800, 200, 2, 1), (800, 200, 2, 1), (1400, 200, 4, 1)):
        told.record(
            Stats(
                tokens=tokens,
                padding_tokens=padding,
                micro_batches=batches,
                out_of_memory=halved,
                budget_tokens=500,
            ),
            no_card,
        )
    assert [one for one in meter.told if one[0] != "vectide_budget_tokens"] == [
        ("vectide_micro_batches_total", 2),
        ("vectide_out_of_memory_total", 1),
        ("vectide_micro_batch_fill_ratio", 0.8),
        ("vectide_micro_batch_budget_ratio", 0.8),
        ("vectide_micro_batches_total", 2),
        ("vectide_micro_batch_fill_ratio", 1.0),
        ("vectide_micro_batch_budget_ratio", 0.6),
    ]
    assert meter.told.count(("vectide_budget_tokens", 500)) == 3


def test_a_card_tells_its_memory(meter):
    EncoderMeter(meter).record(Stats(budget_tokens=500), Memory(1, 2, 3, 4))
    assert meter.told[1:] == [
        ("vectide_gpu_memory_allocated_bytes", 1),
        ("vectide_gpu_memory_reserved_bytes", 2),
        ("vectide_gpu_memory_used_bytes", 3),
        ("vectide_gpu_memory_total_bytes", 4),
    ]
