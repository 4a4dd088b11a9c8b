"""Second stage: encode the texts of a unit. Rows that cannot be encoded are quarantined, all others get their vectors.

It is the only stage that imports torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.compute.environment import GPU_ENV
from actors.errors import ConfigError, DeviceLost, InvariantBroken, VectideError
from actors.schema import CHUNK, HASH, PARTS, QuarantinedRow
from actors.unit.unit_batch import UnitBatch, pack, unpack
from actors.vectors import Encoded
from pipeline.execute.attempts import Attempt, AttemptLog, Span
from pipeline.execute.stages.spec import StageSpec
from pipeline.execute.watchdog import watchdog

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder
    from pipeline.execute.metrics import EncoderMeter

# A suspect range of up to this many rows is encoded row by row.
_ONE_BY_ONE = 64


@dataclass(slots=True)
class _Work:
    """Distinct texts of a unit, with their vectors and errors.

    Attributes:
        rows: The inputs of the model, one row per text.
        starts: int64 [texts + 1], number of the first item of each text: a text has one, or one per part.
        places: int64 [texts], place of the first item of each encoded text in the concatenated arrays of `encoded`.
        encoded: Arrays of vectors of some texts, one per output of the model.
        failed: Text number to reason and error.
    """

    rows: pa.Table
    starts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    encoded: list[tuple[pa.Array, ...]] = field(default_factory=list)
    failed: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, low: int, high: int, encoded: Encoded) -> None:
        """Add the vectors of the texts `low` to `high`."""
        first = self.starts[low]
        if (items := len(encoded.outputs[0])) != self.starts[high] - first:
            raise InvariantBroken(f"the encoder made {items} vectors instead of {self.starts[high] - first}.")
        self.places[low:high] = self.starts[low:high] - first + sum(len(part[0]) for part in self.encoded)
        self.encoded.append(encoded.outputs)
        for number, reason in encoded.reasons.items():
            # A document without one of its chunks would look complete, so the whole document fails.
            text = int(np.searchsorted(self.starts, first + number, side="right")) - 1
            self.failed.setdefault(text, ("encode_failed", reason))


class EncodeStage:
    """The encode stage. Ray Data creates one instance in each actor of the pool.

    Threads may call it side by side: one unit is computed at a time, and others are unpacked and packed meanwhile.

    Args:
        spec: Settings of the run.
        attempt_log: Record of crashed attempts, outside this process.
        threads: CPU threads for this replica.
        device: "cpu", "cuda" or "auto".
        gpus: GPUs of this replica; a fraction limits its memory to its share of the GPU.
        load_now: Load the model now, while the first units are read, and not at the first text.
        meter: Records the metrics of the encoder after each unit.
    """

    def __init__(
        self,
        spec: StageSpec,
        attempt_log: AttemptLog,
        threads: int | None,
        device: str,
        *,
        gpus: float = 1.0,
        load_now: bool = False,
        meter: EncoderMeter | None = None,
    ) -> None:
        self.attempt_log = attempt_log
        self.spec = spec
        self.chunking = spec.chunking
        self._threads = threads
        self._device = device
        self._gpus = gpus
        self._meter = meter
        self._padding = 0
        self._computing = threading.Lock()
        if device != "cpu":
            for name, value in GPU_ENV.items():
                os.environ.setdefault(name, value)
        if load_now:
            _ = self.encoder

    @cached_property
    def encoder(self) -> Encoder:
        """The model, loaded at first use: a refresh may find all vectors in the table and never need it."""
        from actors.encoders import load_encoder

        one_task = self.spec.source.task is None
        encoder = load_encoder(self.spec.model, device=self._device, threads=self._threads, one_task=one_task)
        encoder.compute.limit_memory(self._gpus)
        return encoder

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the unit with vectors, in the order of its rows."""
        batch = unpack(block)
        if batch.error is not None or batch.table is None:
            return block
        if batch.table.num_rows == 0 and batch.ready is not None:
            return block
        started = time.perf_counter()
        # A model that cannot be loaded ends the run and not this unit: all others would end the same way.
        _ = self.encoder
        waited_s = 0.0
        try:
            waited_s = self._encode(batch)
        except DeviceLost as error:
            self.attempt_log.end_process(error)
        except VectideError as error:
            batch.error, batch.table = error, None
        batch.seconds["encode"] = time.perf_counter() - started - waited_s
        return pack(batch)

    def _encode(self, batch: UnitBatch) -> float:
        """Add the columns of vectors, and move rows that cannot be encoded to `batch.bad`.

        Equal texts of a unit are encoded once.

        Returns:
            Seconds of waiting for another unit.
        """
        table, inputs, batch.inputs = batch.table, batch.inputs, None
        if table is None or inputs is None:
            raise InvariantBroken(f"unit {batch.unit} reached the encoder without rows.")
        firsts, inverse = _distinct(table)
        work = _work(inputs if len(firsts) == inputs.num_rows else inputs.take(firsts))
        waiting = time.perf_counter()
        with self._computing:
            waited_s = time.perf_counter() - waiting
            attempt = self.attempt_log.attempt("encode", batch.unit)
            attempt.check()
            self._encode_range(work, 0, work.rows.num_rows, attempt)
            attempt.done()
            self._record(batch)
        keep = np.ones(table.num_rows, dtype=bool)
        if work.failed:
            columns = [table.column(name).to_pylist() for name in ("_shard", "_position", "id")]
            for row in np.flatnonzero(np.isin(inverse, list(work.failed))):
                reason, error = work.failed[int(inverse[row])]
                shard, position, name = (column[row] for column in columns)
                batch.bad.append(QuarantinedRow(shard, position, name, reason, error))
                keep[row] = False
        batch.counts["encoded"] = work.rows.num_rows - len(work.failed)
        batch.counts["documents"] -= int(len(keep) - keep.sum())
        batch.table = self._with_vectors(table, work, np.flatnonzero(keep), inverse)
        return waited_s

    def _record(self, batch: UnitBatch) -> None:
        """Record what the encoder did since the previous unit."""
        stats = self.encoder.stats
        batch.counts["padding"], self._padding = stats.padding_tokens - self._padding, stats.padding_tokens
        if self._meter is not None:
            self._meter.record(stats, self.encoder.compute.memory())

    def _with_vectors(
        self, table: pa.Table, work: _Work, kept: npt.NDArray[np.int64], inverse: npt.NDArray[np.int64]
    ) -> pa.Table:
        """Return the kept rows with their vectors; of a text with parts, one row per part."""
        texts = inverse[kept]
        counts = np.diff(work.starts)[texts]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        if len(within) != table.num_rows or len(kept) != table.num_rows:
            table = table.take(pa.array(np.repeat(kept, counts)))
        if PARTS in work.rows.column_names:
            table = table.append_column(CHUNK, pa.array(within.astype(np.int32)))
            parts = work.rows.column(PARTS).combine_chunks().flatten()
            numbers = pa.array(np.repeat(work.starts[texts], counts) + within)
            for column in parts.type:
                table = table.append_column(column.name, parts.field(column.name).take(numbers))
        # Place of the vectors of each row of the result: all those of its text, in order.
        places = np.repeat(work.places[texts], counts) + within
        for number, output in enumerate(self.spec.model.outputs):
            arrays = [part[number] for part in work.encoded]
            vectors = arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays or [pa.array([], output.type)])
            if len(places) != len(vectors) or (places != np.arange(len(places))).any():
                vectors = vectors.take(pa.array(places))
            table = table.append_column(output.name, vectors)
        return table

    def _encode_range(self, work: _Work, low: int, high: int, attempt: Attempt) -> None:
        """Encode rows `low` to `high`; split the range if it raises, or has killed or hung a process.

        A range is split into about as many parts as each part has rows, and a small range into single rows. Each death
        costs a new process: this finds a row in two or three levels, where halving takes about twelve.
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
                    work.add(low, high, self._vectors(work.rows.slice(low, high - low)))
                    return
                except VectideError as error:
                    if isinstance(error, InvariantBroken | ConfigError):  # of no row
                        raise
                    reason = str(error)
                except (RuntimeError, ValueError, IndexError) as error:
                    _check_device(error)
                    reason = f"{type(error).__name__}: {error}"
                if high - low == 1:
                    work.failed[low] = ("encode_failed", reason[:500])
                    return
        step = math.isqrt(high - low) if high - low > _ONE_BY_ONE else 1
        for start in range(low, high, step):
            self._encode_range(work, start, min(start + step, high), attempt)

    def _watched(self, attempt: Attempt, span: Span) -> contextlib.AbstractContextManager[None]:
        """End this process if no micro-batch of these rows finishes within `row_timeout_s`."""
        if self.spec.row_timeout_s is None or not attempt.watched:
            return contextlib.nullcontext()
        return watchdog(self.spec.row_timeout_s, self._progress, on_timeout=lambda: attempt.timed_out(span))

    def _progress(self) -> tuple[int, int]:
        stats = self.encoder.stats
        return stats.micro_batches, stats.out_of_memory

    def _vectors(self, rows: pa.Table) -> Encoded:
        return self.encoder.encode_rows(rows, self.chunking)


def _work(rows: pa.Table) -> _Work:
    counts = np.ones(rows.num_rows, np.int64)
    if PARTS in rows.column_names:
        counts = pc.list_value_length(rows.column(PARTS)).to_numpy().astype(np.int64)
    return _Work(rows, np.concatenate([[0], np.cumsum(counts)]), np.zeros(rows.num_rows, np.int64))


def _distinct(table: pa.Table) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Return the first row of each content hash, and for each row the index of its hash among these."""
    codes = table.column(HASH).combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return pa.array(firsts), inverse.astype(np.int64)


def _check_device(error: Exception) -> None:
    """Raise DeviceLost if the error is of the GPU and not of a row: every later row would fail too."""
    from actors.encoders.compute.device import is_device_lost

    if is_device_lost(error):
        raise DeviceLost(
            f"the GPU failed, so this process cannot use it any more ({error}). Finished units are kept: run the same "
            f"command again, or encode on CPUs with run.gpus_per_replica=0"
        ) from error
