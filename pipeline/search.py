"""Exact top-k over the current version of a table, with the model that its own lineage names.

Called by `jobs search` and by people in a notebook. Every vector is compared: no index, nothing approximate, one pass
over the files with memory for one batch. For tables that are asked many times a second, feed a vector index instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors import storage
from actors.encoders.spec import ModelSpec, describe
from actors.errors import ConfigError, ModelError, TableConflict
from actors.schema import EMBEDDING, HASH, ID
from pipeline import delta, fingerprint
from pipeline.config import Encoder as EncoderSection
from pipeline.where import parse_where

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Hit:
    """One row that was found.

    Attributes:
        score: Cosine of query and row, -1 to 1.
        columns: The other stored columns of the row, without its vector.
    """

    id: str
    score: float
    columns: dict[str, Any]


class Searcher:
    """A table and the model that made it.

    Args:
        table: URL of the table's folder.
        version: Which version to read; the current one when None.
        model: Where the weights are now, if not where the job said; they must be the same weights.
        device: "cpu", "cuda" or "auto".

    Raises:
        ConfigError: there is no table.
        TableConflict: the table was not made by vectide.
        ModelError: the model cannot be found, or is not the one that the table was made with.
    """

    def __init__(
        self, table: str, *, version: int | None = None, model: str | None = None, device: str = "auto"
    ) -> None:
        self.url = storage.absolute(table)
        opened = delta.open_table(self.url, version)
        if opened is None:
            raise ConfigError(f"there is no table at {self.url!r}; make one with `vectide backfill`")
        self._table = opened
        self.version = int(opened.version())
        self.lineage = delta.lineage_of(opened)
        if not self.lineage:
            raise TableConflict(f"{self.url!r} is a Delta table that vectide did not make: it names no model")
        self.spec = self._model(model)
        self._device = device
        self._encoder: Encoder | None = None

    def _model(self, model: str | None) -> ModelSpec:
        section = EncoderSection.model_validate(delta.encoder_of(self._table))
        spec = describe(
            model or section.model,
            revision=None if model else section.revision,
            task=section.task,
            dim=section.dim,
            max_tokens=section.max_tokens,
            dtype=section.dtype,
            allow_untrained_dim=section.allow_untrained_dim,
        )
        here = spec.lineage()
        there = {key: value for key, value in self.lineage.items() if key in here}
        if fingerprint.fingerprint(here) != fingerprint.fingerprint(there):
            different = [key for key in here if here[key] != there.get(key) and key not in ("model", "revision")]
            raise ModelError(
                f"{spec.model!r} is not the model that {self.url!r} was made with ({', '.join(different)} differ); "
                f"name the right one with --model"
            )
        return spec.query_side()

    @property
    def encoder(self) -> Encoder:
        """The model, on the query side of the table's task; loaded at first use."""
        if self._encoder is None:
            from actors.encoders import load_encoder

            self._encoder = load_encoder(self.spec, device=self._device)
        return self._encoder

    def search(self, questions: Sequence[str], *, k: int = 10, where: str | None = None) -> list[list[Hit]]:
        """The `k` rows nearest to each question, best first.

        Args:
            questions: Texts, any number.
            k: Hits for each, at least 1.
            where: An SQL condition over the stored columns, such as `lang = 'de' AND tokens > 10`.

        Raises:
            ConfigError: `k` or `where` is wrong.
            StorageError: the store refused or failed.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; it must be 1 or more")
        dataset = self._table.to_pyarrow_dataset()
        names = [name for name in dataset.schema.names if name not in (EMBEDDING, HASH)]
        condition = None if where is None else parse_where(where, dataset.schema)
        queries = self.encoder.encode(list(questions))
        best = _Best(len(questions), k)
        batches = dataset.to_batches(columns=[*names, EMBEDDING], filter=condition, batch_size=BATCH_ROWS)
        with delta.asking(self._table):
            for batch in batches:
                if batch.num_rows:
                    best.add(queries @ _vectors(batch, queries.shape[1]).T, batch.drop_columns([EMBEDDING]))
        return best.hits()


def _vectors(batch: pa.RecordBatch, dim: int) -> npt.NDArray[np.float32]:
    """float32 [rows, dim], unit length again after the rounding that they were stored with."""
    column = batch.column(EMBEDDING)
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    unit: npt.NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


class _Best:
    """The best rows of each query so far."""

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._found: list[list[tuple[float, dict[str, Any]]]] = [[] for _ in range(queries)]

    def add(self, scores: npt.NDArray[np.float32], rows: pa.RecordBatch) -> None:
        """Take in a batch: scores [queries, rows]."""
        count = min(self._k, scores.shape[1])
        top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        for query, found in enumerate(self._found):
            floor = found[-1][0] if len(found) == self._k else -np.inf
            wanted = [int(row) for row in top[query] if scores[query, row] > floor]
            if not wanted:
                continue
            taken = rows.take(pa.array(wanted)).to_pylist()
            found.extend((float(scores[query, row]), values) for row, values in zip(wanted, taken, strict=True))
            found.sort(key=lambda pair: (-pair[0], pair[1][ID]))
            del found[self._k :]

    def hits(self) -> list[list[Hit]]:
        return [
            [
                Hit(values[ID], score, {name: value for name, value in values.items() if name != ID})
                for score, values in rows
            ]
            for rows in self._found
        ]
