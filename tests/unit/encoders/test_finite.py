"""Tests that a row whose vector is not finite or all zeros is refused by number, and the others' vectors are unchanged."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from actors.batching.budget import BudgetController
from actors.encoders import describe, load_encoder
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.encoders.finite import UnfitVectors
from actors.errors import DataError, ModelError
from actors.inputs import load_preparer
from actors.schema import HASH, ID
from actors.source.spec import SourceSpec
from actors.text.chunks import resolve
from actors.unit.unit_batch import UnitBatch, pack, unpack
from actors.unit.writer import WriterSpec, table_schema
from actors.vectors import VectorColumn
from pipeline.execute.attempts import NoAttemptLog
from pipeline.execute.stages.encode import EncodeStage
from pipeline.execute.stages.spec import StageSpec
from tests.checkpoints import write_bert, write_jina_v1, write_jina_v2, write_jina_v3, write_jina_v4
from tests.checkpoints.jina_v3 import write_peft
from tests.examples import examples

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


class Corrupted:
    """A real family that writes `value` into the states, from dimension `at` on, of rows that contain token `bad`."""

    def __init__(self, inner, bad: int, value: float, at: int = 0) -> None:
        self.inner, self.bad, self.value, self.at = inner, bad, value, at

    def forward(self, batch):
        hidden = self.inner.forward(batch).clone()
        start = 0
        for length in batch.lengths:
            row = slice(start, start + int(length))
            if (batch.ids[row] == self.bad).any():
                hidden[row, self.at :] = self.value
            start += int(length)
        return hidden


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("finite") / "model", pooling={"pooling_mode_mean_tokens": True})
    return describe(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def intact(spec):
    return load_encoder(spec)


def corrupted(intact, value: float, *, bad: int = 9, at: int = 0, **changes) -> Encoder:
    return Encoder(
        replace(intact.spec, **changes),
        device="cpu",
        family=Corrupted(intact.family, bad, value, at),
        budget=BudgetController([40]),
    )


def rows(*lists: list[int]) -> pa.ListArray:
    return pa.array(lists, pa.list_(pa.int32()))


IDS = rows([2, 5, 3], [2, 9, 3], [2, 6, 7, 8, 3], [2, 9, 9, 3], [2, 10, 3])


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("dim", [32, 8])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_invalid_rows_are_named_and_the_others_keep_their_vectors(intact, value, dim, pooling):
    encoder = corrupted(intact, value, dim=dim, pooling=pooling)
    fine = Encoder(encoder.spec, device="cpu", family=intact.family, budget=BudgetController([40]))
    with pytest.raises(UnfitVectors, match=r"row 1 has no vector: its vector is not finite.*2 of 5") as refused:
        encoder.encode_tokens(IDS)
    assert set(refused.value.reasons) == {1, 3}
    np.testing.assert_array_equal(refused.value.vectors[[0, 2, 4]], fine.encode_tokens(IDS)[[0, 2, 4]])
    assert not np.isfinite(refused.value.vectors[[1, 3]]).any()


def test_a_nonfinite_value_in_the_dropped_dims_is_refused(intact):
    with pytest.raises(UnfitVectors, match="not finite"):
        corrupted(intact, NAN, at=31, dim=8).encode_tokens(IDS)


def test_a_vector_of_zeros_is_refused(intact):
    with pytest.raises(UnfitVectors, match=r"row 1 has no vector: its vector is all zeros") as refused:
        corrupted(intact, 0.0).encode_tokens(IDS)
    again = pickle.loads(pickle.dumps(refused.value))
    assert (str(again), again.reasons) == (str(refused.value), refused.value.reasons)
    assert isinstance(again, DataError)


def test_encode_names_the_index_of_the_text(intact):
    bad = intact.tokenizer.tokenize(["b"]).ids[0].as_py()[1]
    encoder = corrupted(intact, NAN, bad=bad)
    assert np.isfinite(encoder.encode(["a", "c"])).all()
    with pytest.raises(UnfitVectors, match="row 2 has no vector"):
        encoder.encode(["a", "c", "b"])
    # In late mode the NaN reaches all chunks of its window, so the first is named.
    modes: tuple[tuple[Literal["late", "split"], int], ...] = (("late", 0), ("split", 1))
    for mode, chunk in modes:
        with pytest.raises(UnfitVectors, match=rf"chunk {chunk} of text 1 has no vector: its vector is not finite"):
            encoder.encode_chunks(["a c", "a c d e b"], mode=mode, max_tokens=4, by="tokens")


@pytest.mark.parametrize("chunked", [False, True])
def test_the_encode_stage_quarantines_whole_texts(intact, chunked):
    bad = intact.tokenizer.tokenize(["b"]).ids[0].as_py()[1]
    texts = ["a", "c c c c c c b", "b", "d e", "a"]
    stage, batch = stage_and_rows(corrupted(intact, NAN, bad=bad), texts, chunked=chunked)
    done = unpack(stage(pack(batch)))
    assert done.table is not None
    assert [(row.position, row.reason) for row in done.bad] == [(1, "encode_failed"), (2, "encode_failed")]
    assert all("not finite" in row.error for row in done.bad)
    assert done.counts == {"documents": 3, "encoded": 2, "padding": 0}
    vectors = np.stack(done.table["embedding"].to_pylist())
    assert set(done.table[ID].to_pylist()) == {"0", "3", "4"}
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def stage_and_rows(encoder: Encoder, texts: list[str], *, chunked: bool) -> tuple[EncodeStage, UnitBatch]:
    chunking = resolve(encoder.spec, mode="late", max_tokens=4, by="tokens") if chunked else None
    table = pa.table(
        {
            ID: [str(i) for i in range(len(texts))],
            HASH: texts,
            "_shard": ["s"] * len(texts),
            "_position": list(range(len(texts))),
        }
    )
    inputs = load_preparer(encoder.spec, chunking).prepare(pa.chunked_array([texts])).rows
    outputs = encoder.spec.outputs
    schema = table_schema(pa.schema([]), outputs, chunked=chunked)
    writer = WriterSpec("t", "l", "r", schema, (), "float32", "{}", outputs)
    spec = StageSpec(SourceSpec("jsonl", "s"), encoder.spec, writer, chunking)
    stage = EncodeStage(spec, NoAttemptLog(), 1, "cpu")
    stage.__dict__["encoder"] = encoder  # the value that the cached property stores
    return stage, UnitBatch(0, table=table, inputs=inputs, counts={"documents": len(texts)})


def test_a_token_outside_the_word_table_raises(intact):
    for bad in (intact.spec.vocab_size, 2**31 - 1, -1):
        with pytest.raises(DataError, match=rf"row 1 has the token {bad}, and the model's word table has \d+ rows"):
            intact.encode_tokens(rows([2, 3], [2, bad, 3]))
    assert intact.encode_tokens(rows([2, intact.spec.vocab_size - 1, 3])).shape == (1, 32)
    assert intact.encode_tokens(rows([2, intact.spec.vocab_size, 3], [2, 5, 3]).slice(1)).shape == (
        1,
        32,
    )


# Stored vectors


@examples(50)
@given(data=st.data(), dim=st.integers(1, 6), n=st.integers(0, 6))
def test_only_unit_vectors_of_the_right_width_are_reused(data, dim, n):
    """A column of vectors may contain anything that another tool wrote."""
    kinds = st.sampled_from(
        ["fit", "nan", "inf", "zeros", "short", "long", "empty", "null", "null inside", "made up", "huge"]
    )
    wanted = data.draw(st.lists(kinds, min_size=n, max_size=n))
    vectors = []
    for kind in wanted:
        fit = [0.6, -0.8, *[0.0] * (dim - 2)] if dim > 1 else [-1.0]
        vectors.append(
            {
                "fit": fit,
                "nan": [NAN, *fit[1:]],
                "inf": [*fit[:-1], -INF],
                "zeros": [0.0] * dim,
                "short": fit[:-1],
                "long": [*fit, 0.0],
                "empty": [],
                "null": None,
                "null inside": [None, *fit[1:]],
                "made up": [1.0, *[0.0] * (dim - 1)],
                "huge": [3e38] * dim,
            }[kind]
        )
    column = pa.chunked_array([vectors], pa.list_(pa.float32()))
    good = {"fit"} | ({"made up"} if dim == 1 else set())
    assert VectorColumn("embedding", "dense", dim).reusable(column).tolist() == [kind in good for kind in wanted]


# Weights

WRITERS = {
    "bert": (write_bert, {}),
    "jina_v1": (write_jina_v1, {}),
    "jina_v2": (write_jina_v2, {}),
    "jina_v3": (write_jina_v3, {}),
    "jina_v4": (write_jina_v4, {"task": "retrieval.passage"}),
}


def spoil(folder, name: str, value: float, dtype: torch.dtype | None = None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors[name].to(dtype or tensors[name].dtype)
    tensor.view(-1)[-1] = value
    save_file({**tensors, name: tensor}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize(("value", "dtype"), [(NAN, torch.float32), (INF, torch.float16), (-INF, torch.bfloat16)])
def test_every_used_tensor_is_checked_at_load(tmp_path, family, value, dtype):
    write, settings_ = cast("tuple[Any, dict[str, Any]]", WRITERS[family])
    write(tmp_path / "model")
    spec = describe(str(tmp_path / "model"), dtype="float32", **settings_)
    load_encoder(spec)
    whole = (tmp_path / "model" / "model.safetensors").read_bytes()
    header = load_file(tmp_path / "model" / "model.safetensors")
    idle = ("pooler", "visual", "projector", "lm_head", "position_ids", "decoder")
    used = [name for name in header if not any(part in name for part in idle)]
    for name in (used[0], used[len(used) // 2], used[-1]):
        (tmp_path / "model" / "model.safetensors").write_bytes(whole)
        spoil(tmp_path / "model", name, value, dtype)
        with pytest.raises(
            ModelError, match=rf"model\.safetensors has values in '{name}' that are not finite: 1 of \d+"
        ):
            load_encoder(replace(spec, weights_sha256=""))


def test_weights_that_overflow_the_compute_type_are_refused(tmp_path):
    folder = write_bert(tmp_path / "model")
    name = "encoder.layer.0.output.dense.weight"
    spoil(folder, name, 3.4e38)
    spec = describe(str(folder), dtype="bfloat16")
    Encoder(spec, compute=Compute(CPU, torch.float32))
    with pytest.raises(ModelError, match=rf"has values in '{name}' up to 3.4e\+38, which are not finite in bfloat16"):
        Encoder(spec, compute=Compute(CPU, torch.bfloat16))
    spoil(folder, name, 1e39, torch.float64)
    with pytest.raises(ModelError, match=rf"has values in '{name}' that are not finite"):
        Encoder(spec, compute=Compute(CPU, torch.float32))


@pytest.mark.parametrize("alpha", [1, 1e38])
def test_an_adapter_that_is_not_finite_with_its_scale_is_refused(tmp_path, alpha):
    encoder = load_encoder(str(write_jina_v3(tmp_path / "model")), dtype="float32")
    hidden, layers = encoder.spec.hidden, range(len(cast(Any, encoder.family).layers))
    factors = {}
    for stem in (f"base_model.model.encoder.layers.{i}.mixer.Wqkv.lora_{{}}.weight" for i in layers):
        factors[stem.format("A")] = torch.ones(4, hidden)
        factors[stem.format("B")] = torch.full((3 * hidden, 4), 1e10 if alpha > 1 else NAN)
    folder = write_peft(tmp_path / "adapter", factors, r=4, lora_alpha=alpha)
    with pytest.raises(
        ModelError, match=r"adapter_model\.safetensors has values in '.*lora_B.weight' that are not finite"
    ):
        encoder.adapters.load("bad", folder)
