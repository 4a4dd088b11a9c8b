"""Cuts a corpus into units.

Called by the backfill and by the dry run. What is cut is frozen by the ledger and never cut again, so that a resume on
another cluster finds the same units. Row counts are read by threads: the work is waiting for a store.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError
from actors.schema import Piece, Shard, Unit
from actors.source.formats import open_format
from actors.threads import unawaited_threads
from pipeline.job.config import Job
from pipeline.ledger.ledger import units_to_table
from pipeline.plan.corpus import Survey
from pipeline.plan.sample import Sample, flops_per_token
from pipeline.plan.throughput import encoder_tokens_per_s

_THREADS = 32
UNIT_S = 10.0
UNITS_PER_REPLICA = 8
# One driver hands out and takes back some 28 units a second (docs/scale.md). Units get longer before there are so many.
_UNITS_PER_S = 14.0
LEAST_ROWS = 32
# The first two units are smaller by this factor, so that the rate and the first write are known early. Two, because an
# encoder is given two units and may begin with either.
_EARLY = 8
_EARLY_UNITS = 2
# Memory of a unit in a worker; the stages have several copies of it. More if there are so many encoders that the driver
# could not keep up with their units.
_UNIT_BYTES = 32 << 20
_UNIT_BYTES_AT_MOST = 192 << 20
_ROW_BYTES = 512  # in addition, for each row: its hash, its shard's path, its text and its tokens as objects


@dataclass(frozen=True, slots=True)
class Plan:
    """A corpus cut into units.

    Attributes:
        table: One line a piece (`pipeline.ledger.ledger.PLAN_SCHEMA`).
        rows: Rows by the footers; an estimate unless `rows_exact`.
    """

    table: pa.Table
    units: int
    rows: int
    rows_exact: bool
    unit_rows: int


def choose_unit_rows(job: Job, model: ModelSpec, sample: Sample, *, replicas: int, cores: int | None) -> int:
    """Return the rows of a unit: about `UNIT_S` of one encoder, in a block of at most `_UNIT_BYTES`.

    Both are more if there are so many encoders that the driver could not keep up; the block has at most
    `_UNIT_BYTES_AT_MOST`.
    """
    if job.run.unit_rows != "auto":
        return job.run.unit_rows
    tokens_per_s = encoder_tokens_per_s(flops_per_token(model), model.precision, cores=cores)
    rows_per_s = tokens_per_s / max(sample.tokens_per_row, 1.0)
    kept_up = replicas / _UNITS_PER_S * rows_per_s
    numbers = sum(output.numbers(sample.tokens_per_row / sample.chunks_per_row) for output in model.outputs)
    stored = (sample.bytes_per_row + 4 * numbers) * sample.chunks_per_row  # kept columns go with every chunk
    row_bytes = stored + 4 * sample.tokens_per_row
    by_memory = min(max(_UNIT_BYTES / (row_bytes + _ROW_BYTES), kept_up), _UNIT_BYTES_AT_MOST / row_bytes)
    return max(1, int(min(max(UNIT_S * rows_per_s, kept_up), by_memory)))


def cut_plan(job: Job, found: Survey, model: ModelSpec, sample: Sample, *, replicas: int, cores: int | None) -> Plan:
    """Cut the corpus into units, in the order of its shards, for so many encoders of so many cores (None: a card).

    Raises:
        ConfigError: the corpus has no rows.
        DataError: a shard cannot be read as what it claims to be.
    """
    unit_rows = choose_unit_rows(job, model, sample, replicas=replicas, cores=cores)
    cut = pieces_of(found, unit_rows)
    rows = sum(piece.rows for piece in cut)
    fair = max(LEAST_ROWS, math.ceil(rows / (UNITS_PER_REPLICA * replicas)))
    if job.run.unit_rows == "auto" and fair < unit_rows:
        # A small corpus: smaller units, so that every encoder has some and the last one is not waited for.
        unit_rows = fair
        cut = pieces_of(found, unit_rows)
    if not cut:
        raise ConfigError(f"source.uri {job.source.uri!r}: its {len(found.shards)} files hold no row")
    early = max(1, unit_rows // _EARLY) if job.run.unit_rows == "auto" else unit_rows
    units = list(_gather(_with_small_first_units(found, cut, early), unit_rows, early))
    return Plan(
        table=units_to_table(units),
        units=len(units),
        rows=rows,
        rows_exact=all(piece.rows_exact for piece in cut),
        unit_rows=unit_rows,
    )


def pieces_of(found: Survey, unit_rows: int) -> list[Piece]:
    """Return the slices of the shards, of at most `unit_rows` rows."""

    def pieces(shard: Shard) -> list[Piece]:
        return open_format(found.source.format, shard.path).pieces(shard, unit_rows)

    with unawaited_threads(_THREADS) as pool:
        return [piece for part in pool.map(pieces, found.shards) for piece in part]


def _with_small_first_units(found: Survey, pieces: list[Piece], rows: int) -> list[Piece]:
    """The pieces, with heads of `rows` rows cut off the first one for the first units, where its format can do that."""
    first = pieces[0]
    if first.rows <= rows:
        return pieces
    fine = open_format(found.source.format, first.shard.path).pieces(first.shard, rows)
    heads = [head for head, after in itertools.pairwise(fine) if after.start < first.stop][:_EARLY_UNITS]
    if not heads:
        return pieces
    left = max(1, first.rows - sum(head.rows for head in heads))
    return [*heads, replace(first, start=fine[len(heads)].start, rows=left), *pieces[1:]]


def _gather(pieces: Iterable[Piece], unit_rows: int, early_rows: int) -> Iterator[Unit]:
    """Units of neighbouring pieces: small shards together, no unit over `unit_rows` unless one piece is.

    The first ones take no piece that brings them over `early_rows`.
    """
    number = 0
    gathered: list[Piece] = []
    rows = 0
    for piece in pieces:
        if gathered and rows + piece.rows > (unit_rows if number >= _EARLY_UNITS else early_rows):
            yield Unit(number, tuple(gathered))
            number, gathered, rows = number + 1, [], 0
        gathered.append(piece)
        rows += piece.rows
    if gathered:
        yield Unit(number, tuple(gathered))
