"""Outcome of a unit, and the protocol of an executor. Used by the inline and the Ray executor."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from actors.errors import VectideError
from actors.schema import RewriteUnit, Unit
from actors.unit.receipt import Receipt
from actors.unit.writer import WriterSpec
from pipeline.execute.attempts import AttemptLog
from pipeline.execute.stages.spec import StageSpec
from pipeline.plan.resources import Pool


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """Result of one unit: a receipt, or the error that stopped it.

    Attributes:
        reasons: Number of quarantined rows by reason.
        busy: Number of encoders at work when the unit ended; None if unknown.
    """

    unit: int
    receipt: Receipt | None
    error: VectideError | None
    reasons: Mapping[str, int] = field(default_factory=dict)
    busy: int | None = None


def decode_outcome(block: pa.Table) -> UnitOutcome:
    """Return the outcome in a block of the write stage."""
    unit = block.column("unit")[0].as_py()
    outcome = pickle.loads(block.column("outcome")[0].as_py())  # noqa: S301  (pickled by the write stage)
    if isinstance(outcome, Receipt):
        reasons = pickle.loads(block.column("reasons")[0].as_py())  # noqa: S301  (as above)
        return UnitOutcome(unit, outcome, None, reasons)
    return UnitOutcome(unit, None, outcome)


class Executor(Protocol):
    """Runs units through the stages."""

    pool: Pool
    attempt_log: AttemptLog

    def run(self, units: Iterable[Unit | RewriteUnit], spec: StageSpec) -> Iterator[UnitOutcome]:
        """Run units and yield the outcome of each when it ends."""

    def rewrite(self, units: Iterable[RewriteUnit], spec: WriterSpec, limit_s: float | None) -> Iterator[UnitOutcome]:
        """Run units that only rewrite files of the table, without a model; yield outcomes as `run` does.

        `limit_s` is the longest time without progress.
        """
