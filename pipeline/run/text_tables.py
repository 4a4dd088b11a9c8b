"""Tables of texts and pictures that a model encodes for another purpose than search, such as an evaluation or a curation.

A backfill is distributed, resumes by unit, and never encodes a text twice, so what uses these tables has these properties
too. They lie in `<folder>/embeddings/<model>-<fingerprint>/<name>/`, beside the Parquet files that they were made from.
Another model, task or setting has another fingerprint, and so tables of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.encoders.preprocessor import chosen
from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError, TaskMissing
from actors.schema import ID
from actors.vectors import VectorColumn
from pipeline.execute.progress import Reporter
from pipeline.job import fingerprint
from pipeline.job.config import Job
from pipeline.job.load import load_job
from pipeline.run.backfill import backfill
from pipeline.run.context import describe_model
from pipeline.run.refresh import refresh
from pipeline.run.routing import DOCUMENTS
from pipeline.table import delta_table

TEXT, PICTURE = "text", "image"
_UNSET = "unused"
_PLACES = {"model", "revision"}


class TextTables:
    """Tables of the texts and pictures that a model encodes.

    Args:
        model: Hub id or local directory.
        settings: `key=value` of the job, as in `encoder.dim=256`.
        folder: URL of the folder for the tables.
        reporter: Receives the progress of the backfills.
        keys: `section.key` to value of the job; settings override them.

    Attributes:
        spec: The model with its own task; that of documents if it needs one and no setting names one.
        changed: The settings that change vectors and are not the defaults, by key.
        encoded: Number of texts and pictures that were encoded for this object.

    Raises:
        ConfigError: a setting is wrong.
        ModelError: the model cannot be found.
    """

    def __init__(
        self, model: str, settings: Sequence[str], folder: str, reporter: Reporter, keys: Mapping[str, Any]
    ) -> None:
        self._model, self._settings, self._folder, self._reporter = model, tuple(settings), folder, reporter
        self._keys = dict(keys)
        # Model, and folder of its tables, by task, for texts and for pictures.
        self._described: dict[tuple[str | None, bool], tuple[ModelSpec, str]] = {}
        job = self._job(_UNSET, _UNSET, None, pictures=True)
        try:
            self.spec = self.described(None)
        except TaskMissing:
            self._keys["encoder.task"] = DOCUMENTS
            self.spec = self.described(None)
        sections = {"encoder": job.encoder, "chunking": job.chunking}
        self.changed: dict[str, Any] = {
            f"{name}.{key}": value
            for name, section in sections.items()
            for key, value in section.model_dump(mode="json", exclude_defaults=True, exclude=_PLACES).items()
        }
        self.encoded = 0

    @property
    def dense(self) -> VectorColumn:
        """The output with one vector of a text.

        Raises:
            ConfigError: there is none.
        """
        for column in self.spec.outputs:
            if column.kind == "dense":
                return column
        raise ConfigError(f"{self._model!r} makes only several vectors of a text, which only retrieval can compare")

    def described(self, task: str | None) -> ModelSpec:
        """Return the model for a task."""
        return self._describe(task)[0]

    def place(self, task: str | None, name: str, *, pictures: bool = False) -> str:
        """Return the URL of the folder of a table and its texts or pictures.

        Raises:
            ConfigError: they are pictures, and the model takes texts only.
        """
        return storage.join(self._folder, "embeddings", self._describe(task, pictures=pictures)[1], safe(name))

    @staticmethod
    def table(place: str) -> str:
        """Return the URL of the table in a folder of `place`."""
        return storage.join(place, "table")

    def write(self, place: str, part: str, rows: pa.Table) -> None:
        """Write a file with columns `ID` and `TEXT` or `PICTURE` unless it is there: one that changes would be embedded anew."""
        url = storage.join(place, "texts", f"{part}.parquet")
        if not storage.exists(url):
            sink = pa.BufferOutputStream()
            pq.write_table(rows, sink, compression="zstd")
            storage.put(url, bytes(sink.getvalue()))

    def written(self, place: str) -> list[str]:
        """Return the URLs of the files of texts. A run that was stopped may not have embedded them yet."""
        return [shard.path for shard in storage.walk(storage.join(place, "texts"))]

    def embed(self, place: str, task: str | None, *, pictures: bool = False) -> str:
        """Embed the texts or pictures that the table does not have, and return its URL.

        Raises:
            VectideError: as for a backfill.
        """
        table = self.table(place)
        job = self._job(storage.join(place, "texts", "*.parquet"), table, task, pictures=pictures)
        run = backfill if delta_table.open_table(table) is None else refresh
        self.encoded += run(job, self._reporter).encoded
        return table

    def _job(self, source: str, table: str, task: str | None, *, pictures: bool = False) -> Job:
        keys: dict[str, Any] = {"source.uri": source, "source.id": ID, "table.uri": table}
        keys |= {"source.image": PICTURE} if pictures else {"source.text": [TEXT]}
        keys |= {"encoder.model": self._model, **self._keys, **({} if task is None else {"encoder.task": task})}
        job = load_job(None, settings=self._settings, defaults=keys)
        if task is not None and job.encoder.task in self.spec.query_of:  # the task of documents is not that of queries
            job = job.model_copy(update={"encoder": job.encoder.model_copy(update={"task": task})})
        if pictures:
            return job
        # A job of texts refuses settings of pictures.
        unfit = {name: type(job.encoder).model_fields[name].default for name in chosen(job.encoder.settings())}
        return job.model_copy(update={"encoder": job.encoder.model_copy(update=unfit)})

    def _describe(self, task: str | None, *, pictures: bool = False) -> tuple[ModelSpec, str]:
        """Return the model for a task, and the name of the folder of its tables; the model is described once."""
        if (task, pictures) not in self._described:
            job = self._job(_UNSET, _UNSET, task, pictures=pictures)
            model = describe_model(job)
            model = model.seeing() if pictures else model
            lineage = fingerprint.lineage(model, fingerprint.chunking_of(model, job), job)
            name = f"{safe(model.model)}-{fingerprint.fingerprint(lineage)[:12]}"
            self._described[task, pictures] = model, name
        return self._described[task, pictures]


def safe(name: str) -> str:
    """Return a name for a file, of the end of a path or of the name of a task."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-60:].strip("_.")
