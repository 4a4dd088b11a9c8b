"""Reads the rows of a curation, unit by unit, and measures them.

    <table>/_vectide/curation/rows/<name>-<rows>-<quarantined>.parquet    the rows of a unit with their measures
    <table>/_vectide/curation/rows/<name>-quarantine.parquet              its quarantined rows, if any

The name is a hash of what determines the content: the shards with their identity, the slice, the columns and the settings
of the measures. A file is written whole, so a unit with a file is done, in this run or an earlier one: a resume reads what
is left, a grown corpus what is new, and another threshold nothing.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.schema import CONTENT, HASH, Piece, Unit
from actors.source.read_unit import SourceSpec, read_unit
from actors.storage import identity
from actors.unit.receipt import Receipt
from actors.unit.writer import quarantine_bytes
from pipeline.curate.steps.base import Step
from pipeline.job.config import Run
from pipeline.job.curation import SOURCE
from pipeline.job.fingerprint import digest
from pipeline.ledger.ledger import FOLDER

_FORMAT = 1  # of the files
_NAME = re.compile(r"([0-9a-f]{32})-(\d+)-(\d+)\.parquet$")
INLINE_BYTES = 64 << 20  # of a source that is read in this process
_TASKS_A_CPU = 2
_GROUPS = 8  # of neighbouring small shards, about one in this many ends a unit early


def folder_of(table: str) -> str:
    """Return the URL of the folder of a curation's own files."""
    return storage.join(table, FOLDER, "curation")


@dataclass(frozen=True)
class ReadSpec:
    """What a worker needs to read and measure a unit.

    Attributes:
        folder: URL of the folder of the results.
        sides: Columns of texts, as the table names them.
        steps: The steps; those with raw columns measure.
        salt: Random text if a shard has no tag, so that no earlier result is taken.
    """

    source: SourceSpec
    folder: str
    sides: tuple[str, ...]
    steps: tuple[Step, ...]
    salt: str = ""

    def settings(self) -> list[Any]:
        """Return what determines the rows of a unit, beside its shards."""
        source = self.source
        kept = [[name, str(kind)] for name, kind in source.keep]
        measured = [[step.name, step.raw_settings(), str(step.raw())] for step in self.steps if step.raw().names]
        read = [
            source.format,
            source.id,
            source.root,
            kept,
            list(source.renamed),
            [str(each) for each in source.folders],
        ]
        return [_FORMAT, read, list(self.sides), measured, self.salt]

    def name(self, unit: Unit) -> str:
        """Return the name of the result of a unit."""
        pieces = [
            [piece.shard.path, piece.shard.size_bytes, identity.content_part(piece.shard.etag), piece.start, piece.stop]
            for piece in unit.pieces
        ]
        return digest([self.settings(), pieces])


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a unit.

    Attributes:
        path: URL of the file with its rows.
        rows: Its rows without the quarantined ones.
        seconds: Time that it took; 0 if it was there before.
    """

    unit: int
    path: str
    rows: int
    quarantined: int
    seconds: float = 0.0

    @property
    def quarantine(self) -> str:
        """URL of the file with its quarantined rows."""
        return quarantine_path(*self.path.rsplit("-", 2)[:1])

    @property
    def files(self) -> list[str]:
        """URLs of its files."""
        return [self.path, *([self.quarantine] if self.quarantined else [])]

    def receipt(self) -> Receipt:
        """Return the counts as a receipt, for reporters."""
        counts = (self.rows + self.quarantined, self.rows, 0, self.quarantined, 0, 0)
        return Receipt(self.unit, "", (), *counts, seconds={"read": round(self.seconds, 4)})


def quarantine_path(stem: str) -> str:
    """Return the URL of a unit's quarantine file, from that of its rows up to the counts."""
    return f"{stem}-quarantine.parquet"


def units_of(pieces: Iterable[Piece], unit_rows: int) -> Iterator[Unit]:
    """Yield units of neighbouring pieces, of about `unit_rows` rows.

    Where small shards are gathered, the hash of a path may end a unit early. So if a shard is added, only the units beside
    it change and not all that follow.
    """
    numbers = itertools.count()
    gathered: list[Piece] = []
    rows = 0
    for piece in pieces:
        if gathered and rows + piece.rows > unit_rows:
            yield Unit(next(numbers), tuple(gathered))
            gathered, rows = [], 0
        gathered.append(piece)
        rows += piece.rows
        if blake2b(piece.shard.path.encode(), digest_size=1).digest()[0] % _GROUPS == 0 and rows * _GROUPS > unit_rows:
            yield Unit(next(numbers), tuple(gathered))
            gathered, rows = [], 0
    if gathered:
        yield Unit(next(numbers), tuple(gathered))


def finished(units: Sequence[Unit], spec: ReadSpec) -> dict[int, Measured]:
    """Return the results that exist, by the number of the unit. Lists one folder."""
    found = {
        match[1]: (shard.path, match) for shard in storage.walk(spec.folder) if (match := _NAME.search(shard.path))
    }
    done = {}
    for unit in units:
        if (known := found.get(spec.name(unit))) is not None:
            path, match = known
            done[unit.number] = Measured(unit.number, path, int(match[2]), int(match[3]))
    return done


def measure_unit(unit: Unit, spec: ReadSpec) -> Measured:
    """Read a unit, measure its rows, and write both.

    Raises:
        VectideError: see `read_unit`.
    """
    started_s = time.perf_counter()
    read = read_unit(unit, spec.source)
    stem = storage.join(spec.folder, spec.name(unit))
    if read.bad:
        storage.put(quarantine_path(stem), quarantine_bytes(read.bad, unit.number))
    rows = read.table.drop_columns([CONTENT, HASH]).combine_chunks()
    if SOURCE in rows.column_names:
        rows = rows.set_column(rows.column_names.index(SOURCE), SOURCE, pc.cast(rows[SOURCE], pa.string()))
    sides = [_one(rows[side]) for side in spec.sides]
    for step in spec.steps:
        if step.raw().names:
            measured = step.measure(sides)
            for field in measured.schema:
                rows = rows.append_column(field, measured.column(field.name))
    path = f"{stem}-{rows.num_rows}-{len(read.bad)}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    storage.put(path, bytes(sink.getvalue()))
    return Measured(unit.number, path, rows.num_rows, len(read.bad), time.perf_counter() - started_s)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def measure_units(units: Iterable[Unit], spec: ReadSpec, run: Run, *, inline: bool) -> Iterator[Measured]:
    """Measure units, in this process or on Ray, and yield each result when it is there.

    Raises:
        VectideError: a unit failed; those that are finished are kept.
    """
    if inline:
        for unit in units:
            yield measure_unit(unit, spec)
        return
    import ray  # takes seconds

    from pipeline.execute.ray_data import connect, machines
    from pipeline.execute.ray_errors import root_error

    connect(run.address)
    task, shared = ray.remote(measure_unit), ray.put(spec)
    waiting = iter(units)
    most = max(1, int(sum(machine.cpus for machine in machines()))) * _TASKS_A_CPU
    running = [task.remote(unit, shared) for unit in itertools.islice(waiting, most)]
    try:
        while running:
            ready, running = ray.wait(running, num_returns=1)
            yield ray.get(ready[0])
            running += [task.remote(unit, shared) for unit in itertools.islice(waiting, 1)]
    except ray.exceptions.RayError as error:
        raise root_error(error) from error
