"""Second stage: vectors for a unit. Rows that cannot be encoded are quarantined, their neighbours keep their vectors.

Torch is imported here alone.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.finite import UnfitVectors
from actors.errors import InvariantBroken, VectideError
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
    QuarantinedRow,
)
from actors.unit.unit_batch import UnitBatch, pack, unpack
from pipeline.execute.attempts import Attempt, AttemptLog, Span
from pipeline.execute.watchdog import watchdog

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder
    from pipeline.execute.metrics import EncoderMeter
from pipeline.execute.stages.spec import StageSpec

# Columns that the encode stage takes; with chunking all of them.
_FOR_ENCODER = (INPUT_IDS, CHUNKS, PREFIX, SUFFIX, TASK)


_ONE_BY_ONE = 64


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
        attempt_log: AttemptLog,
        threads: int | None,
        device: str,
        *,
        load_now: bool = False,
        meter: EncoderMeter | None = None,
    ) -> None:
        self.attempt_log = attempt_log
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
        batch = unpack(block)
        if batch.error is not None or batch.table is None:
            return block
        if batch.table.num_rows == 0 and batch.ready is not None:
            return block
        started = time.perf_counter()
        # A model that cannot be loaded ends the run and not this unit: all others would end the same way.
        _ = self.encoder
        try:
            self._encode(batch)
        except VectideError as error:
            batch.error, batch.table = error, None
        batch.seconds["encode"] = time.perf_counter() - started
        if self._meter is not None:
            self._meter.record(self.encoder.stats, self.encoder.compute.memory())
        return pack(batch)

    def _encode(self, batch: UnitBatch) -> None:
        """Put the embedding column in; rows that cannot be encoded go to `batch.bad`.

        Texts that occur more than once in a unit are encoded once.
        """
        table = batch.table
        if table is None:
            raise InvariantBroken(f"unit {batch.unit} came to the encoder without rows.")
        firsts, inverse = _distinct(table)
        work = self._work(table.select([name for name in _FOR_ENCODER if name in table.column_names]).take(firsts))
        attempt = self.attempt_log.attempt("encode", batch.unit)
        attempt.check()
        self._encode_range(work, 0, work.rows.num_rows, attempt)
        attempt.done()
        keep = np.ones(table.num_rows, dtype=bool)
        if work.failed:
            columns = [table.column(name).to_pylist() for name in ("_shard", "_position", "id")]
            for row in np.flatnonzero(np.isin(inverse, list(work.failed))):
                reason, error = work.failed[int(inverse[row])]
                shard, position, name = (column[row] for column in columns)
                batch.bad.append(QuarantinedRow(shard, position, name, reason, error))
                keep[row] = False
        batch.counts["encoded"] = work.rows.num_rows - len(work.failed)
        padding = self.encoder.stats.padding_tokens
        batch.counts["padding"], self._padding = padding - self._padding, padding
        batch.counts["documents"] -= int(len(keep) - keep.sum())
        batch.table = self._with_vectors(table, work, np.flatnonzero(keep), inverse)

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

    def _encode_range(self, work: _Work, low: int, high: int, attempt: Attempt) -> None:
        """Encode rows `low` to `high`, narrowing around rows that raise or that have killed a process or held it up.

        Each level is cut into as many parts as a part has rows, and few rows are tried one by one: a death costs a new
        process, so two levels that find one row of a unit are better than the twelve of halving.
        """
        if low >= high:
            return
        span = (low, high)
        if (verdict := attempt.verdict(span)) is not None:
            work.failed[low] = verdict
            return
        if not attempt.suspect(span):
            with attempt.trying(span), self._watched(attempt, span):
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
            self._encode_range(work, start, min(start + step, high), attempt)

    def _watched(self, attempt: Attempt, span: Span) -> contextlib.AbstractContextManager[None]:
        """End this process where no micro-batch of these rows is finished for longer than a row may take."""
        if self.spec.row_timeout_s is None or not attempt.watched:
            return contextlib.nullcontext()
        return watchdog(self.spec.row_timeout_s, self._progress, last_words=lambda: attempt.timed_out(span))

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
