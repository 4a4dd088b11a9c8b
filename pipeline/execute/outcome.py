"""Outcome of a unit, and the protocol of what runs units. Used by the inline and the Ray executor."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from actors.errors import VectideError
from actors.schema import Unit
from actors.unit.receipt import Receipt
from actors.unit.writer import WriterSpec
from pipeline.execute.attempts import AttemptLog
from pipeline.execute.stages.spec import StageSpec
from pipeline.plan.resources import Pool


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """How one unit ended: a receipt, or the error that stopped it.

    Attributes:
        reasons: Why rows were set aside, and how many for each reason.
        busy: Encoders that were at work when it ended, where that can be told.
    """

    unit: int
    receipt: Receipt | None
    error: VectideError | None
    reasons: Mapping[str, int] = field(default_factory=dict)
    busy: int | None = None


def decode_outcome(block: pa.Table) -> UnitOutcome:
    """What the write stage handed on."""
    unit = block.column("unit")[0].as_py()
    outcome = pickle.loads(block.column("outcome")[0].as_py())  # noqa: S301  (made by our own write stage)
    if isinstance(outcome, Receipt):
        reasons = pickle.loads(block.column("reasons")[0].as_py())  # noqa: S301  (as above)
        return UnitOutcome(unit, outcome, None, reasons)
    return UnitOutcome(unit, None, outcome)


class Executor(Protocol):
    """Something that runs units."""

    pool: Pool
    attempt_log: AttemptLog

    def run(self, units: Iterable[Unit], spec: StageSpec) -> Iterator[UnitOutcome]:
        """Run units and yield how each ended, as they end."""

    def rewrite(self, units: Iterable[Unit], spec: WriterSpec, limit_s: float | None) -> Iterator[UnitOutcome]:
        """As `run`, for units that only carry rows of the table into new files: no model is asked for.

        `limit_s` is how long nothing may go forward.
        """
