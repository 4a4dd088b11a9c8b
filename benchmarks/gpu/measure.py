"""Measure one shape after the other: Vectide on every mix, then sentence-transformers on the same weights.

Budgets are fixed while they are timed, and the best is reported: the controller's race between budgets needs more
micro-batches than a large model computes in minutes. What the race finds by itself is timed apart.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch

from actors.batching.budget import BudgetController
from actors.encoders import load_encoder
from actors.encoders.encoder import Encoder
from benchmarks.gpu import peers
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import Ints, let_go, random_ids, timed, wait


@dataclass(slots=True)
class Row:
    """One shape on one mix; tokens a second.

    Attributes:
        ours: Of the best budget.
        budget_tokens: That budget.
        raced: Of the first pass of an encoder that chooses its budget by itself.
        busy: Share of the clock in which a kernel runs.
        theirs: sentence-transformers' by the way it attends and its texts a batch; empty where it has no such model.
    """

    shape: Shape
    mix: str
    lengths: Ints
    ours: list[float]
    theirs: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    out_of_memory: int = 0
    budget_tokens: int = 0
    raced: float = 0.0
    busy: float = 0.0


class Budgets:
    """One loaded model with a fixed token budget at a time."""

    def __init__(self, encoder: Encoder, ids: pa.ListArray) -> None:
        self._loaded = encoder
        self._ids = ids
        self.out_of_memory = 0
        self.tokens = len(ids.flatten())
        self.budget = encoder.compute.ladder[-1]

    def fix(self, budget: int | None) -> Encoder:
        """Return the model with a fixed budget, or with one that it chooses (None)."""
        controller = None if budget is None else BudgetController((budget,))
        return Encoder(self._loaded.spec, family=self._loaded.family, compute=self._loaded.compute, budget=controller)

    def best(self, repeats: int, device: torch.device) -> list[float]:
        """Time every budget that the controller would race; return the rates of the best, which `budget` keeps."""
        found: dict[int, list[float]] = {}
        for budget in self._loaded.compute.ladder:
            encoder = self.fix(budget)
            found[budget] = timed(partial(encoder.encode_tokens, self._ids), self.tokens, repeats, device)
            self.out_of_memory += encoder.stats.out_of_memory
        self.budget = max(found, key=lambda budget: statistics.median(found[budget]))
        return found[self.budget]

    def encode(self) -> None:
        """Encode all texts with the best budget."""
        self.fix(self.budget).encode_tokens(self._ids)

    def raced(self, device: torch.device) -> float:
        """Return the rate of a first pass, in which the controller races budgets."""
        encoder = self.fix(None)
        return timed(partial(encoder.encode_tokens, self._ids), self.tokens, 1, device, warm=False)[0]


def busy_share(call: Callable[[], object], device: torch.device) -> float:
    """Return the kernels' time over the clock: 1 if a kernel runs all the time, less if the host or a copy is awaited."""
    from torch.profiler import ProfilerActivity, profile

    call()
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    seconds = time.perf_counter() - started  # of a pass that is not recorded: recording slows the host
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
        call()
        wait(device)
    name = "self_device_time_total" if gpu else "self_cpu_time_total"
    return sum(float(getattr(event, name)) for event in seen.key_averages()) / 1e6 / seconds


def measure_shape(shape: Shape, by_mix: dict[str, Ints], *, device: torch.device, repeats: int) -> list[Row]:
    """Ours on every mix, and sentence-transformers where it knows the shape."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = shape.write(Path(folder) / "model")
        # By the GPU's own precision: bfloat16 where it has it.
        encoder = load_encoder(str(checkpoint), device=str(device), task=shape.task, one_task=True)
        config = json.loads((checkpoint / "config.json").read_text())
        vocabulary = int({**config, **config.get("text_config", {})}["vocab_size"])
        rows = [
            _measure_mix(encoder, shape, mix, random_ids(lengths, vocabulary), lengths, device=device, repeats=repeats)
            for mix, lengths in by_mix.items()
        ]
        del encoder
        let_go(device)
        theirs = peers.folder_of(shape, checkpoint, Path(folder) / "peer")
        if theirs is None:
            return rows
        for attention in peers.attentions(device):
            found = peers.sentence_transformers(
                theirs, by_mix, vocabulary, attention=attention, device=device, repeats=repeats
            )
            for row, rates in zip(rows, found, strict=True):
                row.theirs[attention] = rates
            let_go(device)
    return rows


def _measure_mix(
    encoder: Encoder, shape: Shape, mix: str, ids: pa.ListArray, lengths: Ints, *, device: torch.device, repeats: int
) -> Row:
    budgets = Budgets(encoder, ids)
    rates = budgets.best(repeats, device)
    row = Row(shape, mix, lengths, rates, {}, budgets.out_of_memory, budgets.budget)
    row.raced, row.busy = budgets.raced(device), busy_share(budgets.encode, device)
    return row
