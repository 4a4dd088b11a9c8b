"""Micro-batches in a small memory: the tensors of a failed try are freed before its rows are tried again."""

from __future__ import annotations

import weakref

import pyarrow as pa
import pytest
import torch

from actors.batching.budget import BudgetController
from actors.encoders import load_encoder
from actors.encoders.compute.device import Compute
from actors.encoders.packed import PackedBatch
from actors.encoders.running import Runner
from actors.errors import ConfigError
from tests.checkpoints import write_bert


class Memory:
    """An allocator of a fixed size. A tensor is freed when nothing refers to it any more."""

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0

    def take(self, count: int) -> torch.Tensor:
        if self.used + count > self.size:
            raise torch.OutOfMemoryError(f"{count} requested, {self.size - self.used} free")
        self.used += count
        tensor = torch.zeros(count)
        weakref.finalize(tensor, self._free, count)
        return tensor

    def _free(self, count: int) -> None:
        self.used -= count


class TwoLayers:
    """A family that needs up to nine numbers a token."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.tries: list[int] = []

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        self.tries.append(len(batch.ids))
        x = self.memory.take(len(batch.ids))
        for _ in range(2):
            x = self._layer(x)
        return torch.zeros(len(batch.ids), 1)

    def _layer(self, x: torch.Tensor) -> torch.Tensor:
        qkv, wide = self.memory.take(3 * len(x)), self.memory.take(4 * len(x))
        assert len(qkv) + len(wide) == 7 * len(x)
        return self.memory.take(len(x))


@pytest.mark.parametrize(
    ("lengths", "budget", "fitting", "tries"),
    [
        ([16] * 64, 512, 300, [512, 256, 256, 256, 256]),
        ([100, 100], 200, 110, [200, 100, 100]),
    ],
)
def test_a_failed_try_holds_no_memory_while_its_rows_are_tried_again(lengths, budget, fitting, tries):
    ids = pa.array([[1] * length for length in lengths], pa.list_(pa.int32()))
    family = TwoLayers(Memory(9 * fitting))
    runner = Runner(Compute(torch.device("cpu"), torch.float32), BudgetController((budget,)))
    rows = sorted(int(row) for micro in runner.run(family, ids, tasks_of=lambda _: None) for row in micro.rows)
    assert rows == list(range(len(lengths)))
    assert family.tries == tries
    assert runner.stats.budget_tokens == budget // 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_a_library_cannot_get_is_out_of_memory_too(error):
    class OneRowFits:
        def forward(self, batch: PackedBatch) -> torch.Tensor:
            if batch.rows > 1:
                raise error
            return torch.zeros(len(batch.ids), 1)

    ids = pa.array([[1, 2]] * 4, pa.list_(pa.int32()))
    runner = Runner(Compute(torch.device("cpu"), torch.float32), BudgetController((8,)))
    assert sorted(int(micro.rows[0]) for micro in runner.run(OneRowFits(), ids, tasks_of=lambda _: None)) == [
        0,
        1,
        2,
        3,
    ]
    assert runner.stats.out_of_memory == 2


def test_any_other_error_is_raised():
    class Failing:
        def forward(self, batch: PackedBatch) -> torch.Tensor:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    ids = pa.array([[1, 2]] * 4, pa.list_(pa.int32()))
    runner = Runner(Compute(torch.device("cpu"), torch.float32), BudgetController((8,)))
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        list(runner.run(Failing(), ids, tasks_of=lambda _: None))


def test_a_model_that_does_not_fit_is_refused_with_a_reason(monkeypatch, tmp_path):
    def build(spec, compute):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("actors.encoders.encoder.build_family", build)
    with pytest.raises(ConfigError, match=r"does not fit the memory of cpu .*2.00 GiB.*run.gpus_per_replica=0"):
        load_encoder(str(write_bert(tmp_path)))
