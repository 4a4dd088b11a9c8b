"""Third stage: write a unit and return its receipt, or its error, to the driver."""

from __future__ import annotations

import pickle
from collections import Counter

import pyarrow as pa

from actors.encoders.clusters import pooled
from actors.encoders.spec import ModelSpec
from actors.errors import VectideError
from actors.schema import EMBEDDING_MULTI, RewriteUnit
from actors.unit.unit_batch import UnitBatch, unpack
from actors.unit.writer import WriterSpec, write_unit
from pipeline.execute.attempts import AttemptLog
from pipeline.execute.stages.rewrite import copy_rows
from pipeline.execute.stages.spec import StageSpec
from pipeline.execute.watchdog import watch_unit

OUTCOME_SCHEMA = pa.schema([("unit", pa.int64()), ("outcome", pa.binary()), ("reasons", pa.binary())])


def write(block: pa.Table, spec: StageSpec, attempt_log: AttemptLog) -> pa.Table:
    """Write a unit and return a block with its receipt, or its error, for the driver."""
    batch = unpack(block)
    outcome: object = batch.error
    if batch.error is None:
        attempt = attempt_log.attempt("write", batch.unit)
        try:
            attempt.check()
            with watch_unit(attempt, spec.row_timeout_s):
                _pool(batch, spec.model)
                outcome = write_unit(batch, spec.writer)
        except VectideError as error:
            outcome = error
        attempt.done()
    return _outcome(batch.unit, outcome, Counter(row.reason for row in batch.bad))


def _pool(batch: UnitBatch, model: ModelSpec) -> None:
    """Cluster the vectors of pictures that were encoded now: here, because it takes a CPU longer than a GPU takes to encode."""
    table = batch.table
    if table is not None and table.num_rows and model.multi_pool:
        many = table.column(EMBEDDING_MULTI).combine_chunks()
        place = table.column_names.index(EMBEDDING_MULTI)
        batch.table = table.set_column(place, EMBEDDING_MULTI, pooled(many, table, model))


def _outcome(unit: int, outcome: object, reasons: Counter[str]) -> pa.Table:
    columns = {"unit": [unit], "outcome": [pickle.dumps(outcome)], "reasons": [pickle.dumps(reasons)]}
    return pa.table(columns, schema=OUTCOME_SCHEMA)


def rewrite(block: pa.Table, spec: WriterSpec, attempt_log: AttemptLog, limit_s: float | None) -> pa.Table:
    """Copy a unit's rows from table files into new files, in one stage; returns a block like `write`.

    `limit_s` is the longest time without progress.
    """
    unit: RewriteUnit = pickle.loads(block.column("payload")[0].as_py())  # noqa: S301  (pickled by the driver)
    outcome: object
    attempt = attempt_log.attempt("rewrite", unit.number)
    try:
        attempt.check()
        with watch_unit(attempt, limit_s):
            outcome = write_unit(copy_rows(unit, spec), spec)
    except VectideError as error:
        outcome = error
    attempt.done()
    return _outcome(unit.number, outcome, Counter())
