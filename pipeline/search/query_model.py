"""The query side of the model that encoded a version of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actors.encoders.finite import UnfitVectors
from actors.encoders.spec import ModelSpec, describe
from actors.errors import ConfigError, DataError, ModelError
from actors.inputs import prepare_texts
from actors.vectors import Kind, dense
from pipeline.job import fingerprint
from pipeline.job.encoder import Encoder as EncoderSection
from pipeline.table import delta_table

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

# A question: a text, or the bytes of a picture's file.
Question = str | bytes


def query_model(
    embedding_spec: delta_table.EmbeddingSpec, url: str, *, model: str | None = None, adapter: str | None = None
) -> ModelSpec:
    """Return the query side of the model that encoded a version. Adapters for rows of other tasks are not needed.

    Args:
        embedding_spec: Embedding spec of the version.
        url: URL of the table, for messages.
        model: Location of the weights, if they have moved since the job; they must be the same weights.
        adapter: Location of the adapter of the table's task, if it has moved; it must be the same one.

    Raises:
        ConfigError: the table's task has no adapter.
        ModelError: the model cannot be found, or is another one.
    """
    settings = EncoderSection.model_validate(embedding_spec.encoder).settings()
    adapters = {
        name: replace(each, path=adapter or each.path)
        for name, each in settings.adapters.items()
        if settings.task in each.prompts(name)
    }
    if adapter is not None and not adapters:
        tasks = f"; its rows name their tasks, {', '.join(settings.adapters)} among them" if settings.adapters else ""
        raise ConfigError(
            f"--adapter {adapter!r}: a search of {url!r} encodes questions for the task {settings.task!r}, which has no added "
            f"adapter{tasks}. Leave --adapter out"
        )
    if model is not None:
        settings = replace(settings, model=model, revision=None)
    try:
        spec = describe(replace(settings, adapters=adapters))
    except ModelError as error:
        of_queries = str(error).startswith(f"adapter {f'{settings.task}.query'!r}")
        if "directory on this machine" not in str(error) or of_queries:
            raise
        option = "--adapter" if str(error).startswith("adapter ") else "--model"
        raise ModelError(f"{error} If it has moved, give its new place with {option}.") from None
    # The settings of pictures are compared only where the table has some.
    lineage = (spec.seeing() if embedding_spec.lineage.get("modality") == "page" else spec).lineage()
    table_lineage = {key: value for key, value in embedding_spec.lineage.items() if key in lineage}
    if fingerprint.fingerprint(lineage) != fingerprint.fingerprint(table_lineage):
        different = [
            key for key in lineage if lineage[key] != table_lineage.get(key) and key not in ("model", "revision")
        ]
        what, option, place = "model", "--model", spec.model
        if different == ["adapter_sha256"]:
            what, option, place = "adapter", "--adapter", spec.adapters[0].path
        raise ModelError(
            f"{place!r} is not the {what} that encoded {url!r} ({', '.join(different)} differ); give the right one with {option}"
        )
    return spec.query_side()


class QueryModel:
    """The model for queries, loaded at first use; its vision tower at the first picture."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        self.spec = spec
        self._device = device
        self._lock = Lock()
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """The loaded model."""
        with self._lock:  # two threads that search at once load it once
            if self._encoder is None:
                from actors.encoders import load_encoder

                self._encoder = load_encoder(self.spec, device=self._device)
            return self._encoder

    def encode(self, questions: Sequence[Question], kinds: Sequence[Kind]) -> dict[Kind, pa.Array]:
        """Return the vectors of questions by the kind of output. Each kind is one of the model's outputs.

        Raises:
            ConfigError: a question is a picture, and the model takes texts only.
            DataError: a picture cannot be decoded, or the vector of a question is not finite or all zeros.
        """
        numbers = sorted(range(len(questions)), key=lambda number: isinstance(questions[number], bytes))  # texts first
        texts = [question for question in questions if isinstance(question, str)]
        pictures = [question for question in questions if isinstance(question, bytes)]
        columns = {column.kind: column for column in self.spec.outputs if column.kind in kinds}
        parts: dict[Kind, list[pa.Array]] = {kind: [] for kind in columns}
        if texts:
            encoded = self.encoder.encode_rows(prepare_texts(self.spec, texts))
            for number, reason in encoded.reasons.items():
                raise DataError(f"the question {texts[number]!r} cannot be encoded: {reason}")
            for output, array in zip(self.spec.outputs, encoded.outputs, strict=True):
                if output.kind in parts:
                    parts[output.kind].append(array)
        if pictures:
            try:
                for kind, of_kind in parts.items():
                    of_kind.append(self._encode_pictures(pictures, kind))
            except UnfitVectors as error:
                number, reason = next(iter(error.reasons.items()))
                raise DataError(
                    f"the question of {len(pictures[number]):,} bytes cannot be encoded: {reason}"
                ) from None
        order = pa.array(np.argsort(numbers))
        return {
            kind: pa.concat_arrays([array.cast(columns[kind].type) for array in of_kind]).take(order)
            for kind, of_kind in parts.items()
        }

    def _encode_pictures(self, pictures: list[bytes], kind: Kind) -> pa.Array:
        if self.spec.pictures is None:
            raise ConfigError(
                f"the question is a picture, and the table's model {self.spec.model} takes texts only; ask with a text"
            )
        encoder = self.encoder
        with self._lock:  # of two threads, only one loads the vision tower
            if kind == "dense":
                return dense(encoder.encode_images(pictures))
            vectors = encoder.encode_multi(pictures)
        offsets = np.cumsum([0, *map(len, vectors)], dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), dense(np.concatenate(vectors)))
