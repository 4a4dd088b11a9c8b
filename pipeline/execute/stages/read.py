"""First stage: read a unit and prepare its content for the model, such as texts as token ids.

A unit that fails does not end the run: the unit batch passes its error on, all other units finish and get their
receipts, and the driver reports the error at the end. This module does not import torch, which would take seconds in
each reader process.
"""

from __future__ import annotations

import os
import pickle
import time

import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import VectideError
from actors.inputs import load_preparer
from actors.schema import CONTENT, COST, PARTS, TASK, TOKENS, RewriteUnit, Unit
from actors.source.read_unit import read_unit
from actors.unit.unit_batch import UnitBatch, pack
from pipeline.execute.attempts import AttemptLog
from pipeline.execute.stages.rewrite import copy_rows
from pipeline.execute.stages.spec import StageSpec
from pipeline.execute.task_column import resolve_tasks
from pipeline.execute.watchdog import watch_unit
from pipeline.reuse.lookup import reuse_of
from pipeline.table.kept_rows import kept_of


def read_and_tokenize(
    block: pa.Table, spec: StageSpec, attempt_log: AttemptLog, *, beside_gpus: bool = False
) -> pa.Table:
    """Read a unit and prepare its content for the model.

    Args:
        block: The unit.
        spec: Settings of the run.
        attempt_log: Record of crashed attempts, outside this process.
        beside_gpus: Encoders on GPUs of this machine must get a core whenever they want one.
    """
    if beside_gpus:
        _yield_cores()
    unit: Unit | RewriteUnit = pickle.loads(block.column("payload")[0].as_py())  # noqa: S301  (pickled by the driver)
    batch = UnitBatch(unit.number)
    attempt = attempt_log.attempt("read", unit.number)
    try:
        attempt.check()
        if isinstance(unit, Unit):
            _prepare(spec)
        with watch_unit(attempt, spec.row_timeout_s):
            if isinstance(unit, RewriteUnit):
                batch = copy_rows(unit, spec.writer)
            else:
                _fill(batch, unit, spec)
    except VectideError as error:
        batch.error = error
    attempt.done()
    return pack(batch)


def _yield_cores() -> None:
    """Let this process, a reader, compute in one thread and after all other processes.

    The tokenizer would start a thread per core. With a reader per core, these would outnumber the cores, and the thread of
    an encoder that launches kernels would wait for one of them while its GPU is idle.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # read when the first texts are tokenized
    os.nice(19)  # the lowest priority; a second call changes nothing


def _prepare(spec: StageSpec) -> None:
    """Load the preparer and the index of known texts before the watchdog starts.

    A tokenizer may be downloaded and the index may be sorted, and neither increments the progress counter.
    """
    load_preparer(spec.model, spec.chunking)
    if spec.reuse:
        reuse_of(spec.writer.table, spec.writer.ledger, spec.reuse)


def _fill(batch: UnitBatch, unit: Unit, spec: StageSpec) -> None:
    """Fill the batch with the unit's rows and the model's inputs."""
    started = time.perf_counter()
    result = read_unit(unit, spec.source)
    batch.bad = list(result.bad)
    batch.rows_read = result.rows_read
    table, unknown_tasks = resolve_tasks(result.table, spec.model)
    batch.bad += unknown_tasks
    if spec.kept:
        table, changed_rows = kept_of(spec.writer.ledger, unique_ids=spec.source.unique_ids).split(table)
        batch.bad += changed_rows
    documents = table.num_rows
    if spec.reuse:
        known = reuse_of(spec.writer.table, spec.writer.ledger, spec.reuse)
        table, batch.ready = known.split(table, spec.writer.schema.names, spec.model.outputs)
    tasks = table.column(TASK).to_pylist() if TASK in table.column_names else None
    read_s = time.perf_counter()
    prepared = load_preparer(spec.model, spec.chunking).prepare(table.column(CONTENT), tasks)
    batch.inputs, cost = prepared.rows, prepared.rows.column(COST)
    if tasks is not None:
        batch.inputs = batch.inputs.append_column(TASK, table.column(TASK))
    batch.table = table.drop_columns([CONTENT])
    if PARTS not in prepared.rows.column_names:
        batch.table = batch.table.append_column(TOKENS, cost)
    batch.counts = {
        "documents": documents,
        "tokens": pc.sum(cost, min_count=0).as_py(),
        "truncated": prepared.truncated,
    }
    batch.seconds = {"read": read_s - started, "tokenize": time.perf_counter() - read_s}
