"""What each Ray Data stage does with a unit: read and tokenize, encode, write.

Wrapped around the plain classes of `actors` by `dataflow`. A unit that fails does not end the run: its error travels on
in the parcel, every other unit is finished and keeps its receipt, and the driver reports at the end. Torch is imported
in the encode stage alone: a reader or writer that loads it would cost each worker process seconds.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.chunker import Chunker
from actors.chunking import Chunking
from actors.encoders.finite import UnfitVectors
from actors.encoders.spec import ModelSpec
from actors.errors import InvariantBroken, VectideError
from actors.parcel import Parcel, pack, unpack
from actors.reader import TEXT, SourceSpec, read_unit
from actors.schema import (
    CHUNK,
    CHUNKS,
    EMBEDDING,
    END,
    HASH,
    INPUT_IDS,
    PREFIX,
    START,
    SUFFIX,
    TASK,
    TOKENS,
    BadRow,
    Unit,
)
from actors.tokenizer import Tokenizer
from actors.writer import WriterSpec, write_unit
from pipeline.attempts import Book, Lease, Span
from pipeline.carry import carry
from pipeline.others import kept_of
from pipeline.reuse import reuse_of
from pipeline.tasks import settle_tasks
from pipeline.watchdog import guarded, watchdog

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder
    from pipeline.metrics import EncoderMeter

# Columns that the encode stage takes; with chunking all of them.
_FOR_ENCODER = (INPUT_IDS, CHUNKS, PREFIX, SUFFIX, TASK)

_ONE_BY_ONE = 64

OUTCOME_SCHEMA = pa.schema([("unit", pa.int64()), ("outcome", pa.binary()), ("reasons", pa.binary())])


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Everything that the stages of a run need, small enough to travel with each task."""

    source: SourceSpec
    model: ModelSpec
    writer: WriterSpec
    chunking: Chunking | None = None
    reuse: int = 0  # tables of the index of known texts
    row_timeout_s: float | None = None
    kept: bool = False  # whether rows of other tools are kept, which decide over rows of the source


@lru_cache(maxsize=2)
def _tokenizer(model: ModelSpec) -> Tokenizer:
    """One tokenizer a process, however many units it reads."""
    return Tokenizer(model)


@lru_cache(maxsize=2)
def _chunker(model: ModelSpec, chunking: Chunking) -> Chunker:
    """As `_tokenizer`."""
    return Chunker(model, chunking)


def to_block(unit: Unit) -> pa.Table:
    """A unit as the first stage takes it."""
    return pa.table({"unit": [unit.number], "payload": [pickle.dumps(unit)]})


def read_and_tokenize(block: pa.Table, spec: StageSpec, book: Book) -> pa.Table:
    """Read a unit and turn its texts into token ids."""
    unit: Unit = pickle.loads(block.column("payload")[0].as_py())  # noqa: S301  (made by our own driver)
    parcel = Parcel(unit.number)
    lease = book.lease("read", unit.number)
    try:
        lease.check()
        if not unit.carry:
            _prepare(spec)
        with guarded(lease, spec.row_timeout_s):
            if unit.carry:
                parcel = carry(unit, spec.writer)
            else:
                _fill(parcel, unit, spec)
    except VectideError as error:
        parcel.error = error
    lease.done()
    return pack(parcel)


def _prepare(spec: StageSpec) -> None:
    """Load what all units need. A tokenizer may have to be fetched from a hub, and an index of known texts be put in order:
    neither gives signs of going forward."""
    _tokenizer(spec.model) if spec.chunking is None else _chunker(spec.model, spec.chunking)
    if spec.reuse:
        reuse_of(spec.writer.table, spec.writer.ledger, spec.reuse)


def _fill(parcel: Parcel, unit: Unit, spec: StageSpec) -> None:
    """Put the unit's rows and their token ids in."""
    started = time.perf_counter()
    result = read_unit(unit, spec.source)
    parcel.bad = list(result.bad)
    parcel.rows_read = result.rows_read
    table, unknown = settle_tasks(result.table, spec.model)
    parcel.bad += unknown
    if spec.kept:
        table, others = kept_of(spec.writer.ledger, unique_ids=spec.source.unique_ids).split(table)
        parcel.bad += others
    documents = table.num_rows
    if spec.reuse:
        known = reuse_of(spec.writer.table, spec.writer.ledger, spec.reuse)
        table, parcel.ready = known.split(table, spec.writer.schema.names, dim=spec.model.dim)
    tasks = table.column(TASK).to_pylist() if TASK in table.column_names else None
    read_s = time.perf_counter()
    columns, truncated = _token_columns(spec, table.column(TEXT).to_pylist(), tasks)
    if TEXT not in spec.writer.schema.names:
        table = table.drop_columns([TEXT])
    for name, column in columns.items():
        table = table.append_column(name, column)
    parcel.table = table
    parcel.counts = {
        "documents": documents,
        "tokens": int(pc.sum(pc.list_value_length(columns[INPUT_IDS])).as_py() or 0),
        "truncated": truncated,
    }
    parcel.seconds = {"read": read_s - started, "tokenize": time.perf_counter() - read_s}


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


@dataclass(slots=True)
class _Work:
    """The distinct texts of a unit, and what became of them.

    Attributes:
        rows: The columns that the encoder needs, one row a text.
        places: int64 [texts + 1], where the vectors of each text begin: one each, or with chunking one a chunk.
        vectors: float32 [places[-1], dim].
        failed: Text to reason and error.
    """

    rows: pa.Table
    places: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    failed: dict[int, tuple[str, str]]


class EncodeStage:
    """The encoder in its pool. Ray Data makes one of these in each actor.

    Args:
        spec: The run's settings.
        book: Who died on what, kept outside this process.
        threads: CPU threads for this replica.
        device: "cpu", "cuda" or "auto".
        load_now: Load the model here, while the first units are being read, and not with the first text.
        meter: Told after each unit how the encoder does.
    """

    def __init__(
        self,
        spec: StageSpec,
        book: Book,
        threads: int | None,
        device: str,
        *,
        load_now: bool = False,
        meter: EncoderMeter | None = None,
    ) -> None:
        self.book = book
        self.spec = spec
        self.chunking = spec.chunking
        self._threads = threads
        self._device = device
        self._meter = meter
        self._padding = 0
        if load_now:
            _ = self.encoder

    @cached_property
    def encoder(self) -> Encoder:
        """The model, loaded when the first text needs it: a refresh may find every vector in the table."""
        from actors.encoders import load_encoder

        return load_encoder(self.spec.model, device=self._device, threads=self._threads)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Vectors for a unit, in the order of its rows."""
        parcel = unpack(block)
        if parcel.error is not None or parcel.table is None:
            return block
        if parcel.table.num_rows == 0 and parcel.ready is not None:
            return block
        started = time.perf_counter()
        try:
            self._encode(parcel)
        except VectideError as error:
            parcel.error, parcel.table = error, None
        parcel.seconds["encode"] = time.perf_counter() - started
        if self._meter is not None:
            self._meter.record(self.encoder.stats, self.encoder.compute.memory())
        return pack(parcel)

    def _encode(self, parcel: Parcel) -> None:
        """Put the embedding column in; rows that cannot be encoded go to `parcel.bad`.

        Texts that occur more than once in a unit are encoded once.
        """
        table = parcel.table
        if table is None:
            raise InvariantBroken(f"unit {parcel.unit} came to the encoder without rows.")
        firsts, inverse = _distinct(table)
        work = self._work(table.select([name for name in _FOR_ENCODER if name in table.column_names]).take(firsts))
        lease = self.book.lease("encode", parcel.unit)
        lease.check()
        self._encode_range(work, 0, work.rows.num_rows, lease)
        lease.done()
        keep = np.ones(table.num_rows, dtype=bool)
        if work.failed:
            columns = [table.column(name).to_pylist() for name in ("_shard", "_position", "id")]
            for row in np.flatnonzero(np.isin(inverse, list(work.failed))):
                reason, error = work.failed[int(inverse[row])]
                shard, position, name = (column[row] for column in columns)
                parcel.bad.append(BadRow(shard, position, name, reason, error))
                keep[row] = False
        parcel.counts["encoded"] = work.rows.num_rows - len(work.failed)
        padding = self.encoder.stats.padding_tokens
        parcel.counts["padding"], self._padding = padding - self._padding, padding
        parcel.counts["documents"] -= int(len(keep) - keep.sum())
        parcel.table = self._with_vectors(table, work, np.flatnonzero(keep), inverse)

    def _work(self, rows: pa.Table) -> _Work:
        counts = np.ones(rows.num_rows, np.int64)
        if self.chunking is not None:
            counts = pc.list_value_length(rows.column(CHUNKS)).to_numpy().astype(np.int64)
        places = np.concatenate([[0], np.cumsum(counts)])
        return _Work(rows, places, np.zeros((int(places[-1]), self.encoder.dim), dtype=np.float32), {})

    def _with_vectors(
        self, table: pa.Table, work: _Work, kept: npt.NDArray[np.int64], inverse: npt.NDArray[np.int64]
    ) -> pa.Table:
        """The kept rows with their vectors; with chunking, one row a chunk."""
        texts = inverse[kept]
        counts = np.diff(work.places)[texts]
        # Which vector each row of the result has: those of its text, in order.
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        vectors = np.repeat(work.places[texts], counts) + within
        table = table.drop_columns([name for name in _FOR_ENCODER if name in table.column_names and name != TASK])
        if len(vectors) != table.num_rows or len(kept) != table.num_rows:
            table = table.take(pa.array(np.repeat(kept, counts)))
        if self.chunking is not None:
            from actors.encoders.chunked import chunk_places

            places = chunk_places(work.rows)
            table = table.append_column(CHUNK, pa.array(within.astype(np.int32)))
            for name in (START, END, TOKENS):
                table = table.append_column(name, pa.array(places[name][vectors].astype(np.int32)))
        whole = len(vectors) == len(work.vectors) and bool((vectors == np.arange(len(vectors))).all())
        flat = pa.array((work.vectors if whole else work.vectors[vectors]).reshape(-1))
        return table.append_column(EMBEDDING, pa.FixedSizeListArray.from_arrays(flat, self.encoder.dim))

    def _encode_range(self, work: _Work, low: int, high: int, lease: Lease) -> None:
        """Encode rows `low` to `high`, narrowing around rows that raise or that have killed a process or held it up.

        Each level is cut into as many parts as a part has rows, and few rows are tried one by one: a death costs a new
        process, so two levels that find one row of a unit are better than the twelve of halving.
        """
        if low >= high:
            return
        span = (low, high)
        if (verdict := lease.verdict(span)) is not None:
            work.failed[low] = verdict
            return
        if not lease.suspect(span):
            with lease.trying(span), self._watched(lease, span):
                try:
                    work.vectors[work.places[low] : work.places[high]] = self._vectors(work.rows.slice(low, high - low))
                    return
                except UnfitVectors as error:
                    # A document of which a chunk is missing would pass for a shorter one, so all of it goes.
                    work.vectors[work.places[low] : work.places[high]] = error.vectors
                    for number, reason in error.reasons.items():
                        text = int(np.searchsorted(work.places, work.places[low] + number, side="right")) - 1
                        work.failed.setdefault(text, ("encode_failed", reason))
                    return
                except VectideError as error:
                    if isinstance(error, InvariantBroken):
                        raise
                    reason = str(error)
                except (RuntimeError, ValueError, IndexError) as error:
                    reason = f"{type(error).__name__}: {error}"
                if high - low == 1:
                    work.failed[low] = ("encode_failed", reason[:500])
                    return
        step = math.isqrt(high - low) if high - low > _ONE_BY_ONE else 1
        for start in range(low, high, step):
            self._encode_range(work, start, min(start + step, high), lease)

    def _watched(self, lease: Lease, span: Span) -> contextlib.AbstractContextManager[None]:
        """End this process where no micro-batch of these rows is finished for longer than a row may take."""
        if self.spec.row_timeout_s is None or not lease.watched:
            return contextlib.nullcontext()
        return watchdog(self.spec.row_timeout_s, self._progress, last_words=lambda: lease.timed_out(span))

    def _progress(self) -> tuple[int, int]:
        stats = self.encoder.stats
        return stats.micro_batches, stats.out_of_memory

    def _vectors(self, rows: pa.Table) -> npt.NDArray[np.float32]:
        tasks = rows.column(TASK).to_pylist() if TASK in rows.column_names else None
        if self.chunking is not None:
            return self.encoder.encode_documents(rows, self.chunking, tasks)
        return self.encoder.encode_tokens(rows.column(INPUT_IDS).combine_chunks(), tasks)


def _distinct(table: pa.Table) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Row of the first sight of each content hash, and for each row which of those it is."""
    codes = table.column(HASH).combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return pa.array(firsts), inverse.astype(np.int64)


def write(block: pa.Table, spec: StageSpec, book: Book) -> pa.Table:
    """Write a unit; the driver gets its receipt, or the error that it ended with."""
    parcel = unpack(block)
    outcome: object = parcel.error
    if parcel.error is None:
        lease = book.lease("write", parcel.unit)
        try:
            lease.check()
            with guarded(lease, spec.row_timeout_s):
                outcome = write_unit(parcel, spec.writer)
        except VectideError as error:
            outcome = error
        lease.done()
    return _outcome(parcel.unit, outcome, Counter(row.reason for row in parcel.bad))


def _outcome(unit: int, outcome: object, reasons: Counter[str]) -> pa.Table:
    columns = {"unit": [unit], "outcome": [pickle.dumps(outcome)], "reasons": [pickle.dumps(reasons)]}
    return pa.table(columns, schema=OUTCOME_SCHEMA)


def rewrite(block: pa.Table, spec: WriterSpec, book: Book, limit_s: float | None) -> pa.Table:
    """Carry a unit's rows from files of the table into new ones, in one stage; the outcome is that of `write`.

    `limit_s` is how long nothing may go forward.
    """
    unit: Unit = pickle.loads(block.column("payload")[0].as_py())  # noqa: S301  (made by our own driver)
    outcome: object
    lease = book.lease("rewrite", unit.number)
    try:
        lease.check()
        with guarded(lease, limit_s):
            outcome = write_unit(carry(unit, spec), spec)
    except VectideError as error:
        outcome = error
    lease.done()
    return _outcome(unit.number, outcome, Counter())
