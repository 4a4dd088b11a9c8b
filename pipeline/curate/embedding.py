"""Vectors of the texts of a curation, computed by backfills that are kept below the curated table.

Each distinct text is encoded once for a model and a task, also over several runs: a run with a looser threshold or a grown
corpus encodes the texts that are new. Sides of a model without tasks share their texts. Vectors are stored as bfloat16, so
a cosine differs from that of float32 by some 0.0003.

Rows of pairs and their vectors are not in one order. So the vectors that a step needs are copied to a temporary file on the
local disk, of two bytes a number, and read from there by position.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.errors import ConfigError
from actors.schema import ID
from actors.source.blank import blank_rows
from actors.storage.temp_dirs import disk_errors
from actors.unit.table_files import read_stored
from actors.vectors import Floats, VectorColumn
from pipeline.curate.database import insert
from pipeline.curate.steps.base import Seen, Step
from pipeline.execute.progress import NullReporter, Reporter
from pipeline.job.config import Run
from pipeline.run.routing import task_of
from pipeline.run.text_tables import TEXT, TextTables
from pipeline.table import delta_table

if TYPE_CHECKING:
    import duckdb

_ABILITY = "Retrieval"  # type of a task in mteb: queries search passages
# Facts of a model that determine its vectors.
_FACTS = ("weights_sha256", "tokenizer_sha256", "config_sha256", "family", "dim", "max_tokens", "precision")
_PART = 100_000  # texts of a file
_NAME = "texts"  # of a table: its folder names model and task


class SideVectors:
    """Vectors of the distinct texts of one side, on the local disk until this object is gone.

    Attributes:
        rows: Name of a DuckDB table with `n` and `place`; a row whose text has no vector, as a blank one, is not in it.
        column: The dense column of the model.
        texts: Number of texts with a vector.
    """

    def __init__(self, rows: str, column: VectorColumn, parts: Iterator[Floats]) -> None:
        self.rows, self.column = rows, column
        self.texts = 0
        with disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
            for part in parts:
                file.write((part.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes())
                self.texts += len(part)
            file.flush()
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.texts else None

    def vectors(self, places: npt.NDArray[np.int64]) -> Floats:
        """Return the stored vectors at some places, float32 [places, dim]; their lengths are 1 within rounding."""
        if self._map is None:
            return np.empty((0, self.column.dim), np.float32)
        high = np.frombuffer(self._map, np.uint16).reshape(-1, self.column.dim)[places]
        self._map.madvise(mmap.MADV_DONTNEED)  # else the process seems to grow by all that it has read
        return (high.astype(np.uint32) << np.uint32(16)).view(np.float32)


def text_tables(
    model: str,
    encoder: Mapping[str, Any],
    *,
    folder: str = "",
    run: Run | None = None,
    reporter: Reporter | None = None,
) -> TextTables:
    """Return the tables of a model; without a folder only to describe it.

    Args:
        model: Hub id or local directory.
        encoder: Other keys of the section `encoder` of a job.
        folder: URL of the folder of the tables.
        run: Distribution of the work.
        reporter: Receives the progress.

    Raises:
        ConfigError: a key is wrong, or the model makes no single vector of a text.
        ModelError: the model cannot be found.
    """
    if "model" in encoder:
        raise ConfigError("`encoder` of a step names a model; name it in the key `model` of the step")
    keys: dict[str, Any] = {
        f"run.{key}": value
        for key, value in (run or Run()).model_dump(mode="json", include=set(Run.model_fields)).items()
    }
    keys |= {f"encoder.{key}": value for key, value in encoder.items()}
    keys |= {"run.max_quarantined": 1, "table.precision": "bfloat16"}  # a text without a vector is counted by the step
    tables = TextTables(model, (), folder, reporter or NullReporter(), keys)
    tables.dense  # noqa: B018  (raises)
    return tables


def task_of_side(tables: TextTables, side: str) -> str | None:
    """Return the task with which a model encodes a side."""
    return task_of(tables.spec, _ABILITY, document=side != "query")


class EmbeddingStep(Step):
    """A step that compares vectors. Its settings have `model` and `encoder`.

    Attributes:
        embedded: The sides whose texts are embedded.
    """

    def __init__(self, settings: Any, sides: Sequence[str]) -> None:
        super().__init__(settings, sides)
        self.embedded = self.sides

    def check(self) -> None:
        """See `Step`.

        Raises:
            ConfigError: a key of `encoder` is wrong, or the model makes no single vector of a text.
            ModelError: the model cannot be found.
        """
        text_tables(self.settings.model, self.settings.encoder)

    def lineage(self) -> dict[str, Any]:
        """Return what determines the vectors."""
        tables = text_tables(self.settings.model, self.settings.encoder)
        facts = tables.spec.lineage()
        return {
            **{name: facts[name] for name in _FACTS},
            **{f"{side}_task": task_of_side(tables, side) for side in self.embedded},
        }

    def tables(self, seen: Seen) -> TextTables:
        """Return the tables of the model, below the curated table."""
        settings = self.settings
        return text_tables(settings.model, settings.encoder, folder=seen.folder, run=seen.run, reporter=seen.reporter)


def embed(seen: Seen, tables: TextTables, sides: Sequence[str]) -> dict[str, SideVectors]:
    """Return the vectors of the texts of some sides; those that no earlier run has encoded are encoded.

    Raises:
        VectideError: as for a backfill; finished units are kept, and the same call resumes.
    """
    tasks = {side: task_of_side(tables, side) for side in sides}
    places = {side: tables.place(task, _NAME) for side, task in tasks.items()}
    urls = {}
    seen.reporter.step(f"embedding the texts of {' and '.join(sides)} that have no vector")
    for side in sides:
        _collect(seen, side)
    for place in dict.fromkeys(places.values()):
        mine = [side for side in sides if places[side] == place]
        if tables.written(place):  # a run that was stopped may not have embedded them
            tables.embed(place, tasks[mine[0]])
        _load_keys(seen.connection, tables, place)
        if sum(_write_new(seen, tables, place, side) for side in mine):
            tables.embed(place, tasks[mine[0]])
        urls.update(dict.fromkeys(mine, tables.table(place)))
    return {side: _fetch(seen.connection, side, urls[side], tables.dense) for side in sides}


def _collect(seen: Seen, side: str) -> None:
    """Make the table of the rows of a side with the keys of their texts."""
    seen.connection.execute(f"""
        CREATE OR REPLACE TABLE embedding_{side}_keys AS
        SELECT n, md5({side}) AS key FROM {seen.rows} WHERE {side} IS NOT NULL
    """)


def _load_keys(connection: duckdb.DuckDBPyConnection, tables: TextTables, place: str) -> None:
    """Make the table of the keys of the texts that are embedded."""
    connection.execute("CREATE OR REPLACE TABLE embedding_known (key VARCHAR)")
    for ids in _files(tables.table(place), ()):
        insert(connection, "embedding_known", ids)


def _write_new(seen: Seen, tables: TextTables, place: str, side: str) -> int:
    """Write the texts of a side that are not embedded, in the order of the rows, and return their number."""
    texts = seen.connection.sql(f"""
        WITH new AS (
            SELECT key, min(n) AS n FROM embedding_{side}_keys ANTI JOIN embedding_known USING (key) GROUP BY key
        )
        SELECT key AS {ID}, {side} AS {TEXT} FROM new JOIN {seen.rows} USING (n) ORDER BY n
    """)
    written = 0
    for batch in texts.to_arrow_reader(_PART):
        rows = pa.Table.from_batches([batch])
        kept = np.setdiff1d(np.arange(batch.num_rows), blank_rows(batch.column(TEXT)))
        rows = rows.take(pa.array(kept))
        if rows.num_rows:
            part = blake2b("".join(rows[ID].to_pylist()).encode(), digest_size=16).hexdigest()
            tables.write(place, part, rows)
        written += rows.num_rows
    # The other side may have the same texts.
    seen.connection.execute(f"INSERT INTO embedding_known SELECT DISTINCT key FROM embedding_{side}_keys")
    return written


def _fetch(connection: duckdb.DuckDBPyConnection, side: str, url: str, column: VectorColumn) -> SideVectors:
    """Copy the vectors of the texts of a side to the local disk."""
    connection.execute(f"CREATE OR REPLACE TABLE embedding_{side}_places (key VARCHAR, place BIGINT)")

    def parts() -> Iterator[Floats]:
        place = 0
        for rows in _files(url, [column]):
            numbered = rows.select([ID]).append_column("number", pa.array(np.arange(rows.num_rows)))
            connection.register("embedding_part", numbered)
            found = connection.sql(f"""
                SELECT {ID} AS key, number FROM embedding_part
                WHERE {ID} IN (SELECT key FROM embedding_{side}_keys) ORDER BY number
            """).to_arrow_reader()
            taken = found.read_all()
            connection.register("embedding_part", taken)
            connection.execute(
                f"INSERT INTO embedding_{side}_places "
                f"SELECT key, ? + row_number() OVER (ORDER BY number) - 1 FROM embedding_part",
                [place],
            )
            place += taken.num_rows
            yield column.matrix(rows[column.name].take(taken["number"]).combine_chunks())

    vectors = SideVectors(f"embedding_{side}", column, parts())
    connection.execute(f"""
        CREATE OR REPLACE TABLE embedding_{side} AS
        SELECT n, place FROM embedding_{side}_keys JOIN embedding_{side}_places USING (key)
    """)
    return vectors


def _files(url: str, columns: Sequence[VectorColumn]) -> Iterator[pa.Table]:
    """Yield the ids, and vectors if columns are given, of each file of a table; nothing if there is no table."""
    table = delta_table.open_table(url)
    for path in [] if table is None else delta_table.file_sizes(table):
        yield read_stored(url, path, [ID], columns)
