"""First stage: read a unit and prepare its content for the model, such as texts as token ids.

A unit that fails does not end the run: the unit batch passes its error on, all other units finish and get their
receipts, and the driver reports the error at the end. This module does not import torch, which would take seconds in
each reader process.
"""

from __future__ import annotations

import os
import pickle
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import VectideError
from actors.images.workers import limit_children
from actors.inputs import load_preparer
from actors.schema import (
    CONTENT,
    COST,
    END,
    GRID_H,
    GRID_W,
    KEPT_TEXT,
    PARTS,
    PREFIX,
    START,
    TASK,
    TOKENS,
    RewriteUnit,
    Unit,
)
from actors.source.read_unit import read_unit
from actors.unit.unit_batch import UnitBatch, pack
from actors.vectors import has_many
from pipeline.execute.attempts import AttemptLog
from pipeline.execute.stages.rewrite import copy_rows
from pipeline.execute.stages.spec import StageSpec
from pipeline.execute.task_column import resolve_tasks
from pipeline.execute.watchdog import watch_unit
from pipeline.reuse.lookup import reuse_of
from pipeline.reuse.repeated_ids import leave_out
from pipeline.table.kept_rows import kept_of

_ROW = "_row"  # number of a row among the contents of the unit


def read_and_tokenize(
    block: pa.Table,
    spec: StageSpec,
    attempt_log: AttemptLog,
    *,
    beside_gpus: bool = False,
    decoders: int | None = None,
) -> pa.Table:
    """Read a unit and prepare its content for the model.

    Args:
        block: The unit.
        spec: Settings of the run.
        attempt_log: Record of crashed attempts, outside this process.
        beside_gpus: Encoders on GPUs of this machine must get a core whenever they want one.
        decoders: Number of processes that decode pictures for this one; None: as many as there are cores.
    """
    if decoders is not None:
        limit_children(decoders)
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
    if spec.duplicates:
        table, repeated_rows = leave_out(table, spec.writer.ledger)
        batch.bad += repeated_rows
    documents = table.num_rows
    keeps_text = KEPT_TEXT in spec.writer.schema.names and KEPT_TEXT not in table.column_names
    contents = table.column(CONTENT)  # not in the rows, which the next step repeats for each chunk
    table = table.drop_columns([CONTENT]).append_column(_ROW, pa.array(np.arange(documents)))
    if spec.reuse:
        known = reuse_of(spec.writer.table, spec.writer.ledger, spec.reuse)
        table, batch.ready = known.split(table, spec.writer.schema.names, spec.model.outputs)
    tasks = table.column(TASK).to_pylist() if TASK in table.column_names else None
    read_s = time.perf_counter()
    content = contents if table.num_rows == documents else contents.take(table[_ROW])
    prepared = load_preparer(spec.model, spec.chunking).prepare(content, tasks)
    batch.inputs, cost = prepared.rows, prepared.rows.column(COST)
    if tasks is not None:
        batch.inputs = batch.inputs.append_column(TASK, table.column(TASK))
    batch.table = table
    if PARTS not in prepared.rows.column_names:
        batch.table = batch.table.append_column(TOKENS, cost)
    if GRID_H in prepared.rows.column_names and has_many(spec.writer.outputs):
        for name in (GRID_H, GRID_W, PREFIX):  # the last one is for the write stage and not stored
            batch.table = batch.table.append_column(name, prepared.rows.column(name))
    if keeps_text:
        _keep_text(batch, _texts(contents), _texts(content))
    batch.counts = {
        "documents": documents,
        "tokens": pc.sum(cost, min_count=0).as_py(),
        "truncated": prepared.truncated,
        **result.notes,
    }
    batch.figures.measure_lengths(cost)
    batch.seconds = {"read": read_s - started, "tokenize": time.perf_counter() - read_s}


def _texts(content: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the texts to keep: those that are embedded, and the text of a page where its picture is."""
    return pc.struct_field(content, 0) if pa.types.is_struct(content.type) else content


def _keep_text(batch: UnitBatch, texts: pa.ChunkedArray, to_encode: pa.ChunkedArray) -> None:
    """Add the embedded text to the rows of a batch, or to the parts of its inputs, which become rows.

    Args:
        batch: The unit.
        texts: Texts of all rows of the unit.
        to_encode: Texts of the rows of `batch.table`.
    """
    table, inputs, ready = batch.table, batch.inputs, batch.ready
    if table is not None and inputs is not None and PARTS in inputs.column_names:
        lists = inputs.column(PARTS).combine_chunks()
        parts = lists.flatten()
        columns = {field.name: parts.field(field.name) for field in parts.type}
        rows = table[_ROW].combine_chunks().take(pc.list_parent_indices(lists))
        columns[KEPT_TEXT] = _cut(texts, rows, columns[START], columns[END])
        structs = pa.StructArray.from_arrays([*columns.values()], [*columns])
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())])
        parted = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)
        batch.inputs = inputs.set_column(inputs.column_names.index(PARTS), PARTS, parted)
    elif table is not None:
        batch.table = table.append_column(KEPT_TEXT, to_encode)
    if ready is not None:
        is_part = START in ready.column_names
        kept = _cut(texts, ready[_ROW], ready[START], ready[END]) if is_part else texts.take(ready[_ROW])
        batch.ready = ready.append_column(KEPT_TEXT, kept)


def _cut(texts: pa.ChunkedArray, rows: pa.Array, starts: pa.Array, ends: pa.Array) -> pa.Array:
    """Return a part of a text for each row: `rows` has the number of the text, `starts` and `ends` are in characters."""
    whole = texts.to_pylist()
    places = zip(rows.to_pylist(), starts.to_pylist(), ends.to_pylist(), strict=True)
    return pa.array([whole[row][start:end] for row, start, end in places], pa.string())
