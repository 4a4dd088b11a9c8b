"""What a GPU is sent and asked for, on a device without numbers.

Tensors of torch's meta device have shapes and no content, so every read-back raises. A dispatch mode counts the copies to
it. Where a GPU is, the same is asked of CUDA itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from actors.batching.budget import BudgetController
from actors.encoders import describe, encoder, load_encoder, pooling
from actors.encoders.compute import attention, linear, slopes
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.inputs import prepare_texts
from actors.text.chunks import Chunker, resolve
from tests.checkpoints import SENTENCES, write_bert
from tests.checkpoints.jina_v1 import write_jina_v1
from tests.checkpoints.jina_v2 import write_jina_v2
from tests.checkpoints.jina_v3 import write_jina_v3
from tests.checkpoints.jina_v4 import write_jina_v4

META = torch.device("meta")
MODELS: dict[str, tuple[Any, dict[str, Any], str | None, list[str | None] | None]] = {
    "bert": (write_bert, {}, None, None),
    "roberta": (write_bert, {"kind": "xlm-roberta", "tokenizer": "byte_level"}, None, None),
    "v1": (write_jina_v1, {}, None, None),
    "v2": (write_jina_v2, {}, None, None),
    "v2 b": (write_jina_v2, {"variant": "B"}, None, None),
    "v3": (write_jina_v3, {}, None, None),
    "v3 one task": (write_jina_v3, {}, "retrieval.passage", None),
    "v3 mixed": (write_jina_v3, {}, None, ["retrieval.passage", "text-matching", None]),
    "v4": (write_jina_v4, {}, "retrieval.passage", None),
    "v4 mixed": (write_jina_v4, {}, "retrieval.passage", ["retrieval.query", "code.query", "retrieval.passage"]),
}


class Copies(TorchDispatchMode):
    """Lists the tensors that go to the device, and checks of lengths, for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [each for each in tree_leaves(args) if isinstance(each, torch.Tensor)]
        outputs = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        if any(each.device.type == "cpu" for each in inputs) and any(each.device == META for each in outputs):
            self.events.append("sent")
        if func is torch.ops.aten.segment_reduce.default and not (kwargs or {}).get("unsafe"):
            self.events.append("checked")
        return result


class Departure:
    """A copy that ends when the host waits for it, as on a GPU that is far behind."""

    def __init__(self, source: torch.Tensor, events: list[str]) -> None:
        self.shape, self.events = source.shape, events

    def has_ended(self) -> bool:
        return False

    def array(self) -> np.ndarray:
        self.events.append("awaited")
        return np.ones(self.shape, np.float32)


class Departures:
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def start(self, source: torch.Tensor) -> Departure:
        assert source.device == META
        self.events.append("leaves")
        return Departure(source, self.events)


@contextmanager
def counting(encoder: Encoder) -> Iterator[list[str]]:
    make = torch.tensor

    def tensor(*args: Any, **kwargs: Any) -> torch.Tensor:
        copies.events.append("made of numbers")  # which torch copies to the device, and the host waits
        return make(*args, **kwargs)

    with Copies() as copies, pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "tensor", tensor)
        encoder._departures = Departures(copies.events)  # type: ignore[assignment]
        yield copies.events


@pytest.fixture(params=[(name, fuses) for name in MODELS for fuses in (False, True)], ids=str)
def on_a_gpu(request, tmp_path, monkeypatch):
    """A model on the device, in micro-batches of 40 tokens, as it is and as it is fused, but for the compiler's work."""
    name, fuses = request.param
    write, settings, task, tasks = MODELS[name]
    monkeypatch.setattr(attention, "_has_varlen", lambda query: query.shape[2] % 8 == 0)
    monkeypatch.setattr(slopes, "_attend_in_blocks", lambda query, *_: torch.empty_like(query).flatten(1))
    for module in (attention, encoder, linear, pooling):
        monkeypatch.setattr(module, "fuses", lambda device: fuses)
    spec, compute = describe(str(write(tmp_path, **settings)), task=task), Compute(META, torch.bfloat16)
    return Encoder(spec, compute=compute, budget=BudgetController([40]), one_task=tasks is None), tasks


def rows_of(encoder: Encoder, tasks: list[str | None] | None) -> tuple[pa.ListArray, list[str | None] | None]:
    tasks = None if tasks is None else [tasks[i % len(tasks)] for i in range(len(SENTENCES))]
    return encoder.tokenizer.tokenize(SENTENCES, tasks).ids, tasks


@pytest.mark.slow
def test_the_host_sends_one_buffer_a_micro_batch_and_waits_at_the_end(on_a_gpu):
    encoder, tasks = on_a_gpu
    ids, row_tasks = rows_of(encoder, tasks)
    with counting(encoder) as events:
        vectors = encoder.encode_tokens(ids, row_tasks)
    assert vectors.shape == (len(ids), encoder.dim)
    count = encoder.stats.micro_batches
    assert count > 3
    assert events == ["sent", "leaves"] * count + ["awaited"] * count


def test_many_vectors_leave_with_the_dense_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "_has_varlen", lambda query: query.shape[2] % 8 == 0)
    spec = describe(str(write_jina_v4(tmp_path)), task="retrieval.passage", outputs=("dense", "multi"))
    encoder = Encoder(spec, compute=Compute(META, torch.bfloat16), budget=BudgetController([40]))
    with counting(encoder) as events:
        encoded = encoder.encode_rows(prepare_texts(spec, SENTENCES))
    assert [len(array) for array in encoded.outputs] == [len(SENTENCES)] * 2
    count = encoder.stats.micro_batches
    assert count > 3
    assert events == ["sent", "leaves"] * count + ["awaited"] * count


@pytest.mark.slow
def test_sums_of_chunks_add_one_buffer_a_micro_batch(on_a_gpu):
    encoder, tasks = on_a_gpu
    texts = [" ".join(SENTENCES)] * 2
    row_tasks = None if tasks is None else tasks[:2]
    chunking = resolve(encoder.spec, mode="late", max_tokens=5, by="tokens", every_task=tasks is not None)
    assert chunking is not None
    documents = Chunker(encoder.spec, chunking).chunk(texts, row_tasks)
    with counting(encoder) as events, pytest.raises(NotImplementedError, match="meta"):
        encoder.encode_documents(documents, chunking, row_tasks)  # the copy of all sums at the end has no content
    assert set(events) == {"sent"}
    assert len(events) == 2 * encoder.stats.micro_batches


def test_arrived_vectors_are_put_into_place_while_others_are_computed(tmp_path):
    """As on a GPU that keeps up: the copies of a micro-batch have ended when the next one is launched."""
    spec = describe(str(write_bert(tmp_path)), dtype="float32")
    encoder = Encoder(spec, device="cpu", budget=BudgetController([30]))
    ids = encoder.tokenizer.tokenize(SENTENCES * 2).ids
    expected = encoder.encode_tokens(ids)
    events: list[str] = []

    class Ended:
        def __init__(self, source: torch.Tensor) -> None:
            self.source, self.asked = source, 0

        def has_ended(self) -> bool:
            self.asked += 1
            return self.asked > 1

        def array(self) -> np.ndarray:
            events.append("awaited")
            return self.source.numpy()

    class Started:
        def start(self, source: torch.Tensor) -> Ended:
            events.append("leaves")
            return Ended(source)

    encoder._departures = Started()  # type: ignore[assignment]
    np.testing.assert_array_equal(encoder.encode_tokens(ids), expected)
    count = events.count("leaves")
    assert events == ["leaves", *["leaves", "awaited"] * (count - 1), "awaited"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("fuse", "01")
@pytest.mark.parametrize("model", MODELS)
def test_no_operation_of_a_micro_batch_makes_the_host_wait_for_a_gpu(tmp_path, monkeypatch, model, fuse):
    monkeypatch.setenv("VECTIDE_FUSE", fuse)
    write, settings, task, tasks = MODELS[model]
    spec = describe(str(write(tmp_path, **settings)), task=task)
    encoder = load_encoder(spec, device="cuda", one_task=tasks is None)
    encoder._runner._budget = BudgetController([60])
    ids, row_tasks = rows_of(encoder, tasks)
    expected = encoder.encode_tokens(ids, row_tasks)
    torch.cuda.set_sync_debug_mode("error")
    try:
        np.testing.assert_allclose(encoder.encode_tokens(ids, row_tasks), expected, atol=1e-6)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_counter_sees_what_makes_the_host_wait():
    """Otherwise the tests above could not fail."""
    lengths = torch.ones(2, dtype=torch.int32, device=META)
    with Copies() as copies:
        torch.empty(2, device=META).copy_(torch.zeros(2))
        torch.empty(3, device=META)[torch.zeros(1, dtype=torch.long)]
        torch.segment_reduce(torch.empty(2, 4, device=META), "mean", lengths=lengths, axis=0)
    assert copies.events == ["sent", "sent", "checked"]
    for read_back in (lengths.tolist, lambda: bool(lengths.all()), lambda: lengths[lengths > 0], lengths.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read_back()
