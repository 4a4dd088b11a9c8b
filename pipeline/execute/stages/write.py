"""Third stage: write a unit and hand its receipt, or the error that it ended with, to the driver."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa

from actors.errors import VectideError
from actors.schema import (
    Unit,
)
from actors.unit.unit_batch import unpack
from actors.unit.writer import WriterSpec, write_unit
from pipeline.execute.attempts import AttemptLog
from pipeline.execute.stages.rewrite import carry
from pipeline.execute.watchdog import guarded

if TYPE_CHECKING:
    pass
from pipeline.execute.stages.spec import StageSpec

OUTCOME_SCHEMA = pa.schema([("unit", pa.int64()), ("outcome", pa.binary()), ("reasons", pa.binary())])


def write(block: pa.Table, spec: StageSpec, attempt_log: AttemptLog) -> pa.Table:
    """Write a unit; the driver gets its receipt, or the error that it ended with."""
    batch = unpack(block)
    outcome: object = batch.error
    if batch.error is None:
        attempt = attempt_log.attempt("write", batch.unit)
        try:
            attempt.check()
            with guarded(attempt, spec.row_timeout_s):
                outcome = write_unit(batch, spec.writer)
        except VectideError as error:
            outcome = error
        attempt.done()
    return _outcome(batch.unit, outcome, Counter(row.reason for row in batch.bad))


def _outcome(unit: int, outcome: object, reasons: Counter[str]) -> pa.Table:
    columns = {"unit": [unit], "outcome": [pickle.dumps(outcome)], "reasons": [pickle.dumps(reasons)]}
    return pa.table(columns, schema=OUTCOME_SCHEMA)


def rewrite(block: pa.Table, spec: WriterSpec, attempt_log: AttemptLog, limit_s: float | None) -> pa.Table:
    """Carry a unit's rows from files of the table into new ones, in one stage; the outcome is that of `write`.

    `limit_s` is how long nothing may go forward.
    """
    unit: Unit = pickle.loads(block.column("payload")[0].as_py())  # noqa: S301  (made by our own driver)
    outcome: object
    attempt = attempt_log.attempt("rewrite", unit.number)
    try:
        attempt.check()
        with guarded(attempt, limit_s):
            outcome = write_unit(carry(unit, spec), spec)
    except VectideError as error:
        outcome = error
    attempt.done()
    return _outcome(unit.number, outcome, Counter())
