"""The GPU benchmark on a CPU: shapes, their operations, peers, and the page."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from actors.encoders import load_encoder
from benchmarks.__main__ import app
from benchmarks.gpu.measure import measure_shape
from benchmarks.gpu.page import markdown
from benchmarks.gpu.peers import FLASH, attentions, folder_of
from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.gpu.timing import mixes

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


# With `slow` are those that import sentence-transformers, which takes ten seconds.
@pytest.mark.parametrize(
    "family",
    ["v2", "v4 adapters", *(pytest.param(family, marks=pytest.mark.slow) for family in ("bert", "v3", "v4"))],
)
def test_the_gpu_benchmark_measures_every_family_on_a_cpu(family):
    shape = Shape("tiny", family, 2, 48, 12, 96, groups=3 if family.startswith("v4") else None)
    rows = measure_shape(shape, {"short": mixes(200)["short"]}, device=CPU, repeats=1)
    assert [len(row.ours) for row in rows] == [1]
    assert [list(row.theirs) for row in rows] == [["sdpa"] if family in ("bert", "v3", "v4") else []]
    page = markdown(rows, 1e12, {0.5: {"seconds": 2.0, "rows/s": 50.0, "idle": 0.04}}, command="c", date="d")
    assert "| tiny | short |" in page
    assert "| 2 | 2.0 | 50 | 4.0% |" in page
    cells = {"v2": "| needs remote code |  | needs remote code |", "v4 adapters": "| has no adapters |  |"}
    assert cells.get(family, "| not installed |") in page


@pytest.mark.slow
def test_both_attention_implementations_of_a_peer_have_a_column():
    (row,) = measure_shape(Shape("tiny", "bert", 1, 48, 12, 96), {"short": mixes(100)["short"]}, device=CPU, repeats=1)
    row.ours, row.theirs = [100.0], {"sdpa": [40.0], FLASH: [50.0]}
    assert "| 40 | 2.50 | 50 | 2.00 |" in markdown([row], 1e12, {}, command="c", date="d")
    assert attentions(CPU) == ("sdpa",)  # flash-attention is for GPUs


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
    assert weights["Jina v4 with adapters"] == weights["Jina v4, one task merged"]
    assert weights["Jina v4, one task merged"] == pytest.approx(2.77e9, rel=0.01)
    assert weights["Jina v3"] == pytest.approx(303e6, rel=0.01)
    assert [shape.task for shape in SHAPES[-3:]] == [None, "passage", "retrieval.passage"]
