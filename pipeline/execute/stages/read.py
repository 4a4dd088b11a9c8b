"""First stage: read a unit and turn its texts into token ids.

A unit that fails does not end the run: its error travels on in the unit batch, every other unit is finished and keeps its
receipt, and the driver reports at the end. Torch is not imported here: it would cost each reader process seconds.
"""

from __future__ import annotations

import pickle
import time
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.spec import ModelSpec
from actors.errors import VectideError
from actors.schema import (
    INPUT_IDS,
    TASK,
    TOKENS,
    Unit,
)
from actors.source.read_unit import TEXT, read_unit
from actors.text.chunk_rules import Chunking
from actors.text.chunks import Chunker
from actors.text.tokenizer import Tokenizer
from actors.unit.unit_batch import UnitBatch, pack
from pipeline.execute.attempts import AttemptLog
from pipeline.execute.stages.rewrite import carry
from pipeline.execute.task_column import settle_tasks
from pipeline.execute.watchdog import guarded
from pipeline.reuse.lookup import reuse_of
from pipeline.table.kept_rows import kept_of

if TYPE_CHECKING:
    pass
from pipeline.execute.stages.spec import StageSpec


@lru_cache(maxsize=2)
def _tokenizer(model: ModelSpec) -> Tokenizer:
    """One tokenizer a process, however many units it reads."""
    return Tokenizer(model)


@lru_cache(maxsize=2)
def _chunker(model: ModelSpec, chunking: Chunking) -> Chunker:
    """As `_tokenizer`."""
    return Chunker(model, chunking)


def read_and_tokenize(block: pa.Table, spec: StageSpec, attempt_log: AttemptLog) -> pa.Table:
    """Read a unit and turn its texts into token ids."""
    unit: Unit = pickle.loads(block.column("payload")[0].as_py())  # noqa: S301  (made by our own driver)
    batch = UnitBatch(unit.number)
    attempt = attempt_log.attempt("read", unit.number)
    try:
        attempt.check()
        if not unit.carry:
            _prepare(spec)
        with guarded(attempt, spec.row_timeout_s):
            if unit.carry:
                batch = carry(unit, spec.writer)
            else:
                _fill(batch, unit, spec)
    except VectideError as error:
        batch.error = error
    attempt.done()
    return pack(batch)


def _prepare(spec: StageSpec) -> None:
    """Load what all units need. A tokenizer may have to be fetched from a hub, and an index of known texts be put in order:
    neither gives signs of going forward."""
    _tokenizer(spec.model) if spec.chunking is None else _chunker(spec.model, spec.chunking)
    if spec.reuse:
        reuse_of(spec.writer.table, spec.writer.ledger, spec.reuse)


def _fill(batch: UnitBatch, unit: Unit, spec: StageSpec) -> None:
    """Put the unit's rows and their token ids in."""
    started = time.perf_counter()
    result = read_unit(unit, spec.source)
    batch.bad = list(result.bad)
    batch.rows_read = result.rows_read
    table, unknown = settle_tasks(result.table, spec.model)
    batch.bad += unknown
    if spec.kept:
        table, others = kept_of(spec.writer.ledger, unique_ids=spec.source.unique_ids).split(table)
        batch.bad += others
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
    """What the encode stage needs of the texts, and how many of them were cut at the model's limit."""
    if spec.chunking is not None:
        documents = _chunker(spec.model, spec.chunking).chunk(texts, tasks)
        return dict(zip(documents.column_names, documents.columns, strict=True)), 0
    tokens = _tokenizer(spec.model).tokenize(texts, tasks)
    columns = {INPUT_IDS: tokens.ids, TOKENS: pc.list_value_length(tokens.ids)}
    return columns, int(np.count_nonzero(tokens.truncated))
