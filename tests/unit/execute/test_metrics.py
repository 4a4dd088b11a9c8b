"""The list of metrics, its page and its dashboard agree; encoders record changes since the last unit."""

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
RAY_TAGS = {"NodeAddress", "WorkerId", "le"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "vectide.json").read_text())
    return loaded


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_page_lists_every_metric_with_its_kind_and_tags():
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


def test_the_dashboard_uses_only_existing_tags(dashboard):
    for text in expressions(dashboard):
        (names,) = {tuple(re.findall(r"ray_(vectide_\w+?)(?:_bucket)?\{", text))}
        known = {*COMMON, *RAY_TAGS, *(tag for name in names for tag in METRICS[name].tags)}
        used = re.findall(r"(\w+)=~?\"", text) + [
            tag.strip() for group in re.findall(r"by \(([^)]*)\)", text) for tag in group.split(",")
        ]
        assert set(used) <= known, text
        assert text.count("(") == text.count(")")
        assert text.count("{") == text.count("}") == len(names)


def test_the_dashboard_layout_and_variables_are_valid(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    used_cells: set[tuple[int, int]] = set()
    for panel in panels:
        position = panel["gridPos"]
        cells = {(position["x"] + x, position["y"] + y) for x in range(position["w"]) for y in range(position["h"])}
        assert not used_cells & cells  # panels do not overlap
        used_cells |= cells
        assert position["x"] + position["w"] <= 24  # the dashboard has 24 columns
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", *COMMON}
    text = json.dumps(dashboard)
    assert set(re.findall(r"\$\{?(\w+)", text)) <= variables | {"__rate_interval", "__all"}


class RecordingMeter(Meter):
    """A meter that keeps its numbers in a list."""

    recorded: list[tuple[str, float, str]] = []  # noqa: RUF012  (emptied by the fixture)

    def add(self, name, value, **tags):
        if value > 0:
            self.recorded.append((name, value, *tags.values()))

    set = observe = add


@pytest.fixture
def meter():
    RecordingMeter.recorded.clear()
    return RecordingMeter("table", "run")


def test_a_finished_unit_is_counted_from_its_receipt(meter):
    file = DataFile(path="a", size_bytes=100, rows=9, partition={}, stats="{}")
    receipt = Receipt(1, "a", (file, file), 8, 6, 18, 2, 50, 1, encoded=5, seconds={"read": 0.5, "encode": 2.0})
    RunMeter(meter).finished(receipt, {"empty_text": 2})
    assert dict(entry[:2] for entry in meter.recorded if len(entry) == 2) == {
        "vectide_rows_read_total": 8,
        "vectide_documents_total": 6,
        "vectide_rows_written_total": 18,
        "vectide_tokens_total": 50,
        "vectide_encoded_texts_total": 5,
        "vectide_truncated_documents_total": 1,
        "vectide_written_bytes_total": 200,
    }
    assert ("vectide_quarantined_rows_total", 2, "empty_text") in meter.recorded
    assert ("vectide_units_total", 1, "done") in meter.recorded
    for name in ("vectide_stage_seconds_total", "vectide_unit_stage_seconds"):
        assert [entry[1:] for entry in meter.recorded if entry[0] == name] == [(0.5, "read"), (2.0, "encode")]


def test_a_death_is_counted_once_and_a_failed_unit_as_failed(meter):
    run = RunMeter(meter)
    for total in (0, 2, 2, 3):
        run.deaths(total)
    run.failed()
    assert meter.recorded == [
        ("vectide_process_deaths_total", 2),
        ("vectide_process_deaths_total", 1),
        ("vectide_units_total", 1, "failed"),
    ]


def test_an_encoder_records_changes_since_the_last_unit(meter):
    no_gpu = Compute(torch.device("cpu"), torch.float32).memory()
    encoder_meter = EncoderMeter(meter)
    for tokens, padding, batches, halved in ((800, 200, 2, 1), (800, 200, 2, 1), (1400, 200, 4, 1)):
        encoder_meter.record(
            Stats(
                tokens=tokens,
                padding_tokens=padding,
                micro_batches=batches,
                out_of_memory=halved,
                budget_tokens=500,
            ),
            no_gpu,
        )
    assert [entry for entry in meter.recorded if entry[0] != "vectide_budget_tokens"] == [
        ("vectide_micro_batches_total", 2),
        ("vectide_out_of_memory_total", 1),
        ("vectide_micro_batch_fill_ratio", 0.8),
        ("vectide_micro_batch_budget_ratio", 0.8),
        ("vectide_micro_batches_total", 2),
        ("vectide_micro_batch_fill_ratio", 1.0),
        ("vectide_micro_batch_budget_ratio", 0.6),
    ]
    assert meter.recorded.count(("vectide_budget_tokens", 500)) == 3


def test_an_encoder_records_the_memory_of_its_gpu(meter):
    EncoderMeter(meter).record(Stats(budget_tokens=500), Memory(1, 2, 3, 4))
    assert meter.recorded[1:] == [
        ("vectide_gpu_memory_allocated_bytes", 1),
        ("vectide_gpu_memory_reserved_bytes", 2),
        ("vectide_gpu_memory_used_bytes", 3),
        ("vectide_gpu_memory_total_bytes", 4),
    ]
