"""First stage: read a unit and turn its texts into token ids.

A unit that fails does not end the run: the unit batch passes its error on, all other units finish and get their
receipts, and the driver reports the error at the end. This module does not import torch, which would take seconds in
each reader process.
"""

from __future__ import annotations

import pickle
import time
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.spec import ModelSpec
from actors.errors import VectideError
from actors.schema import CHUNK_TEXTS, CHUNKS, END, INPUT_IDS, KEPT_TEXT, START, TASK, TOKENS, RewriteUnit, Unit
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

_ROW = "_row"  # number of a row among the texts of the unit


@lru_cache(maxsize=2)
def _tokenizer(model: ModelSpec) -> Tokenizer:
    """Return the tokenizer, which is loaded once per process."""
    return Tokenizer(model)


@lru_cache(maxsize=2)
def _chunker(model: ModelSpec, chunking: Chunking) -> Chunker:
    """Return the chunker, which is loaded once per process."""
    return Chunker(model, chunking)


def read_and_tokenize(block: pa.Table, spec: StageSpec, attempt_log: AttemptLog) -> pa.Table:
    """Read a unit and turn its texts into token ids."""
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
    keeps_text = KEPT_TEXT in spec.writer.schema.names and KEPT_TEXT not in table.column_names
    texts = table.column(TEXT)  # not in the rows, which the next step may repeat for each chunk
    table = table.drop_columns([TEXT]).append_column(_ROW, pa.array(np.arange(documents)))
    if spec.reuse:
        known = reuse_of(spec.writer.table, spec.writer.ledger, spec.reuse)
        table, batch.ready = known.split(table, spec.writer.schema.names, spec.model.outputs)
    tasks = table.column(TASK).to_pylist() if TASK in table.column_names else None
    read_s = time.perf_counter()
    to_encode = texts.take(table[_ROW])
    columns, truncated = _token_columns(spec, to_encode.to_pylist(), tasks)
    if keeps_text and spec.chunking is None:
        columns[KEPT_TEXT] = to_encode
    elif keeps_text:
        columns[CHUNK_TEXTS] = _chunk_texts(to_encode, columns[CHUNKS])
    if keeps_text and batch.ready is not None:
        batch.ready = batch.ready.append_column(KEPT_TEXT, _texts_of_ready(texts, batch.ready))
    for name, column in columns.items():
        table = table.append_column(name, column)
    batch.table = table
    batch.counts = {
        "documents": documents,
        "tokens": int(pc.sum(pc.list_value_length(columns[INPUT_IDS])).as_py() or 0),
        "truncated": truncated,
    }
    batch.seconds = {"read": read_s - started, "tokenize": time.perf_counter() - read_s}


def _texts_of_ready(texts: pa.ChunkedArray, ready: pa.Table) -> pa.ChunkedArray | pa.Array:
    """Return the embedded text of each row that has its vector already."""
    if START not in ready.column_names:
        return texts.take(ready[_ROW])
    return _cut(texts, ready[_ROW], ready[START], ready[END])


def _chunk_texts(texts: pa.ChunkedArray, chunks: pa.ChunkedArray) -> pa.Array:
    """Return the texts of the chunks of each document, as lists."""
    places = chunks.combine_chunks()
    flat = _cut(texts, pc.list_parent_indices(places), *(places.flatten().field(name) for name in (START, END)))
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(places).to_numpy())])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def _cut(texts: pa.ChunkedArray, rows: pa.Array, starts: pa.Array, ends: pa.Array) -> pa.Array:
    """Return one part of a text a row: `rows` has the number of the text, `starts` and `ends` are in characters."""
    whole = texts.to_pylist()
    places = zip(rows.to_pylist(), starts.to_pylist(), ends.to_pylist(), strict=True)
    return pa.array([whole[row][start:end] for row, start, end in places], pa.string())


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
