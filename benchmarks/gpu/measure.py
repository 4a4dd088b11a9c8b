"""Measure one shape after the other: Vectide on every mix, then sentence-transformers on the same weights."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from actors.encoders import load_encoder
from benchmarks.gpu import peers
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import Ints, let_go, random_ids, timed


@dataclass(slots=True)
class Row:
    """One shape on one mix; tokens a second.

    Attributes:
        theirs: sentence-transformers' by the way it attends; empty where it has no such model.
    """

    shape: Shape
    mix: str
    lengths: Ints
    ours: list[float]
    theirs: dict[str, list[float]] = field(default_factory=dict)
    out_of_memory: int = 0
    budget_tokens: int = 0


def measure_shape(shape: Shape, by_mix: dict[str, Ints], *, device: torch.device, repeats: int) -> list[Row]:
    """Ours on every mix, and sentence-transformers where it knows the shape."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = shape.write(Path(folder) / "model")
        # By the GPU's own precision: bfloat16 where it has it.
        encoder = load_encoder(str(checkpoint), device=str(device), task=shape.task)
        config = json.loads((checkpoint / "config.json").read_text())
        vocabulary = int({**config, **config.get("text_config", {})}["vocab_size"])
        for mix, lengths in by_mix.items():
            ids = random_ids(lengths, vocabulary)
            rates = timed(partial(encoder.encode_tokens, ids), int(lengths.sum()), repeats, device)
            stats = encoder.stats
            rows.append(Row(shape, mix, lengths, rates, {}, stats.out_of_memory, stats.budget_tokens))
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
