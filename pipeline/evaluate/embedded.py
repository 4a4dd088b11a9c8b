"""Texts and pictures of an evaluation, embedded into tables of their own, and their vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.encoders import load_encoder
from actors.schema import ID
from actors.source.blank import blank_rows
from actors.unit.table_files import read_stored
from actors.vectors import Floats
from pipeline.execute.progress import Reporter
from pipeline.run.text_tables import TEXT, TextTables
from pipeline.search.search import Searcher
from pipeline.table import delta_table


class EmbeddedTexts(TextTables):
    """Tables of texts and pictures that a model encoded, and their vectors; see `TextTables`.

    Args:
        model: Hub id or local directory.
        settings: `key=value` of the job, as in `encoder.dim=256`.
        folder: URL of the folder for the tables.
        reporter: Receives the progress of the backfills.

    Attributes:
        blank: Number of documents without a text, which no table has.
    """

    def __init__(self, model: str, settings: Sequence[str], folder: str, reporter: Reporter) -> None:
        keys = {"run.max_quarantined": 0, "table.precision": "float32"}
        super().__init__(model, settings, folder, reporter, keys)
        self.blank = 0
        self._known: dict[str, dict[str, Floats]] = {}  # vectors by the hash of their text, by table

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
        place, wanted = self.place(task, name), dict(zip(hashes, texts, strict=True))
        known = self._known.setdefault(place, {})
        digests = list(wanted)
        blank = [digests[row] for row in blank_rows(pa.array(wanted.values(), pa.string()))]
        if blank := [digest for digest in blank if digest not in known]:  # a backfill would quarantine them
            encoder = load_encoder(self.described(task))
            known.update((digest, encoder.encode([wanted[digest]])[0]) for digest in blank)
        known.update(self._stored(place, wanted.keys() - known.keys()))
        if missing := [digest for digest in wanted if digest not in known]:
            there = self._ids(place)
            if new := [digest for digest in missing if digest not in there]:
                part = blake2b("".join(new).encode(), digest_size=8).hexdigest()
                self.write(place, part, pa.table([new, [wanted[digest] for digest in new]], [ID, TEXT]))
            self.embed(place, task)
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
        place = self.place(task, name, pictures=pictures)
        for number, part in enumerate(parts):
            rows = part
            if not pictures:
                blank = blank_rows(rows[TEXT].combine_chunks())
                self.blank += len(blank)
                rows = rows.take(pa.array(np.setdiff1d(np.arange(rows.num_rows), blank)))
            self.write(place, f"{number:06}", rows)
        return Searcher(self.embed(place, task, pictures=pictures), cache_size=None)

    def _ids(self, place: str) -> set[str]:
        """Return the ids in the files of texts."""
        parts = [pq.read_table(pa.BufferReader(storage.read(file)), columns=[ID]) for file in self.written(place)]
        return {row_id for part in parts for row_id in part[ID].to_pylist()}

    def _stored(self, place: str, wanted: Iterable[str]) -> dict[str, Floats]:
        """Return vectors of a table by id."""
        url, ids = self.table(place), pa.array(wanted, pa.string())
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
