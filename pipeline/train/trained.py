"""The result of a training, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.train.worker import Fitted


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training.

    Attributes:
        out: URL of the folder of the result.
        model: The model that was trained.
        adapters: URL of the PEFT folder of each new adapter, by its name; those of the model's own tasks are in `checkpoint`.
        checkpoint: URL of the whole model; None if none was written.
        rows: Rows of all sources that were trained with.
        counts: For each source the counts of `TrainingData`.
        fitted: Steps, evaluations, tokens and time.
        difference: Largest difference of a number in the vectors of the trained module and of the encoder that loaded the
            result.
        scores: nDCG@10 of the held-out queries: before, after, low and high of the difference's 95 % interval, queries and
            documents; None without `train.evaluate`.
        files: Size in bytes of each file of the result.
        already_done: The folder held the result before.
    """

    out: str
    model: str
    adapters: Mapping[str, str]
    checkpoint: str | None
    rows: int
    counts: Mapping[str, Mapping[str, int]]
    fitted: Fitted
    difference: float
    scores: Mapping[str, float] | None
    files: Mapping[str, int] = field(default_factory=dict)
    already_done: bool = False
