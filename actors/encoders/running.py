"""Runs rows through a model one micro-batch at a time: the loop between an encoder and its family.

Rows are taken longest first, as many as the current token budget allows. After an out-of-memory error the budget is halved and
the same rows are tried again, down to one row. On a CPU with several threads, micro-batches can run side by side.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from actors.batching.budget import BudgetController
from actors.batching.planner import Ints, order_rows, ranges, take
from actors.encoders.build import Family
from actors.encoders.compute.device import Compute, is_out_of_memory
from actors.encoders.compute.threads import Threads
from actors.encoders.compute.transfer import Departure, Departures
from actors.encoders.packed import PackedBatch, pack
from actors.encoders.pictured import Picture
from actors.errors import DataError

# Matrix products with fewer rows than this cost more per row.
_LEAST_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts and times of an encoder since it was loaded.

    Attributes:
        rows, tokens, micro_batches: Counts.
        padding_tokens: Padding positions that were computed (none on the packed path).
        seconds: Time inside the model and pooling, summed over the threads that ran side by side.
        budget_tokens: The current token budget.
        out_of_memory: Number of micro-batches that did not fit and were tried again smaller.
    """

    rows: int = 0
    tokens: int = 0
    micro_batches: int = 0
    padding_tokens: int = 0
    seconds: float = 0.0
    budget_tokens: int = 0
    out_of_memory: int = 0


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that went through the model together.

    Attributes:
        rows: int64, the rows' numbers in the caller's order.
        batch: Position of each row in the flat token axis, in the order of `rows`.
        value: On the device: token states [tokens, hidden] in the compute type, or the result of the caller's `reduce`.
    """

    rows: Ints
    batch: PackedBatch
    value: torch.Tensor


# (token states [tokens, hidden], their batch) -> a tensor on the device. Pooling is the usual one.
Reduce = Callable[[torch.Tensor, PackedBatch], torch.Tensor]
# Numbers of rows -> the task of each.
TasksOf = Callable[[Ints], list[str | None] | None]
# Numbers of rows -> the picture of each, None for a text.
PicturesOf = Callable[[Ints], list[Picture | None]]


@dataclass(frozen=True, slots=True)
class _Finished:
    micro: MicroBatch
    seconds: float
    budget_tokens: int


@dataclass(frozen=True, slots=True)
class _TooLarge:
    start: int
    stop: int
    # Not the error itself: its traceback refers to all tensors of the failed forward pass.
    message: str


class Runner:
    """Forms micro-batches and runs them, for one encoder.

    Args:
        compute: Device and type of the family.
        budget: Controls the number of tokens in a micro-batch.
    """

    def __init__(self, compute: Compute, budget: BudgetController) -> None:
        self._compute = compute
        self._budget = budget
        self._threads: Threads | None = None
        self._stats = Stats()

    @property
    def stats(self) -> Stats:
        """Counts and times so far."""
        return replace(self._stats, budget_tokens=self._budget.budget_tokens)

    def on_host(
        self, micros: Iterator[MicroBatch], departures: Departures | None
    ) -> Iterator[tuple[Ints, npt.NDArray[np.float32]]]:
        """Yields the rows and the values of micro-batches, on a GPU with `departures`, as they arrive."""
        away: deque[tuple[Ints, Departure]] = deque()
        for micro in micros:
            if departures is None:
                yield micro.rows, micro.value.numpy()
                continue
            away.append((micro.rows, departures.start(micro.value)))
            # The GPU is still computing what was launched after them: only what has arrived is taken.
            while away and away[0][1].has_ended():
                rows, departure = away.popleft()
                yield rows, departure.array()
        # CUDA calls return before the GPU has finished: most of the GPU's time passes here.
        started = time.perf_counter()
        for rows, departure in away:
            yield rows, departure.array()
        self._stats = replace(self._stats, seconds=self._stats.seconds + time.perf_counter() - started)

    def run(
        self,
        family: Family,
        ids: pa.ListArray,
        *,
        tasks_of: TasksOf,
        reduce: Reduce | None = None,
        side_by_side: bool = False,
        pictures_of: PicturesOf | None = None,
    ) -> Iterator[MicroBatch]:
        """Yields all rows as micro-batches, longest rows first, except for rows that did not fit at the first attempt.

        Args:
            family: The model.
            ids: `list<int32>` [n], no row null or empty.
            tasks_of: Returns the task of each row.
            reduce: Function of the token states; its out-of-memory errors are handled too.
            side_by_side: Start micro-batches on all torch threads before the caller asks for them.
            pictures_of: Returns the picture of each row; None if no row has one.

        Raises:
            DataError: A row has no tokens, or does not fit the device's memory even alone.
        """
        flat, starts, lengths = _split(ids)
        order = order_rows(lengths)
        ordered = lengths[order]
        ends = np.concatenate([[0], np.cumsum(ordered)])
        spans: deque[tuple[int, int]] = deque([(0, len(order))] if len(order) else [])
        # If all rows fit in one micro-batch, it is faster to let all threads share it.
        threads = self._side_by_side(int(ends[-1])) if side_by_side else None

        def run_rows(start: int, stop: int, budget_tokens: int) -> _Finished | _TooLarge:
            rows = order[start:stop]
            started = time.perf_counter()
            try:
                batch = self._pack(flat, starts, rows, ordered[start:stop], tasks_of=tasks_of, pictures_of=pictures_of)
                value = self._forward(family, batch, reduce)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return _TooLarge(start, stop, str(error))
            return _Finished(MicroBatch(rows, batch, value), time.perf_counter() - started, budget_tokens)

        def next_one() -> Callable[[], _Finished | _TooLarge] | None:
            if not spans:
                return None
            start, end = spans.popleft()
            budget_tokens = self._budget.budget_tokens
            # Smaller micro-batches towards the end, so that the threads finish at about the same time.
            share = budget_tokens if threads is None else int(ends[end] - ends[start]) // (2 * threads.count)
            stop = take(ordered[:end], start, min(budget_tokens, max(share, _LEAST_TOKENS)))
            if stop < end:
                spans.appendleft((stop, end))
            return partial(run_rows, start, stop, budget_tokens)

        calls = threads.in_order(next_one) if threads is not None else _in_sequence(next_one)
        for done in calls:
            if isinstance(done, _TooLarge):
                limit = "max_tokens" if pictures_of is None else "max_pixels or max_tokens"
                self._handle_out_of_memory(
                    order[done.start : done.stop], ordered[done.start : done.stop], done.message, limit
                )
                spans.appendleft((done.start, done.stop))
                continue
            self._count(done)
            yield done.micro

    def _side_by_side(self, tokens: int) -> Threads | None:
        threads = torch.get_num_threads() if self._compute.device.type == "cpu" else 1
        if threads == 1 or tokens <= self._budget.budget_tokens:
            return None
        if self._threads is None or self._threads.count != threads:
            self._threads = Threads(threads)
        return self._threads

    def _pack(
        self,
        flat: npt.NDArray[np.int32],
        starts: Ints,
        rows: Ints,
        lengths: Ints,
        *,
        tasks_of: TasksOf,
        pictures_of: PicturesOf | None,
    ) -> PackedBatch:
        return pack(
            flat[ranges(starts[rows], lengths)],
            lengths,
            device=self._compute.device,
            tasks=tasks_of(rows),
            numbers=rows,
            pictures=() if pictures_of is None else pictures_of(rows),
        )

    def _forward(self, family: Family, batch: PackedBatch, reduce: Reduce | None) -> torch.Tensor:
        with torch.inference_mode():
            value = family.forward(batch)
            if reduce is not None:
                value = reduce(value, batch)
            if self._budget.racing and self._compute.device.type == "cuda":
                torch.cuda.synchronize(self._compute.device)
        return value

    def _count(self, finished: _Finished) -> None:
        tokens = len(finished.micro.batch.ids)
        self._budget.observe(tokens, finished.seconds, budget_tokens=finished.budget_tokens)
        stats = self._stats
        self._stats = replace(
            stats,
            rows=stats.rows + finished.micro.batch.rows,
            tokens=stats.tokens + tokens,
            micro_batches=stats.micro_batches + 1,
            seconds=stats.seconds + finished.seconds,
        )

    def _handle_out_of_memory(self, rows: Ints, lengths: Ints, message: str, limit: str) -> None:
        tokens = int(lengths.sum())
        self._stats = replace(self._stats, out_of_memory=self._stats.out_of_memory + 1)
        if len(rows) == 1:
            raise DataError(
                f"row {int(rows[0])} with {tokens} tokens does not fit the memory of {self._compute.device} even alone. "
                f"Lower {limit}, use a larger device, or run fewer processes on it ({message})."
            )
        self._budget.out_of_memory(tokens)
        if self._compute.device.type == "cuda":
            torch.cuda.empty_cache()


def _in_sequence(next_one: Callable[[], Callable[[], _Finished | _TooLarge] | None]) -> Iterator[_Finished | _TooLarge]:
    while (call := next_one()) is not None:
        yield call()


def _split(ids: pa.ListArray) -> tuple[npt.NDArray[np.int32], Ints, Ints]:
    """Returns the flat values of a list array, and the start and length of each row in them."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    offsets = ids.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    if ids.null_count or (lengths == 0).any():
        row = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False) | (lengths == 0))[0])
        raise DataError(f"row {row} has no token ids. Quarantine rows without text before encoding.")
    return ids.values.to_numpy(), offsets[:-1], lengths


def check_token_ids(ids: pa.ListArray, vocab_size: int) -> None:
    """Raises unless the model's word table has a row for every token.

    Without this check, an invalid token on a GPU ends the whole process.

    Args:
        ids: `list<int32>`.
        vocab_size: Rows of the model's word table; 0 if it is not known.

    Raises:
        DataError: A token has no row; names the row, the token and the size of the table.
    """
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    values = ids.flatten().to_numpy()
    if not vocab_size or not len(values) or (values.min() >= 0 and values.max() < vocab_size):
        return
    flat, starts, lengths = _split(ids)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for token in flat[start : start + length]:
            if not 0 <= token < vocab_size:
                raise DataError(
                    f"row {row} has the token {int(token)}, and the model's word table has {vocab_size} rows, 0 to "
                    f"{vocab_size - 1}. Take the tokenizer that the model was trained with."
                )
