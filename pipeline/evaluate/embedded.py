"""Texts and pictures of an evaluation, embedded by backfills into tables of their own.

A backfill is distributed, resumes by unit, and never encodes a text twice, so an evaluation has these properties too. The
tables lie in `<folder>/embeddings/<model>-<fingerprint>/<name>/`, beside the Parquet files that they were made from. Another
model or setting has another fingerprint, and so tables of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.encoders import load_encoder
from actors.encoders.preprocessor import chosen
from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError
from actors.schema import ID
from actors.source.blank import blank_rows
from actors.unit.table_files import read_stored
from actors.vectors import Floats, VectorColumn
from pipeline.execute.progress import Reporter
from pipeline.job import fingerprint
from pipeline.job.config import Job
from pipeline.job.load import load_job
from pipeline.run.backfill import backfill
from pipeline.run.context import describe_model
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table import delta_table

TEXT, PICTURE = "text", "image"
_UNSET = "unused"
_PLACES = {"model", "revision"}


class EmbeddedTexts:
    """Tables of texts and pictures that a model encoded.

    Args:
        model: Hub id or local directory.
        settings: `key=value` of the job, as in `encoder.dim=256`.
        folder: URL of the folder for the tables.
        reporter: Receives the progress of the backfills.

    Attributes:
        spec: The model with its own task.
        changed: The settings that change vectors and are not the defaults, by key.
        encoded: Number of texts and pictures that were encoded for this object.
        blank: Number of documents without a text, which no table has.

    Raises:
        ConfigError: a setting is wrong.
        ModelError: the model cannot be found.
    """

    def __init__(self, model: str, settings: Sequence[str], folder: str, reporter: Reporter) -> None:
        self._model, self._settings, self._folder, self._reporter = model, tuple(settings), folder, reporter
        # Model, and folder of its tables, by task, for texts and for pictures.
        self._described: dict[tuple[str | None, bool], tuple[ModelSpec, str]] = {}
        job = self._job(_UNSET, _UNSET, None, pictures=True)
        self.spec = self._describe(None)[0]
        sections = {"encoder": job.encoder, "chunking": job.chunking}
        self.changed: dict[str, Any] = {
            f"{name}.{key}": value
            for name, section in sections.items()
            for key, value in section.model_dump(mode="json", exclude_defaults=True, exclude=_PLACES).items()
        }
        self.encoded = self.blank = 0
        self._known: dict[str, dict[str, Floats]] = {}  # vectors by the hash of their text, by table

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

    def vectors(self, texts: Sequence[str], task: str | None, name: str) -> Floats:
        """Return the vectors of texts, float32 [texts, dim]; a text that the table has is not encoded again.

        Args:
            texts: Any texts, also blank ones.
            task: Task of the model.
            name: Name of the table.

        Raises:
            ConfigError: the model has no single vector of a text.
            VectideError: as for a backfill.
        """
        hashes = [blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]
        place, wanted = self._place(task, name), dict(zip(hashes, texts, strict=True))
        known = self._known.setdefault(place, {})
        digests = list(wanted)
        blank = [digests[row] for row in blank_rows(pa.array(wanted.values(), pa.string()))]
        if blank := [digest for digest in blank if digest not in known]:  # a backfill would quarantine them
            encoder = load_encoder(self._describe(task)[0])
            known.update((digest, encoder.encode([wanted[digest]])[0]) for digest in blank)
        known.update(self._stored(place, wanted.keys() - known.keys()))
        if missing := [digest for digest in wanted if digest not in known]:
            there = self._written(place)
            if new := [digest for digest in missing if digest not in there]:
                part = blake2b("".join(new).encode(), digest_size=8).hexdigest()
                self._write(place, part, pa.table([new, [wanted[digest] for digest in new]], [ID, TEXT]))
            self._embed(place, task)
            known.update(self._stored(place, missing))
        return np.stack([known[digest] for digest in hashes])

    def documents(self, parts: Iterable[pa.Table], task: str | None, name: str, *, pictures: bool = False) -> Searcher:
        """Return a search over documents, which are embedded unless they are already.

        Args:
            parts: Ids in `ID`, and texts in `TEXT` or pictures in `PICTURE`, as `source.image` takes them. The same parts
                have the same documents each time.
            task: Task of the model.
            name: Name of the table.
            pictures: Whether the documents are pictures.

        Raises:
            ConfigError: they are pictures, and the model takes texts only.
            VectideError: as for a backfill.
        """
        place = self._place(task, name, pictures=pictures)
        for number, part in enumerate(parts):
            rows = part
            if not pictures:
                blank = blank_rows(rows[TEXT].combine_chunks())
                self.blank += len(blank)
                rows = rows.take(pa.array(np.setdiff1d(np.arange(rows.num_rows), blank)))
            self._write(place, f"{number:06}", rows)
        return Searcher(self._embed(place, task, pictures=pictures), cache_size=None)

    def _job(self, source: str, table: str, task: str | None, *, pictures: bool = False) -> Job:
        keys: dict[str, Any] = {"source.uri": source, "source.id": ID, "table.uri": table}
        keys |= {"source.image": PICTURE} if pictures else {"source.text": [TEXT]}
        keys |= {"encoder.model": self._model, "run.max_quarantined": 0, "table.precision": "float32"}
        keys |= {} if task is None else {"encoder.task": task}
        job = load_job(None, settings=self._settings, defaults=keys)
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

    def _place(self, task: str | None, name: str, *, pictures: bool = False) -> str:
        """Return the URL of the folder of a table and its texts."""
        folder = self._describe(task, pictures=pictures)[1]
        return storage.join(self._folder, "embeddings", folder, safe(name))

    def _write(self, place: str, part: str, rows: pa.Table) -> None:
        """Write a file of texts unless it is there: a file that changes would be embedded anew."""
        url = storage.join(place, "texts", f"{part}.parquet")
        if not storage.exists(url):
            sink = pa.BufferOutputStream()
            pq.write_table(rows, sink, compression="zstd")
            storage.put(url, bytes(sink.getvalue()))

    def _written(self, place: str) -> set[str]:
        """Return the ids in the files of texts: a run that was stopped may not have embedded them yet."""
        files = [shard.path for shard in storage.walk(storage.join(place, "texts"))]
        parts = [pq.read_table(pa.BufferReader(storage.read(file)), columns=[ID]) for file in files]
        return {row_id for part in parts for row_id in part[ID].to_pylist()}

    def _embed(self, place: str, task: str | None, *, pictures: bool = False) -> str:
        """Embed the files of texts or pictures that the table does not have, and return its URL."""
        table = storage.join(place, "table")
        job = self._job(storage.join(place, "texts", "*.parquet"), table, task, pictures=pictures)
        run = backfill if delta_table.open_table(table) is None else refresh
        self.encoded += run(job, self._reporter).encoded
        return table

    def _stored(self, place: str, wanted: Iterable[str]) -> dict[str, Floats]:
        """Return vectors of a table by id."""
        url, ids = storage.join(place, "table"), pa.array(wanted, pa.string())
        table = delta_table.open_table(url) if len(ids) else None
        column, found = self.dense, dict[str, Floats]()
        for path in [] if table is None else delta_table.file_sizes(table):
            rows = read_stored(url, path, [ID], [column])
            rows = rows.filter(pc.is_in(rows[ID], value_set=ids))
            for batch in rows.to_batches():
                cells = batch.column(column.name)
                vectors = column.unit_rows(cells) if column.normalized else column.matrix(cells)
                found.update(zip(batch.column(ID).to_pylist(), vectors, strict=True))
        return found


def safe(name: str) -> str:
    """Return a name for a file, of the end of a path or of the name of a task."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-60:].strip("_.")
