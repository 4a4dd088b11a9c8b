"""Exact top-k over the current version of a table, with the model that its own lineage names.

Called by `jobs search` and by people in a notebook. Every vector is compared: no index, nothing approximate, one pass
over the files with memory for one batch. For tables that are asked many times a second, feed a vector index instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors import storage
from actors.encoders.finite import UnfitVectors
from actors.encoders.spec import ModelSpec, describe
from actors.errors import ConfigError, DataError, ModelError, TableConflict
from actors.schema import EMBEDDING, HASH, ID
from pipeline.job import fingerprint
from pipeline.job.config import Encoder as EncoderSection
from pipeline.scan.top_k import TopK, unit_vectors
from pipeline.search.sql_filter import parse_where
from pipeline.table import delta_table

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


def query_model(embedding_spec: delta_table.EmbeddingSpec, url: str, *, model: str | None = None) -> ModelSpec:
    """The query side of the model that a version was made with.

    Args:
        embedding_spec: Of the version.
        url: Of the table, for messages.
        model: Where the weights are now, if not where the job said; they must be the same weights.

    Raises:
        ModelError: the model cannot be found, or is another one.
    """
    section = EncoderSection.model_validate(embedding_spec.encoder)
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
    there = {key: value for key, value in embedding_spec.lineage.items() if key in here}
    if fingerprint.fingerprint(here) != fingerprint.fingerprint(there):
        different = [key for key in here if here[key] != there.get(key) and key not in ("model", "revision")]
        raise ModelError(
            f"{spec.model!r} is not the model that {url!r} was made with ({', '.join(different)} differ); name the "
            f"right one with --model"
        )
    return spec.query_side()


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
        self._table = delta_table.need_table(self.url, version)
        self.version = int(self._table.version())
        embedding_spec = delta_table.embedding_spec_of(self._table)
        if embedding_spec is None:
            raise TableConflict(f"{self.url!r} is a Delta table that vectide did not make: it names no model")
        self.lineage = embedding_spec.lineage
        self.spec = query_model(embedding_spec, self.url, model=model)
        self._device = device
        self._encoder: Encoder | None = None

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
            ConfigError: a question, `k` or `where` is wrong.
            DataError: a question's vector is not finite.
            StorageError: the store refused or failed.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; it must be 1 or more")
        for question in questions:
            if not question.strip():
                raise ConfigError(f"the question {question!r} is empty or nothing but white space; ask for something")
        dataset = self._table.to_pyarrow_dataset()
        names = [name for name in dataset.schema.names if name not in (EMBEDDING, HASH)]
        condition = None if where is None else parse_where(where, dataset.schema)
        try:
            queries = self.encoder.encode(list(questions))
        except UnfitVectors as error:
            number, reason = next(iter(error.reasons.items()))
            raise DataError(f"the question {questions[number]!r} cannot be searched for: {reason}") from None
        best = TopK(len(questions), k)
        batches = dataset.to_batches(columns=[*names, EMBEDDING], filter=condition, batch_size=BATCH_ROWS)
        with delta_table.asking(self._table):
            for batch in batches:
                if batch.num_rows:
                    best.add(queries @ unit_vectors(batch, queries.shape[1]).T, batch.drop_columns([EMBEDDING]))
        return [
            [
                Hit(values[ID], score, {name: value for name, value in values.items() if name != ID})
                for score, values in rows
            ]
            for rows in best.rows()
        ]
