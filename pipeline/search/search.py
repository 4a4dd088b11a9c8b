"""Exact top-k search over a version of a table, with the model of the table's embedding spec.

Called by `jobs search` and by users of the library. It compares every vector, without an index or approximation, in one
pass over the files with memory for one batch. For many queries per second, load the table into a vector index instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as ds

from actors import storage
from actors.encoders.finite import UnfitVectors
from actors.encoders.spec import ModelSpec, describe
from actors.errors import ConfigError, DataError, ModelError, TableConflict
from actors.schema import CHUNK, HASH, ID, KEPT_TEXT, SHARD
from pipeline.job import fingerprint
from pipeline.job.encoder import Encoder as EncoderSection
from pipeline.scan.top_k import scan_top_k
from pipeline.search.sql_filter import parse_where
from pipeline.table import delta_table

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

BATCH_ROWS = 16_384
_TEXT_BATCH_ROWS = 1024
_FILE = "__filename"  # column of a pyarrow dataset: the file of a row


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of a search result.

    Attributes:
        score: Cosine of query and row, -1 to 1.
        columns: The other stored columns of the row, without its vector.
    """

    id: str
    score: float
    columns: dict[str, Any]


def query_model(embedding_spec: delta_table.EmbeddingSpec, url: str, *, model: str | None = None) -> ModelSpec:
    """Return the query side of the model that encoded a version.

    Args:
        embedding_spec: Embedding spec of the version.
        url: URL of the table, for messages.
        model: Location of the weights, if they have moved since the job; they must be the same weights.

    Raises:
        ModelError: the model cannot be found, or is another one.
    """
    settings = EncoderSection.model_validate(embedding_spec.encoder).settings()
    spec = describe(settings if model is None else replace(settings, model=model, revision=None))
    lineage = spec.lineage()
    table_lineage = {key: value for key, value in embedding_spec.lineage.items() if key in lineage}
    if fingerprint.fingerprint(lineage) != fingerprint.fingerprint(table_lineage):
        different = [
            key for key in lineage if lineage[key] != table_lineage.get(key) and key not in ("model", "revision")
        ]
        raise ModelError(
            f"{spec.model!r} is not the model that encoded {url!r} ({', '.join(different)} differ); give the right one "
            f"with --model"
        )
    return spec.query_side()


class Searcher:
    """Searches a table with the model that encoded it.

    Args:
        table: URL of the table's folder.
        version: Version to search; None: the current one.
        model: Location of the weights, if they have moved since the job; they must be the same weights.
        device: "cpu", "cuda" or "auto".

    Raises:
        ConfigError: there is no table.
        TableConflict: vectide did not create the table.
        ModelError: the model cannot be found, or is not the one that encoded the table.
    """

    def __init__(
        self, table: str, *, version: int | None = None, model: str | None = None, device: str = "auto"
    ) -> None:
        self.url = storage.absolute(table)
        self._table = delta_table.need_table(self.url, version)
        self.version = int(self._table.version())
        embedding_spec = delta_table.embedding_spec_of(self._table)
        if embedding_spec is None:
            raise TableConflict(f"{self.url!r} is a Delta table that vectide did not make: it has no embedding spec")
        self.lineage = embedding_spec.lineage
        self._outputs = embedding_spec.outputs
        self.spec = query_model(embedding_spec, self.url, model=model)
        self._device = device
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """The model for queries of the table's task, loaded at first use."""
        if self._encoder is None:
            from actors.encoders import load_encoder

            self._encoder = load_encoder(self.spec, device=self._device)
        return self._encoder

    def search(self, questions: Sequence[str], *, k: int = 10, where: str | None = None) -> list[list[Hit]]:
        """Return the `k` rows nearest to each question, best first.

        Args:
            questions: Texts, any number.
            k: Hits per question, at least 1.
            where: An SQL condition on the stored columns, such as `lang = 'de' AND tokens > 10`.

        Raises:
            ConfigError: a question, `k` or `where` is invalid.
            DataError: the vector of a question is not finite or all zeros.
            StorageError: the store refused or failed.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; it must be 1 or more")
        for question in questions:
            if not question.strip():
                raise ConfigError(f"the question {question!r} is empty or only white space; give it some text")
        dataset = self._table.to_pyarrow_dataset()
        hidden = {HASH, KEPT_TEXT, *(output.name for output in self._outputs)}
        names = [name for name in dataset.schema.names if name not in hidden]
        condition = None if where is None else parse_where(where, dataset.schema)
        try:
            queries = self.encoder.encode_queries(list(questions))
        except UnfitVectors as error:
            number, reason = next(iter(error.reasons.items()))
            raise DataError(f"the question {questions[number]!r} cannot be encoded: {reason}") from None
        columns = [*names, _FILE, self._outputs[0].name]
        batches = dataset.to_batches(columns=columns, filter=condition, batch_size=BATCH_ROWS)
        with delta_table.asking(self._table):
            best = scan_top_k(queries, batches, k, self._outputs[0])
            if KEPT_TEXT in dataset.schema.names:
                _add_texts(dataset, [values for rows in best for _, values in rows])
        order = [
            name for name in dataset.schema.names if name not in (ID, HASH) and (name in names or name == KEPT_TEXT)
        ]
        return [
            [Hit(values[ID], score, {name: values[name] for name in order}) for score, values in rows] for rows in best
        ]


def _add_texts(dataset: ds.Dataset, hits: list[dict[str, Any]]) -> None:
    """Add the text to each hit, from the files of the hits alone: texts are the largest column."""
    ids: dict[str, list[str]] = {}
    for hit in hits:
        ids.setdefault(hit[_FILE], []).append(hit[ID])
    keys = [_FILE, ID, SHARD, *([CHUNK] if CHUNK in dataset.schema.names else [])]
    texts: dict[tuple[Any, ...], str | None] = {}
    for fragment in dataset.get_fragments():
        if fragment.path in ids:
            wanted = ds.field(ID).isin(ids[fragment.path])
            rows = fragment.to_table(dataset.schema, [*keys, KEPT_TEXT], filter=wanted, batch_size=_TEXT_BATCH_ROWS)
            texts |= {tuple(row[key] for key in keys): row[KEPT_TEXT] for row in rows.to_pylist()}
    for hit in hits:
        hit[KEPT_TEXT] = texts.get(tuple(hit[key] for key in keys))
