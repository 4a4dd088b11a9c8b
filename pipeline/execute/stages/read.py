"""First stage: read a unit and turn its texts into token ids.

A unit that fails does not end the run: the unit batch passes its error on, all other units finish and get their
receipts, and the driver reports the error at the end. This module does not import torch, which would take seconds in
each reader process.
"""

from __future__ import annotations

import os
import pickle
import time
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.spec import ModelSpec
from actors.errors import VectideError
from actors.schema import INPUT_IDS, TASK, TOKENS, Unit
from actors.source.read_unit import TEXT, read_unit
from actors.text.chunk_rules import Chunking
from actors.text.chunks import Chunker
from actors.text.tokenizer import Tokenizer
from actors.unit.unit_batch import UnitBatch, pack
from pipeline.execute.attempts import AttemptLog
from pipeline.execute.stages.rewrite import copy_rows
from pipeline.execute.stages.spec import StageSpec
from pipeline.execute.task_column import resolve_tasks
from pipeline.execute.watchdog import watch_unit
from pipeline.reuse.lookup import reuse_of
from pipeline.table.kept_rows import kept_of


@lru_cache(maxsize=2)
def _tokenizer(model: ModelSpec) -> Tokenizer:
    """Return the tokenizer, which is loaded once per process."""
    return Tokenizer(model)


@lru_cache(maxsize=2)
def _chunker(model: ModelSpec, chunking: Chunking) -> Chunker:
    """Return the chunker, which is loaded once per process."""
    return Chunker(model, chunking)


def read_and_tokenize(
    block: pa.Table, spec: StageSpec, attempt_log: AttemptLog, *, beside_gpus: bool = False
) -> pa.Table:
    """Read a unit and turn its texts into token ids.

    Args:
        block: The unit.
        spec: Settings of the run.
        attempt_log: Record of crashed attempts, outside this process.
        beside_gpus: Encoders on GPUs of this machine must get a core whenever they want one.
    """
    if beside_gpus:
        _yield_cores()
    unit: Unit = pickle.loads(block.column("payload")[0].as_py())  # noqa: S301  (pickled by the driver)
    batch = UnitBatch(unit.number)
    attempt = attempt_log.attempt("read", unit.number)
    try:
        attempt.check()
        if not unit.rewrite:
            _prepare(spec)
        with watch_unit(attempt, spec.row_timeout_s):
            if unit.rewrite:
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
    """Load the tokenizer and the index of known texts before the watchdog starts.

    A tokenizer may be downloaded and the index may be sorted, and neither increments the progress counter.
    """
    _tokenizer(spec.model) if spec.chunking is None else _chunker(spec.model, spec.chunking)
    if spec.reuse:
        reuse_of(spec.writer.table, spec.writer.ledger, spec.reuse)


def _fill(batch: UnitBatch, unit: Unit, spec: StageSpec) -> None:
    """Fill the batch with the unit's rows and their token ids."""
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
        table, batch.ready = known.split(table, spec.writer.schema.names, dim=spec.model.dim)
    tasks = table.column(TASK).to_pylist() if TASK in table.column_names else None
    read_s = time.perf_counter()
    columns, truncated = _token_columns(spec, table.column(TEXT).to_pylist(), tasks)
    if TEXT not in spec.writer.schema.names:
        table = table.drop_columns([TEXT])
    for name, column in columns.items():
        table = table.append_column(name, column)
    batch.table = table
    batch.counts = {
        "documents": documents,
        "tokens": int(pc.sum(pc.list_value_length(columns[INPUT_IDS])).as_py() or 0),
        "truncated": truncated,
    }
    batch.seconds = {"read": read_s - started, "tokenize": time.perf_counter() - read_s}


def _token_columns(
    spec: StageSpec, texts: list[str], tasks: list[str | None] | None
) -> tuple[dict[str, pa.Array | pa.ChunkedArray], int]:
    """Return the columns for the encode stage, and the number of texts truncated at the model's limit."""
    if spec.chunking is not None:
        documents = _chunker(spec.model, spec.chunking).chunk(texts, tasks)
        return dict(zip(documents.column_names, documents.columns, strict=True)), 0
    tokens = _tokenizer(spec.model).tokenize(texts, tasks)
    columns = {INPUT_IDS: tokens.ids, TOKENS: pc.list_value_length(tokens.ids)}
    return columns, int(np.count_nonzero(tokens.truncated))
