"""Rows through a model, a micro-batch at a time: the loop between an encoder and its family.

Rows are taken longest first under the budget of the moment. Out of memory halves the budget and the same rows go again, down to
one row. On a CPU with several threads, micro-batches can run side by side.
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
from actors.batching.planner import Ints, order_rows, take
from actors.encoders.build import Family
from actors.encoders.compute.device import Compute
from actors.encoders.compute.threads import Threads
from actors.encoders.packed import PackedBatch, pack
from actors.errors import DataError

# Products of fewer rows than this cost more a row.
_LEAST_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Stats:
    """What an encoder has done since it was loaded.

    Attributes:
        rows, tokens, micro_batches: Counts.
        padding_tokens: Places computed for nothing (none on the packed path).
        seconds: Time inside the model and pooling, of all threads that ran side by side.
        budget_tokens: The token budget now.
        out_of_memory: How many micro-batches did not fit and were tried again smaller.
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
        rows: int64, their numbers in the caller's order.
        batch: Where each lies in the flat token axis, in the order of `rows`.
        value: What was asked for, on the device: token states [tokens, hidden] in the compute type, or what the
            caller's `reduce` made of them.
    """

    rows: Ints
    batch: PackedBatch
    value: torch.Tensor


# (token states [tokens, hidden], their batch) -> anything on the device; pooling is the usual one.
Reduce = Callable[[torch.Tensor, PackedBatch], torch.Tensor]
# Rows of the caller -> the task of each.
TasksOf = Callable[[Ints], list[str | None] | None]


@dataclass(frozen=True, slots=True)
class _Made:
    micro: MicroBatch
    seconds: float
    budget_tokens: int


@dataclass(frozen=True, slots=True)
class _TooLarge:
    start: int
    stop: int
    error: torch.OutOfMemoryError


class Runner:
    """The loop of one encoder.

    Args:
        compute: Where the family computes.
        budget: How many tokens go together.
    """

    def __init__(self, compute: Compute, budget: BudgetController) -> None:
        self._compute = compute
        self._budget = budget
        self._threads: Threads | None = None
        self._stats = Stats()

    @property
    def stats(self) -> Stats:
        """What was done so far."""
        return replace(self._stats, budget_tokens=self._budget.budget_tokens)

    def waited(self, seconds: float) -> None:
        """Counts time that the caller waited for the device."""
        self._stats = replace(self._stats, seconds=self._stats.seconds + seconds)

    def run(
        self,
        family: Family,
        ids: pa.ListArray,
        *,
        tasks_of: TasksOf,
        reduce: Reduce | None = None,
        side_by_side: bool = False,
    ) -> Iterator[MicroBatch]:
        """All rows, longest first but for those that did not fit at once.

        Args:
            family: The model.
            ids: `list<int32>` [n], no row null or empty.
            tasks_of: The task of each row.
            reduce: What to make of the token states, under the same protection against out of memory.
            side_by_side: Micro-batches may be begun before those ahead of them are asked for, on all torch threads.

        Raises:
            DataError: A row without tokens, or one that does not fit the device's memory even alone.
        """
        flat, starts, lengths = _split(ids)
        order = order_rows(lengths)
        ordered = lengths[order]
        ends = np.concatenate([[0], np.cumsum(ordered)])
        spans: deque[tuple[int, int]] = deque([(0, len(order))] if len(order) else [])
        # What fits one micro-batch is best shared by all threads.
        threads = self._side_by_side(int(ends[-1])) if side_by_side else None

        def one(start: int, stop: int, budget_tokens: int) -> _Made | _TooLarge:
            rows = order[start:stop]
            began = time.perf_counter()
            try:
                batch = self._pack(flat, starts, rows, ordered[start:stop], tasks_of)
                value = self._forward(family, batch, reduce)
            except torch.OutOfMemoryError as error:
                return _TooLarge(start, stop, error)
            return _Made(MicroBatch(rows, batch, value), time.perf_counter() - began, budget_tokens)

        def following() -> Callable[[], _Made | _TooLarge] | None:
            if not spans:
                return None
            start, end = spans.popleft()
            budget_tokens = self._budget.budget_tokens
            # Smaller ones towards the end, so that no thread has long to wait for the last.
            fair = budget_tokens if threads is None else int(ends[end] - ends[start]) // (2 * threads.count)
            stop = take(ordered[:end], start, min(budget_tokens, max(fair, _LEAST_TOKENS)))
            if stop < end:
                spans.appendleft((stop, end))
            return partial(one, start, stop, budget_tokens)

        calls = threads.in_order(following) if threads is not None else _one_by_one(following)
        for done in calls:
            if isinstance(done, _TooLarge):
                self._on_out_of_memory(order[done.start : done.stop], ordered[done.start : done.stop], done.error)
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
        self, flat: npt.NDArray[np.int32], starts: Ints, rows: Ints, lengths: Ints, tasks_of: TasksOf
    ) -> PackedBatch:
        ends = np.cumsum(lengths)
        places = np.arange(int(ends[-1])) + np.repeat(starts[rows] - (ends - lengths), lengths)
        return pack(flat[places], lengths, device=self._compute.device, tasks=tasks_of(rows), numbers=rows)

    def _forward(self, family: Family, batch: PackedBatch, reduce: Reduce | None) -> torch.Tensor:
        with torch.inference_mode():
            value = family.forward(batch)
            if reduce is not None:
                value = reduce(value, batch)
            if self._budget.racing and self._compute.device.type == "cuda":
                torch.cuda.synchronize(self._compute.device)
        return value

    def _count(self, made: _Made) -> None:
        tokens = len(made.micro.batch.ids)
        self._budget.observe(tokens, made.seconds, budget_tokens=made.budget_tokens)
        seen = self._stats
        self._stats = replace(
            seen,
            rows=seen.rows + made.micro.batch.rows,
            tokens=seen.tokens + tokens,
            micro_batches=seen.micro_batches + 1,
            seconds=seen.seconds + made.seconds,
        )

    def _on_out_of_memory(self, rows: Ints, lengths: Ints, error: torch.OutOfMemoryError) -> None:
        tokens = int(lengths.sum())
        self._stats = replace(self._stats, out_of_memory=self._stats.out_of_memory + 1)
        if len(rows) == 1:
            raise DataError(
                f"row {int(rows[0])} with {tokens} tokens does not fit the memory of {self._compute.device} even alone. "
                "Lower max_tokens, use a larger device, or run fewer processes on it."
            ) from error
        self._budget.out_of_memory(tokens)
        if self._compute.device.type == "cuda":
            torch.cuda.empty_cache()


def _one_by_one(following: Callable[[], Callable[[], _Made | _TooLarge] | None]) -> Iterator[_Made | _TooLarge]:
    while (call := following()) is not None:
        yield call()


def _split(ids: pa.ListArray) -> tuple[npt.NDArray[np.int32], Ints, Ints]:
    """A list array as flat values, and the start and length of each row in them."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    offsets = ids.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    if ids.null_count or (lengths == 0).any():
        row = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False) | (lengths == 0))[0])
        raise DataError(f"row {row} has no token ids. Set rows without text aside before encoding.")
    return ids.values.to_numpy(), offsets[:-1], lengths


def check_token_ids(ids: pa.ListArray, vocab_size: int) -> None:
    """Raises unless the model has a row for every token: a card would end the whole process at one that is not there.

    Args:
        ids: `list<int32>`.
        vocab_size: Rows of the model's word table; 0 where it is not known.

    Raises:
        DataError: Names the row, the token and the table.
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
