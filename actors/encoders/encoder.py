"""One loaded model: texts or token ids in, float32 unit vectors out. Glue only.

The encode actors call `encode_tokens`, or `encode_documents` where texts are cut into chunks; people and the search
command call `encode` and `encode_chunks`. What a model is comes from `spec`, how it computes from its family, which rows go
together from `batching.planner`, how many from `batching.budget`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from actors.batching.budget import BudgetController
from actors.batching.planner import Ints, order_rows, take
from actors.chunker import Chunker, resolve
from actors.chunking import By, Chunking
from actors.encoders.adapter_registry import AdapterRegistry
from actors.encoders.adapters import AdapterStore
from actors.encoders.build import Family, build_family
from actors.encoders.chunked import ChunkVector, chunk_vectors, encode_documents
from actors.encoders.hardware import Compute, find_compute
from actors.encoders.packed import PackedBatch, pack
from actors.encoders.pooling import finish, pool
from actors.encoders.spec import ModelSpec, check_task
from actors.errors import ConfigError, DataError
from actors.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stats:
    """What an encoder has done since it was loaded.

    Attributes:
        rows, tokens, micro_batches: Counts.
        padding_tokens: Places computed for nothing (none on the packed path).
        seconds: Time inside the model and pooling.
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


class Encoder:
    """A model ready to encode. Not thread-safe: one per process or per thread.

    Args:
        spec: What to load.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Torch threads of this process on a CPU; None leaves them.
        family: A family already built (tests, and code that shares weights); None loads the spec's.
        compute: Where and in what type; None finds it out from the spec's precision and this machine.
        budget: The controller of the token budget; None makes one for the device.

    Raises:
        ConfigError: The device is not there.
        ModelError: The checkpoint is incomplete.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        device: str = "auto",
        threads: int | None = None,
        family: Family | None = None,
        compute: Compute | None = None,
        budget: BudgetController | None = None,
    ) -> None:
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads is {threads}, must be 1 or more (or left out).")
            torch.set_num_threads(threads)
        self.spec = spec
        self.compute = compute or find_compute(spec.precision, device)
        self.family = family or build_family(spec, self.compute)
        self._budget = budget or BudgetController(self.compute.ladder)
        self._tokenizer: Tokenizer | None = None
        self._stats = Stats()

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.spec.dim

    @property
    def stats(self) -> Stats:
        """What was done so far."""
        return replace(self._stats, budget_tokens=self._budget.budget_tokens)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.spec)
        return self._tokenizer

    @property
    def adapters(self) -> AdapterRegistry:
        """The adapters beside the model, to be added, replaced and removed while it is loaded.

        Raises:
            ConfigError: The model takes none.
        """
        store = getattr(self.family, "adapters", None)
        if not isinstance(store, AdapterStore):
            raise ConfigError(f"model {self.spec.model} is of family {self.spec.family!r}, which takes no adapters.")
        return AdapterRegistry(self, store)

    def use_spec(self, spec: ModelSpec) -> None:
        """Takes another spec of the same loaded model: tasks, prompts and adapters may differ, nothing else."""
        self.spec = spec
        if self._tokenizer is not None:
            self._tokenizer.spec = spec

    def encode(self, texts: Sequence[str], task: str | Sequence[str | None] | None = None) -> Floats:
        """Vectors of texts.

        Args:
            texts: Any strings.
            task: One of the model's tasks for all, or one per text (None among them: the model without a task); None
                takes the spec's.

        Returns:
            float32 [n, dim], each of unit length, in the order of `texts`.

        Raises:
            ConfigError: A task that the model does not have, or another number of tasks than texts.
        """
        if isinstance(texts, str):
            raise ConfigError("encode takes a list of texts; put a single text into a list.")
        tasks = [task] * len(texts) if isinstance(task, str) else task
        self._check_tasks(tasks, len(texts))
        return self.encode_tokens(self.tokenizer.tokenize(texts, tasks).ids, tasks)

    def encode_tokens(self, ids: pa.ListArray, tasks: Sequence[str | None] | None = None) -> Floats:
        """Vectors of rows of token ids: the pipeline's hot path.

        Args:
            ids: `list<int32>` [n], as `Tokenizer.tokenize` makes them; no row null or empty.
            tasks: One per row (None among them: the model without a task); None takes the spec's.

        Returns:
            float32 [n, dim], each of unit length, in the order of `ids`.

        Raises:
            ConfigError: As for `encode`.
            DataError: A row without tokens, or one that does not fit the device's memory even alone.
        """
        vectors = np.empty((len(ids), self.spec.dim), np.float32)
        done: list[tuple[Ints, torch.Tensor]] = []
        for micro in self.micro_batches(ids, tasks, reduce=self._to_vectors):
            if micro.value.device.type == "cpu":
                vectors[micro.rows] = micro.value.numpy()
            else:
                done.append((micro.rows, micro.value))
        if done:
            # One copy for the whole block: a copy per micro-batch would make the card wait for the host.
            started = time.perf_counter()
            vectors[np.concatenate([rows for rows, _ in done])] = torch.cat([unit for _, unit in done]).cpu().numpy()
            # The card works behind the host's back: most of its time is spent in this wait.
            waited = time.perf_counter() - started
            self._stats = replace(self._stats, seconds=self._stats.seconds + waited)
        return vectors

    def encode_chunks(
        self,
        texts: Sequence[str],
        task: str | Sequence[str | None] | None = None,
        *,
        mode: Literal["split", "late"] = "late",
        max_tokens: int | None = None,
        by: By = "sentence",
        overlap_tokens: int | None = None,
    ) -> list[list[ChunkVector]]:
        """Cuts texts into chunks, and gives each a vector. Nothing is truncated.

        Args:
            texts: Any strings, of any length.
            task: As for `encode`.
            mode: "late" runs the whole text through the model, in windows where it is too long for one, and averages
                the token states of each chunk; "split" encodes each chunk alone.
            max_tokens: Tokens of text in a chunk; None takes 512, or what the model takes where split leaves less.
            by: What a chunk ends with where it can: "sentence", "paragraph" or "tokens".
            overlap_tokens: Late only, what two windows share; None takes 512, or a quarter of a window if less.

        Returns:
            One list of chunks per text, in its order; `text[chunk.start:chunk.end]` is the chunk, and all of them are
            the text. An empty text has one empty chunk.

        Raises:
            ConfigError: A setting that is wrong or does not fit the model, or as for `encode`.
        """
        if isinstance(texts, str):
            raise ConfigError("encode_chunks takes a list of texts; put a single text into a list.")
        tasks = [task] * len(texts) if isinstance(task, str) else task
        self._check_tasks(tasks, len(texts))
        chunking = resolve(
            self.spec,
            mode=mode,
            max_tokens=max_tokens,
            by=by,
            overlap_tokens=overlap_tokens,
            every_task=tasks is not None,
        )
        if chunking is None:
            raise ConfigError("mode 'none' makes no chunks; use encode, or mode late or split.")
        documents = Chunker(self.spec, chunking).chunk(texts, tasks)
        return chunk_vectors(documents, self.encode_documents(documents, chunking, tasks))

    def encode_documents(
        self, documents: pa.Table, chunking: Chunking, tasks: Sequence[str | None] | None = None
    ) -> Floats:
        """Vectors of all chunks of texts: the pipeline's hot path with chunking.

        Args:
            documents: One row a text, as `Chunker.chunk` makes them.
            chunking: What they were made with.
            tasks: One per row; None takes the spec's.

        Returns:
            float32 [chunks of all texts, dim], each of unit length, text by text.

        Raises:
            ConfigError, DataError: As for `encode_tokens`.
        """
        self._check_tasks(tasks, documents.num_rows)
        return encode_documents(self, documents, chunking, tasks)

    def encode_token_states(self, ids: pa.ListArray, tasks: Sequence[str | None] | None = None) -> list[Floats]:
        """Hidden states of every token, float32 [tokens of the row, hidden] per row, in the order of `ids`.

        Late chunking over many rows should use `micro_batches` and pool on the device instead.
        """
        states: list[Floats] = [np.empty((0, self.spec.hidden), np.float32)] * len(ids)
        for micro in self.micro_batches(ids, tasks):
            parts = torch.split(micro.value.float().cpu(), micro.batch.lengths.tolist())
            for row, part in zip(micro.rows, parts, strict=True):
                states[int(row)] = part.numpy()
        return states

    def _to_vectors(self, hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        return finish(pool(hidden, batch, self.spec.pooling), self.spec.dim)

    def micro_batches(
        self, ids: pa.ListArray, tasks: Sequence[str | None] | None = None, *, reduce: Reduce | None = None
    ) -> Iterator[MicroBatch]:
        """Runs all rows through the model and hands out token states, longest rows first.

        Out of memory halves the budget and tries the same rows again, down to one row.

        Args:
            ids: As for `encode_tokens`.
            tasks: As for `encode_tokens`.
            reduce: What to make of the token states on the device, under the same protection against out of memory.

        Raises:
            ConfigError, DataError: As for `encode_tokens`.
        """
        self._check_tasks(tasks, len(ids))
        flat, starts, lengths = _split(ids)
        order = order_rows(lengths)
        ordered = lengths[order]
        place = 0
        while place < len(order):
            stop = take(ordered, place, self._budget.budget_tokens)
            rows = order[place:stop]
            started = time.perf_counter()
            try:
                batch = self._pack(flat, starts, rows, ordered[place:stop], tasks)
                value = self._forward(batch, reduce)
            except torch.OutOfMemoryError as error:
                self._on_out_of_memory(rows, int(ordered[place:stop].sum()), error)
                continue
            self._count(batch, started)
            yield MicroBatch(rows, batch, value)
            place = stop

    def _pack(
        self, flat: npt.NDArray[np.int32], starts: Ints, rows: Ints, lengths: Ints, tasks: Sequence[str | None] | None
    ) -> PackedBatch:
        ends = np.cumsum(lengths)
        places = np.arange(int(ends[-1])) + np.repeat(starts[rows] - (ends - lengths), lengths)
        return pack(flat[places], lengths, device=self.compute.device, tasks=self._row_tasks(tasks, rows), numbers=rows)

    def _forward(self, batch: PackedBatch, reduce: Reduce | None) -> torch.Tensor:
        with torch.inference_mode():
            value = self.family.forward(batch)
            if reduce is not None:
                value = reduce(value, batch)
            if self._budget.racing and self.compute.device.type == "cuda":
                torch.cuda.synchronize(self.compute.device)
        return value

    def _row_tasks(self, tasks: Sequence[str | None] | None, rows: Ints) -> list[str | None] | None:
        if tasks is not None:
            return [tasks[int(row)] for row in rows]
        return None if self.spec.task is None else [self.spec.task] * len(rows)

    def _check_tasks(self, tasks: Sequence[str | None] | None, rows: int) -> None:
        if tasks is None:
            return
        if len(tasks) != rows:
            raise ConfigError(f"{len(tasks)} tasks for {rows} rows: give one task per row, or one for all.")
        for task in {task for task in tasks if task is not None}:
            check_task(task, self.spec.tasks, where=self.spec.model)

    def _count(self, batch: PackedBatch, started: float) -> None:
        seconds = time.perf_counter() - started
        tokens = len(batch.ids)
        self._budget.observe(tokens, seconds)
        seen = self._stats
        self._stats = replace(
            seen,
            rows=seen.rows + batch.rows,
            tokens=seen.tokens + tokens,
            micro_batches=seen.micro_batches + 1,
            seconds=seen.seconds + seconds,
        )

    def _on_out_of_memory(self, rows: Ints, tokens: int, error: torch.OutOfMemoryError) -> None:
        self._stats = replace(self._stats, out_of_memory=self._stats.out_of_memory + 1)
        if len(rows) == 1:
            raise DataError(
                f"row {int(rows[0])} with {tokens} tokens does not fit the memory of {self.compute.device} even alone. "
                "Lower max_tokens, use a larger device, or run fewer processes on it."
            ) from error
        self._budget.out_of_memory(tokens)
        if self.compute.device.type == "cuda":
            torch.cuda.empty_cache()


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
