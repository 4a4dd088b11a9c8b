"""The report of a training: `report.json` of its run, with the curves of all steps. `vectide report OUT` makes a page of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from actors import storage
from pipeline.execute.progress import NullReporter
from pipeline.job.training import Training
from pipeline.ledger.ledger import Ledger
from pipeline.report.measure import Report
from pipeline.report.recorder import Recorder, recorded
from pipeline.report.repeat import command_of
from pipeline.train.checkpoints import STEPS, place
from pipeline.train.trained import Trained
from pipeline.train.worker import Progress

_MOST_POINTS = 200
# Curves of a step's numbers, besides the terms of the loss.
_CURVES = ("learning_rate", "gradient_norm")

Curve = list[list[float]]


@dataclass(slots=True)
class Evidence:
    """What the report says besides the calls of the command.

    Attributes:
        out: URL of the `out` folder.
        job: The resolved job.
        counts: For each source the counts of its rows; empty before they were read.
        trained: The result; None before the end.
    """

    out: str
    job: Training
    counts: dict[str, dict[str, int]]
    trained: Trained | None = None

    def measured(self) -> Report:
        """Return the figures of the report."""
        return {
            "job": self.job.model_dump(mode="json"),
            "training": {
                "data": self.counts,
                "curves": curves(self.out),
                "result": None if self.trained is None else asdict(self.trained),
            },
        }


class _Steps(NullReporter):
    """Passes the names of steps on to the progress of a training."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def step(self, text: str) -> None:
        """See `Reporter`."""
        self._progress.step(text)


@contextmanager
def reported(evidence: Evidence, run: str, progress: Progress) -> Iterator[Recorder]:
    """Record one call of `vectide train`, and write its report at the end, however it ends."""
    command = command_of("train", evidence.job.model_dump(mode="json"))
    with recorded(Ledger(evidence.out, run), _Steps(progress), "train", command, evidence.measured) as recorder:
        yield recorder


def curves(out: str) -> dict[str, Curve]:
    """Return a curve of at most 200 points, [step, value], for each term of the loss and each other number of a step.

    A point is the mean of the steps from the point before it; those of the evaluation are its own.
    """
    try:
        lines = storage.read(place(out, STEPS)).splitlines()
    except FileNotFoundError:
        return {}
    steps: list[dict[str, Any]] = [json.loads(line) for line in lines]
    series: dict[str, Curve] = {}
    evaluations: Curve = []
    for step in steps:
        terms = {"loss": step["loss"], **step["terms"], **{name: step[name] for name in _CURVES}}
        for name, value in terms.items():
            series.setdefault(name, []).append([step["step"], value])
        if (value := step.get("evaluation")) is not None:
            evaluations.append([step["step"], value])
    found = {name: _thinned(points) for name, points in series.items()}
    return found | ({"nDCG@10": evaluations} if evaluations else {})


def _thinned(points: Curve) -> Curve:
    width = -(-len(points) // _MOST_POINTS)
    parts = (points[start : start + width] for start in range(0, len(points), width))
    return [[part[-1][0], sum(value for _, value in part) / len(part)] for part in parts]
