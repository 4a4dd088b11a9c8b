"""The GPU benchmark on a CPU: shapes, their operations, peers, and the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from actors.encoders import load_encoder
from actors.encoders.compute.device import Compute
from benchmarks.__main__ import app, packaged_model
from benchmarks.gpu import peers, probes
from benchmarks.gpu.backfills import Backfill, run_backfills, write_model
from benchmarks.gpu.measure import Budgets, Row, measure_shape
from benchmarks.gpu.page import Result, markdown
from benchmarks.gpu.peers import FLASH, attentions, folder_of
from benchmarks.gpu.session import Session, parts_of
from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.gpu.timing import mixes, random_ids
from benchmarks.gpu.vision import PageRates
from tests.checkpoints import write_bert
from tests.checkpoints.jina_v4 import write_jina_v4

CPU = torch.device("cpu")


def test_a_machine_without_a_gpu_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(app, ["gpu"])
    assert done.exit_code == 1
    assert "sees no CUDA GPU here" in str(done.output) + str(done.exception)


def test_an_unknown_shape_is_refused():
    done = CliRunner().invoke(app, ["gpu", "--shape", "Jina v9"])
    assert done.exit_code == 2
    assert "'Jina v9' is none of" in done.output.replace("\n", " ")


def page_of(found: Sequence[Result], left_out: Sequence[str] = ()) -> str:
    return markdown(found, 1e12, left_out=left_out, command="c", date="d")


@pytest.mark.slow  # imports torch's profiler, and for some families sentence-transformers, which takes ten seconds
@pytest.mark.parametrize("family", ["bert", "v2", "v3", "v3 adapters", "v4", "v4 adapters"])
def test_the_gpu_benchmark_measures_every_family_on_a_cpu(family, monkeypatch):
    monkeypatch.setattr(peers, "BATCHES", (4, peers.DEFAULT_BATCH))
    shape = Shape("tiny", family, 2, 48, 12, 96, groups=3 if family.startswith("v4") else None)
    rows = measure_shape(shape, {"short": mixes(200)["short"]}, device=CPU, repeats=2)
    assert [len(row.ours) for row in rows] == [2]
    assert [list(row.theirs) for row in rows] == [["sdpa"] if family in ("bert", "v3", "v4") else []]
    assert all(list(rates) == [4, peers.DEFAULT_BATCH] for row in rows for rates in row.theirs.values())
    assert all(row.busy > 0 and row.raced > 0 and row.budget_tokens == 1024 for row in rows)
    page = page_of(rows)
    assert "| tiny | short |" in page
    cells = {
        "v2": "| needs remote code |  | needs remote code |",
        "v3 adapters": "| has no adapters |  |",
        "v4 adapters": "| has no adapters |  |",
    }
    assert cells.get(family, "| not installed |") in page
    assert all(line.count("|") == 16 for line in page.splitlines() if line.startswith("|"))


def test_the_best_of_fixed_budgets_is_reported(monkeypatch, tmp_path):
    """The controller's race wants more micro-batches than a large model computes in minutes, so it is not waited for."""
    encoder = load_encoder(str(write_bert(tmp_path)), device="cpu")
    monkeypatch.setattr(Compute, "ladder", (16, 64, 256))
    budgets = Budgets(encoder, random_ids(np.full(40, 8), 20))
    seen: list[tuple[int, bool]] = []

    def pretend(call, tokens, repeats, device, *, warm=True):
        controller = call.func.__self__._runner._budget
        seen.append((controller.budget_tokens, controller.racing))
        return [{16: 5.0, 64: 9.0, 256: 7.0}[controller.budget_tokens]] * repeats

    monkeypatch.setattr("benchmarks.gpu.measure.timed", pretend)
    assert budgets.best(3, CPU) == [9.0] * 3
    assert (budgets.budget, budgets.tokens) == (64, 320)
    assert seen == [(16, False), (64, False), (256, False)]
    budgets.raced(CPU)
    assert seen[-1][1]


def test_each_way_of_a_peer_has_a_column():
    row = Row(Shape("tiny", "bert", 1, 48, 12, 96), "short", np.array([8]), [100.0])
    row.theirs = {"sdpa": {32: [20.0], 128: [40.0], 512: [30.0]}, FLASH: {32: [10.0], 128: [50.0]}}
    assert "| 20 | 5.00 | 40 | 2.50 | 50 | 2.00 |" in page_of([row])
    assert attentions(CPU) == ("sdpa",)  # flash-attention is for GPUs


def test_a_session_writes_its_page_after_each_part_and_ends_in_time(tmp_path):
    page, seen = tmp_path / "page.md", []
    shape = Shape("tiny", "bert", 1, 48, 12, 96)

    def measure(name: str, minutes: float) -> list[Row]:
        seen.append((name, page.read_text() if page.exists() else ""))
        session.started -= 60 * minutes
        return [Row(shape, name, np.array([8]), [100.0])]

    session = Session(page, page_of, lambda line: None, minutes=5)
    session.run([(name, partial(measure, name, 3.0)) for name in ("first", "second", "third", "fourth")])
    assert [name for name, _ in seen] == ["first", "second"]
    assert "| tiny | first |" in seen[1][1]
    assert "| tiny | second |" in page.read_text()
    assert "Not measured, for lack of time: third, fourth" in page.read_text()


def test_backfills_come_after_the_most_important_shapes():
    settings: dict[str, Any] = {"tokens": 100, "repeats": 1, "texts": list, "model": Path("m"), "device": CPU}
    settings |= {"v4": None, "pages": 2}
    names = [name for name, _ in parts_of(SHAPES, rows=8, **settings)]
    assert names[:4] == ["all-MiniLM-L6-v2", "BERT large", "backfill, BERT large", "backfill, all-MiniLM-L6-v2"]
    assert [name for name, _ in parts_of(SHAPES, rows=0, **settings)] == [shape.name for shape in SHAPES]


@pytest.mark.slow
def test_a_backfill_is_compared_with_the_encoder_alone(tmp_path):
    shape = Shape("tiny", "bert", 1, 48, 12, 96)
    model = write_model(shape, packaged_model(), tmp_path / "model")
    texts = ["some words", "others of another length", "three"]
    (found,) = run_backfills(texts, model, "tiny", rows=60, replicas=(1,), device=CPU, address="inline")
    assert found.seconds > 0
    assert found.rate > 0
    assert found.idle == 1 - found.busy * found.rate / found.alone
    page = page_of([Backfill("tiny", 2, 2.0, 50.0, 100.0, 0.8)])
    assert "| tiny | 2 | 2.0 | 50 | 100 | 80% | 60.0% |" in page


@pytest.mark.slow
@pytest.mark.parametrize("family", ["v3", "v4"])
def test_a_peer_computes_the_same_model(tmp_path, family):
    from sentence_transformers import SentenceTransformer

    shape = Shape("tiny", family, 2, 48, 4, 96, groups=2 if family == "v4" else None)
    checkpoint = shape.write(tmp_path / "model")
    peer = folder_of(shape, checkpoint, tmp_path / "peer")
    assert peer is not None
    model = SentenceTransformer(str(peer), device="cpu", model_kwargs={"dtype": torch.float32})
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.inference_mode():
        theirs = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"].numpy()
    encoder = load_encoder(str(checkpoint), task=shape.task, dtype="float32")
    ours = encoder.encode_tokens(pa.array(ids.tolist(), pa.list_(pa.int32())))
    np.testing.assert_allclose(ours, theirs / np.linalg.norm(theirs), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "v2", "v3", "v4", "v4 adapters"])
def test_operations_are_twice_the_weights_of_the_products(tmp_path, family):
    """Of the checkpoint's own matrices, but for words, positions and adapters; and those of the scores."""
    from safetensors import safe_open

    shape = Shape("tiny", family, 2, 48, 4, 96, groups=2 if family.startswith("v4") else None)
    folder = shape.write(tmp_path)
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    weights = sum(
        int(np.prod(size))
        for name, size in shapes.items()
        if len(size) == 2 and "embed" not in name and "pooler" not in name and "projector" not in name
    )
    pairs = 4 * 2 * 48 * (10 * 10 + 7 * 7)
    assert shape.operations([10, 7]) == 2 * weights * 17 + (pairs / 2 if family.startswith("v4") else pairs)


def test_shapes_are_the_published_ones():
    weights = {shape.name: shape.operations([1]) / 2 for shape in SHAPES}
    assert weights["Jina v4 with an adapter"] == weights["Jina v4, one task merged"]
    assert weights["Jina v3 with an adapter"] == weights["Jina v3"]
    assert weights["Jina v4, one task merged"] == pytest.approx(2.77e9, rel=0.01)
    assert weights["Jina v3"] == pytest.approx(303e6, rel=0.01)
    tasks = {shape.family: shape.task for shape in SHAPES}
    assert tasks == {
        **dict.fromkeys(("bert", "v2", "v3")),
        "v4": "passage",
        **dict.fromkeys(("v3 adapters", "v4 adapters", "v4 pages"), "retrieval.passage"),
    }


@pytest.mark.slow
def test_every_fused_function_is_probed_with_and_without_the_variable(monkeypatch):
    """On a CPU nothing is compiled, so both results are the same; the calls and their sizes are those of a GPU."""
    monkeypatch.setattr(probes, "_CALLS", 1)
    monkeypatch.setenv("VECTIDE_FUSE", "0")
    found = list(probes.probe_all(CPU, 16))
    assert [(each.name, each.error) for each in found if each.error or each.apart] == []
    assert len(found) == 12
    assert os.environ["VECTIDE_FUSE"] == "0"


def test_a_function_that_does_not_compile_or_differs_is_a_line_of_the_page():
    def fails() -> torch.Tensor:
        if os.environ["VECTIDE_FUSE"] == "1":
            raise ValueError("no such kernel\nand more")
        return torch.ones(2)

    def differs() -> torch.Tensor:
        return torch.ones(2) * (1 if os.environ["VECTIDE_FUSE"] == "0" else 1.5)

    found = [probes.probe("fails", lambda: fails, CPU), probes.probe("differs", lambda: differs, CPU)]
    page = probes.page(found, date="d")
    assert "| ValueError: no such kernel |" in page
    assert "| 0.50000 |" in page


@pytest.mark.slow
def test_pages_are_measured_part_by_part(tmp_path):
    v4 = write_jina_v4(tmp_path / "v4", max_pixels=20_000)
    shape = Shape("pages", "v4 pages", 2, 32, 4, 64, groups=2)
    ((_, measure),) = parts_of(
        [shape],
        tokens=1, repeats=1, rows=0, texts=list, model=v4, v4=v4, pages=4, device=CPU, address="inline",
    )  # fmt: skip
    (found,) = measure()
    assert isinstance(found, PageRates)
    assert found.tokens > 11  # those of the prompt
    assert min(found.render, found.tower, found.language, found.backfill.alone) > found.backfill.rate > 0
    assert f"| v4 | {found.tokens} | {found.render:,.1f} |" in page_of([found])
