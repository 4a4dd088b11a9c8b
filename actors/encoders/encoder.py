"""A loaded model that encodes texts or token ids as float32 unit vectors.

The encode actors call `encode_tokens`, or `encode_documents` if texts are cut into chunks. Notebooks and the search
command call `encode` and `encode_chunks`. This module only connects parts: `spec` describes the model, the family computes,
and `running` forms the micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from actors.batching.budget import BudgetController
from actors.encoders.build import Family, LateFamily, RowFamily, build_family, open_eyes
from actors.encoders.chunked import ChunkVector, chunk_vectors, encode_documents
from actors.encoders.clusters import pooled
from actors.encoders.compute.device import Compute, find_compute, fitting
from actors.encoders.compute.fused import fuses
from actors.encoders.compute.malloc import tune_malloc
from actors.encoders.compute.transfer import Departures
from actors.encoders.finite import UnfitVectors, refuse_unfit
from actors.encoders.late import LateForward, LateRows, lists_of
from actors.encoders.lora.files import takes_no_adapters
from actors.encoders.lora.registry import AdapterRegistry
from actors.encoders.lora.store import AdapterStore
from actors.encoders.packed import PackedBatch
from actors.encoders.pictured import PictureRows, pictures_of
from actors.encoders.pooling import finish, pool
from actors.encoders.row_tasks import check_tasks, tasks_at, tasks_of
from actors.encoders.running import MicroBatch, Reduce, Runner, Stats, check_token_ids
from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError
from actors.images.objects import Image, content_of
from actors.images.settings import PictureSettings
from actors.inputs import PAGE_CONTENT, load_preparer, prepare_texts
from actors.schema import INPUT_IDS, PREFIX, TASK
from actors.text.chunk_rules import By, Chunking
from actors.text.chunks import Chunker, resolve
from actors.text.tokenizer import Tokenizer
from actors.vectors import Encoded, dense

Floats = npt.NDArray[np.float32]


class Encoder:
    """A loaded model. Not thread-safe: use one per process or per thread.

    Args:
        spec: The model to load.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Torch threads of this process on a CPU; None keeps the process's setting.
        family: A family already built (tests, and code that shares weights); None loads the spec's.
        compute: Device and type; None chooses them from the spec's precision and this machine.
        budget: The controller of the token budget; None creates one for the device.
        one_task: No row has another task than the spec's. Its adapter is then merged into the weights on a GPU, if
            `fused.fuses`.

    Raises:
        ConfigError: The device is not available, or too small for the model.
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
        one_task: bool = False,
    ) -> None:
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads is {threads}, must be 1 or more (or left out).")
            torch.set_num_threads(threads)
        self.spec = spec
        self.compute = compute or find_compute(spec.precision, device)
        if self.compute.device.type == "cpu":
            tune_malloc()
        # A family that was passed in may have another word table than the checkpoint.
        self._vocab_size = spec.vocab_size if family is None else 0
        with fitting(self.compute):
            self.family = family or build_family(spec, self.compute)
        store = getattr(self.family, "adapters", None)
        if one_task and spec.task is not None and fuses(self.compute.device) and isinstance(store, AdapterStore):
            store.merge(spec.task, self.family)
        self._runner = Runner(self.compute, budget or BudgetController(self.compute.ladder))
        self._departures = Departures(self.compute.device) if self.compute.device.type == "cuda" else None
        self._tokenizer: Tokenizer | None = None

    @property
    def dim(self) -> int:
        """Width of the vectors of the first output."""
        return self.spec.outputs[0].dim

    @property
    def stats(self) -> Stats:
        """Counts and times since the model was loaded."""
        return self._runner.stats

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded on first use."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.spec)
        return self._tokenizer

    @property
    def adapters(self) -> AdapterRegistry:
        """Registry to add, replace and remove LoRA adapters of the loaded model.

        Raises:
            ConfigError: The family supports no adapters.
        """
        store = getattr(self.family, "adapters", None)
        if not isinstance(store, AdapterStore):
            raise takes_no_adapters(self.spec.model, self.spec.family)
        return AdapterRegistry(self, store)

    def use_spec(self, spec: ModelSpec) -> None:
        """Switches to another spec of the same loaded model: tasks, prompts and adapters may differ, nothing else."""
        self.spec = spec
        if self._tokenizer is not None:
            self._tokenizer.spec = spec

    def encode(self, texts: Sequence[str], task: str | Sequence[str | None] | None = None) -> Floats:
        """Encodes texts.

        Args:
            texts: Any strings.
            task: One of the model's tasks for all, or one per text (None in the list: the model without a task); None
                uses the spec's.

        Returns:
            float32 [n, dim], of unit length unless `ModelSpec.encodes_many`, in the order of `texts`.

        Raises:
            ConfigError: The model does not have the task, or the number of tasks is not the number of texts.
            UnfitVectors: A `DataError` that lists, by index, the texts whose vectors are not finite or all zeros.
        """
        tasks = tasks_of(self.spec, texts, task, method="encode")
        return self.encode_tokens(self.tokenizer.tokenize(texts, tasks).ids, tasks)

    def encode_images(self, images: Sequence[Image], task: str | None = None) -> Floats:
        """Encodes pictures.

        Args:
            images: Files by their bytes or paths, Pillow images, or uint8 arrays [height, width, 3].
            task: As for `encode`.

        Returns:
            float32 [n, dim], each of unit length, in the order of `images`.

        Raises:
            ConfigError: The model takes texts only, has no such task, or does not fit the device; or Pillow is not installed.
            DataError: A picture cannot be decoded, or does not fit the device's memory even alone.
            UnfitVectors: As for `encode`.
        """
        spec = self.spec.seeing()
        tasks = None if task is None else [task] * len(images)
        check_tasks(self.spec, tasks, len(images))
        rows = load_preparer(spec).prepare(self._see(images)).rows
        return self.encode_tokens(rows.column(INPUT_IDS).combine_chunks(), tasks, pictures_of(rows))

    def _see(self, images: Sequence[Image]) -> pa.ChunkedArray:
        with fitting(self.compute):
            open_eyes(self.family, self.spec, self.compute)
        return content_of(images, cast("PictureSettings", self.spec.seeing().pictures))

    def encode_multi(self, rows: Sequence[str | Image], task: str | Sequence[str | None] | None = None) -> list[Floats]:
        """Encodes texts and pictures as many vectors each, for late interaction.

        Args:
            rows: Each str is a text, and everything else a picture, as for `encode_images`.
            task: As for `encode`.

        Returns:
            float32 [n, width] for each row, each vector of unit length, in the order of `rows`.

        Raises:
            ConfigError: The spec's `outputs` lack multi; or as for `encode_images`.
            DataError, UnfitVectors: As for `encode_images`.
        """
        tasks = tasks_of(self.spec, rows, task, method="encode_multi")
        pictures = [row for row in rows if not isinstance(row, str)]
        if pictures:
            seen = iter(self._see(pictures).chunks)
            content = [pa.array([{"text": row}], PAGE_CONTENT) if isinstance(row, str) else next(seen) for row in rows]
            prepared = load_preparer(self.spec.seeing()).prepare(pa.chunked_array(content), tasks).rows
        else:
            prepared = prepare_texts(self.spec, cast("Sequence[str]", rows), tasks)
        if tasks is not None:
            prepared = prepared.append_column(TASK, pa.array(tasks, pa.string()))
        return lists_of(pooled(self._output(prepared, "multi"), prepared, self.spec))

    def _output(self, rows: pa.Table, kind: str) -> pa.Array:
        kinds = [column.kind for column in self.spec.outputs]
        if kind not in kinds:
            raise ConfigError(
                f"the encoder of {self.spec.model} was loaded for outputs {', '.join(kinds)}; load it with {kind} in outputs."
            )
        encoded = self.encode_rows(rows)
        if encoded.reasons:
            row, reason = next(iter(sorted(encoded.reasons.items())))
            raise UnfitVectors(f"row {row} has no vector: {reason}.", encoded.reasons)
        return encoded.outputs[kinds.index(kind)]

    def encode_rows(self, rows: pa.Table, chunking: Chunking | None = None) -> Encoded:
        """Encodes rows of a unit. This is the pipeline's hot path.

        Args:
            rows: Columns that the preparer of the model's modality made, and maybe `TASK`.
            chunking: The rules that cut the texts, if they are cut.

        Raises:
            ConfigError, DataError: As for `encode_tokens`.
        """
        tasks = rows.column(TASK).to_pylist() if TASK in rows.column_names else None
        if isinstance(self.family, RowFamily):
            return self.family.encode_rows(rows, tasks)
        if self.spec.makes("multi"):
            ids, pictures = rows.column(INPUT_IDS).combine_chunks(), pictures_of(rows)
            late = LateRows(self.spec, rows, ids, tasks)
            family = LateForward(cast("LateFamily", self.family), self.spec)
            micros = self.micro_batches(ids, tasks, family=family, side_by_side=True, pictures=pictures)
            late.fill(self._runner.on_host(micros, self._departures))
            return late.encoded()
        try:
            if chunking is not None:
                return Encoded((dense(self.encode_documents(rows, chunking, tasks)),))
            return Encoded(
                (dense(self.encode_tokens(rows.column(INPUT_IDS).combine_chunks(), tasks, pictures_of(rows))),)
            )
        except UnfitVectors as error:
            return Encoded((dense(error.vectors),), error.reasons)

    def encode_tokens(
        self, ids: pa.ListArray, tasks: Sequence[str | None] | None = None, pictures: PictureRows | None = None
    ) -> Floats:
        """Encodes rows of token ids.

        Args:
            ids: `list<int32>` [n], as `Tokenizer.tokenize` returns them; no row null or empty.
            tasks: One per row (None in the list: the model without a task); None uses the spec's.
            pictures: Those of the rows; None if all are texts.

        Returns:
            float32 [n, dim], each of unit length, in the order of `ids`.

        Raises:
            ConfigError: As for `encode`.
            DataError: A row has no tokens, has a token that the model does not have, or does not fit the device's
                memory even alone.
            UnfitVectors: A `DataError` that lists, by number, the rows whose vectors are not finite or all zeros, and
                carries the vectors of the other rows.
        """
        if not self.spec.makes("dense"):
            raise ConfigError(
                f"the encoder of {self.spec.model} was loaded for outputs multi: use encode_multi, or load it with dense in outputs."
            )
        if self.spec.encodes_many:
            columns = {INPUT_IDS: ids} | ({} if tasks is None else {TASK: pa.array(tasks, pa.string())})
            if self.spec.multi_keep == "content":
                columns[PREFIX] = pa.array(self.tokenizer.prompt_lengths(ids, tasks))
            return self.spec.outputs[0].matrix(self._output(pa.table(columns), "dense"))
        vectors = np.empty((len(ids), self.spec.dim), np.float32)
        micros = self.micro_batches(ids, tasks, reduce=self._to_vectors, side_by_side=True, pictures=pictures)
        for rows, values in self._runner.on_host(micros, self._departures):
            vectors[rows] = values
        return refuse_unfit(vectors, "row {}".format)

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
        """Cuts texts into chunks and encodes each chunk. Nothing is truncated.

        Args:
            texts: Any strings, of any length.
            task: As for `encode`.
            mode: "late" runs the whole text through the model, in windows if it is longer than the model's limit, and
                averages the token states of each chunk. "split" encodes each chunk alone.
            max_tokens: Tokens of text in a chunk; None means 512, or in split mode the model's limit if that is less.
            by: Preferred end of a chunk: "sentence", "paragraph" or "tokens".
            overlap_tokens: Late mode only: tokens that two windows share. None means 512, or a quarter of a window if
                that is less.

        Returns:
            One list of chunks per text, in the order of `texts`. `text[chunk.start:chunk.end]` is the chunk, and the
            chunks joined are the text. An empty text has one empty chunk.

        Raises:
            ConfigError: A setting is invalid or does not fit the model, or as for `encode`.
            UnfitVectors: As for `encode_documents`.
        """
        tasks = tasks_of(self.spec, texts, task, method="encode_chunks")
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
        """Encodes all chunks of texts.

        Args:
            documents: One row per text, as `Chunker.chunk` returns them.
            chunking: The rules that cut them.
            tasks: One per row; None uses the spec's.

        Returns:
            float32 [chunks of all texts, dim], each of unit length, text by text.

        Raises:
            ConfigError, DataError: As for `encode_tokens`; the numbers in `UnfitVectors` are those of chunks.
        """
        check_tasks(self.spec, tasks, documents.num_rows)
        return encode_documents(self, documents, chunking, tasks)

    def encode_token_states(self, ids: pa.ListArray, tasks: Sequence[str | None] | None = None) -> list[Floats]:
        """Returns the hidden states of every token, float32 [tokens of the row, hidden] per row, in the order of `ids`.

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
        self,
        ids: pa.ListArray,
        tasks: Sequence[str | None] | None = None,
        *,
        reduce: Reduce | None = None,
        side_by_side: bool = False,
        pictures: PictureRows | None = None,
        family: Family | None = None,
    ) -> Iterator[MicroBatch]:
        """Runs all rows through the model and yields token states, longest rows first.

        After an out-of-memory error the budget is halved and the same rows are tried again, down to one row.

        Args:
            ids: As for `encode_tokens`.
            tasks: As for `encode_tokens`.
            reduce: Function of the token states, called on the device; its out-of-memory errors are handled too.
            side_by_side: On a CPU, run micro-batches on all torch threads at once, before the caller asks for them.
            pictures: As for `encode_tokens`.
            family: What computes in place of the encoder's own.

        Raises:
            ConfigError, DataError: As for `encode_tokens`.
        """
        check_tasks(self.spec, tasks, len(ids))
        check_token_ids(ids, self._vocab_size)
        yield from self._runner.run(
            family or self.family,
            ids,
            tasks_of=lambda rows: tasks_at(self.spec, tasks, rows),
            reduce=reduce,
            side_by_side=side_by_side,
            pictures_of=None if pictures is None else pictures.take,
        )
