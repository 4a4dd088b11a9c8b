"""Lists the corpus, looks at a sample of it, and cuts it into units.

Called by the backfill and by the dry run. The corpus is listed once; what is cut is frozen by the ledger and never cut
again, so that a resume on another cluster finds the same units. Footers and row counts are read by threads: the work is
waiting for a store.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.chunker import Chunker
from actors.chunking import Chunking
from actors.encoders.spec import ModelSpec, folder_of
from actors.errors import ConfigError
from actors.formats import open_format
from actors.formats.dialects import DialectUse, settle
from actors.found import Listing
from actors.hashes import with_tags
from actors.lakes import refuse_lakes
from actors.reader import TEXT, SourceSpec, check_source, corpus_root, read_sample
from actors.schema import CHUNKS, INPUT_IDS, Piece, Shard, Unit
from actors.tokenizer import Tokenizer
from pipeline.config import Job
from pipeline.ledger import units_to_table
from pipeline.rates import core_flops, encoder_tokens_per_s

SAMPLE_SHARDS = 8
SAMPLE_ROWS = 64
UNIT_S = 10.0
UNITS_PER_REPLICA = 8
# One driver hands out and takes back some 28 units a second (docs/scale.md). Units get longer before there are so many.
_UNITS_PER_S = 14.0
LEAST_ROWS = 32
# The first units are so many times smaller than the others: a rate, and whether the store takes what is written, are known
# while the other encoders are at their first one. Two, since an encoder is handed two and may begin with either.
_EARLY = 8
_EARLY_UNITS = 2
# What a unit may take of a worker's memory. Its stages hold several copies of it. More where encoders are so many that they
# would end more units than the driver takes.
_UNIT_BYTES = 32 << 20
_UNIT_BYTES_AT_MOST = 192 << 20
_ROW_BYTES = 512  # of a row besides: its hash, its shard's path, its text and its tokens as objects
_THREADS = 32
# So much work is done in this process before a cluster on this machine would be ahead: its start takes 15 s of all cores.
INLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Survey:
    """A corpus as it is today.

    Attributes:
        source: What the readers need to know.
        keep_schema: The kept columns as they are stored.
        dialects: How delimited shards are written, and how many are written so.
    """

    shards: tuple[Shard, ...]
    source: SourceSpec
    keep_schema: pa.Schema
    dialects: tuple[DialectUse, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A few rows from the heads of a few shards.

    Attributes:
        tokens_per_row: Mean, after the cut at the model's limit (there is no cut with chunking).
        chunks_per_row: Mean number of vectors of a row.
        truncated_share: Share of the texts that were cut, 0 to 1.
        bytes_per_row: Mean size of a row as read, without its vector.
        texts: The texts themselves.
    """

    rows: int
    tokens_per_row: float
    truncated_share: float
    bytes_per_row: float
    texts: tuple[str, ...]
    chunks_per_row: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A corpus cut into units.

    Attributes:
        table: One line a piece (`pipeline.ledger.PLAN_SCHEMA`).
        rows: Rows by the footers; an estimate unless `rows_exact`.
    """

    table: pa.Table
    units: int
    rows: int
    rows_exact: bool
    unit_rows: int


def list_corpus(job: Job) -> Listing:
    """The shards of a job's source, in order, and what is left out of it. Nothing is opened.

    Raises:
        ConfigError: no file matches, or one of the table's own does.
        StorageError: a folder could not be listed, or a link not be followed; it is named.
    """
    uri = storage.absolute(job.source.uri)
    # A slash at the end of a glob means folders; `absolute` takes it off.
    listing = storage.glob(f"{uri}/" if job.source.uri.endswith("/") else uri, _text_endings(job.source.format))
    shards = listing.shards
    if not shards:
        raise _nothing_matches(job.source.uri, uri, listing)
    own = storage.join(storage.absolute(job.table.uri), "data", "")
    if inside := next((shard.path for shard in shards if shard.path.startswith(own)), None):
        # Each refresh would embed the table into itself, and a vacuum take what it does not know.
        raise ConfigError(
            f"source.uri {job.source.uri!r} matches {inside!r}, which lies where the table keeps its own files: narrow "
            f"source.uri, or give table.uri another place"
        )
    refuse_lakes(job.source.uri, corpus_root(uri, shards), shards, own=job.table.uri)
    return replace(listing, shards=with_tags(shards))


def _text_endings(source_format: str) -> Callable[[str], bool]:
    """Whether a path is that of a text document, in a source of this format."""

    def by_ending(path: str) -> bool:
        try:
            return open_format("auto", path).name == "text"
        except ConfigError:
            return False

    return by_ending if source_format == "auto" else lambda _: source_format == "text"


def _nothing_matches(written: str, uri: str, listing: Listing) -> ConfigError:
    if listing.left_out:
        left = "; ".join(each.sentence() for each in listing.left_out)
        return ConfigError(
            f"source.uri {written!r} matches no file that is read (it means {uri!r}). Left out: {left}. Rename what is "
            f"meant, or spell such a name in source.uri, as in docs/_posts/*.md"
        )
    braces = ""
    if "{" in uri or "," in uri:
        braces = "; {a,b} and lists with commas are no patterns here, but *, ?, [...] and ** are"
    return ConfigError(
        f"source.uri {written!r} matches no file (it means {uri!r}); check the path and the glob{braces}"
    )


def survey(
    job: Job,
    shards: tuple[Shard, ...],
    known: Mapping[str, pa.DataType] | None = None,
    *,
    corpus: tuple[Shard, ...] = (),
) -> Survey:
    """Check that the shards have what the job names.

    Args:
        job: What to look for.
        shards: Where.
        known: Types that kept columns have in shards that are not looked at, as the table stores them.
        corpus: All shards, where only some are to be read.

    Raises:
        ConfigError: a column is missing or of a wrong type.
        DataError: a shard cannot be read as what it claims to be.
    """
    dialects: tuple[DialectUse, ...] = ()
    if shards:
        source_format = open_format(job.source.format, shards[0].path).name
        shards, dialects = settle(shards, source_format, job.source.quote, job.source.escape)
    source = check_source(
        shards,
        root=corpus_root(job.source.uri, shards),
        format=job.source.format,
        id=job.source.id,
        text=job.source.text,
        keep=job.source.keep,
        task=job.source.task_column,
        unique_ids=job.source.unique_ids,
        folders_of=(corpus or shards) if job.source.hive else (),
        known=known,
    )
    keep_schema = pa.schema(source.keep)
    _check_partitions(job, keep_schema)
    return Survey(shards, source, keep_schema, dialects)


def _check_partitions(job: Job, keep: pa.Schema) -> None:
    for name in job.table.partition_by:
        kind = keep.field(name).type
        if not (
            pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date(kind)
        ):
            raise ConfigError(
                f"table.partition_by names {name!r}, which is {kind}; a partition is text, a whole number, a boolean "
                f"or a date"
            )


def take_sample(found: Survey, model: ModelSpec, chunking: Chunking | None = None) -> Sample:
    """Read, tokenize and cut a few rows from the heads of shards spread over the corpus."""
    step = max(1, len(found.shards) // SAMPLE_SHARDS)
    texts: list[str] = []
    size_bytes = 0
    for shard in found.shards[::step][:SAMPLE_SHARDS]:
        if shard.size_bytes == 0:
            continue
        table = read_sample(shard, found.source, rows=SAMPLE_ROWS).table
        size_bytes += table.nbytes
        texts += table.column(TEXT).to_pylist()
    if not texts:
        return Sample(0, 1.0, 0.0, 1.0, ())
    if chunking is None:
        tokens = Tokenizer(model).tokenize(texts)
        ids, truncated_share, chunks_per_row = tokens.ids, float(np.mean(tokens.truncated)), 1.0
    else:
        documents = Chunker(model, chunking).chunk(texts)
        ids, truncated_share = documents.column(INPUT_IDS), 0.0
        chunks_per_row = float(pc.mean(pc.list_value_length(documents.column(CHUNKS))).as_py())
    return Sample(
        rows=len(texts),
        tokens_per_row=float(pc.mean(pc.list_value_length(ids)).as_py()),
        truncated_share=truncated_share,
        bytes_per_row=size_bytes / len(texts),
        texts=tuple(texts),
        chunks_per_row=chunks_per_row,
    )


def flops_per_token(model: ModelSpec) -> float:
    """Arithmetic of one token through the layers, without attention: twice the weights of a standard transformer."""
    config = json.loads((Path(folder_of(model)) / "config.json").read_text(encoding="utf-8"))
    config = {**config, **(config.get("text_config") or {})}
    layers = config.get("num_hidden_layers") or config.get("num_layers") or 12
    return 2.0 * 12 * float(layers) * model.hidden**2


def is_little(tokens: float, model: ModelSpec) -> bool:
    """Whether so many tokens are encoded in this process sooner than by a cluster that has to be started for them."""
    return tokens * flops_per_token(model) <= INLINE_S * (os.cpu_count() or 1) * core_flops(model.precision)


def choose_unit_rows(job: Job, model: ModelSpec, sample: Sample, *, replicas: int, cores: int | None) -> int:
    """Rows of a unit: about `UNIT_S` of one encoder, and a block of at most `_UNIT_BYTES`, whatever the corpus holds.

    Both are more where there are so many encoders that the driver would not keep up, the block up to
    `_UNIT_BYTES_AT_MOST`.
    """
    if job.run.unit_rows != "auto":
        return job.run.unit_rows
    tokens_per_s = encoder_tokens_per_s(flops_per_token(model), model.precision, cores=cores)
    rows_per_s = tokens_per_s / max(sample.tokens_per_row, 1.0)
    kept_up = replicas / _UNITS_PER_S * rows_per_s
    stored = (sample.bytes_per_row + 4 * model.dim) * sample.chunks_per_row  # kept columns go with every chunk
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
    cut = _cut(found, unit_rows)
    rows = sum(piece.rows for piece in cut)
    fair = max(LEAST_ROWS, math.ceil(rows / (UNITS_PER_REPLICA * replicas)))
    if job.run.unit_rows == "auto" and fair < unit_rows:
        # A small corpus: smaller units, so that every encoder has some and the last one is not waited for.
        unit_rows = fair
        cut = _cut(found, unit_rows)
    if not cut:
        raise ConfigError(f"source.uri {job.source.uri!r}: its {len(found.shards)} files hold no row")
    early = max(1, unit_rows // _EARLY) if job.run.unit_rows == "auto" else unit_rows
    units = list(_gather(_headed(found, cut, early), unit_rows, early))
    return Plan(
        table=units_to_table(units),
        units=len(units),
        rows=rows,
        rows_exact=all(piece.rows_exact for piece in cut),
        unit_rows=unit_rows,
    )


def _cut(found: Survey, unit_rows: int) -> list[Piece]:
    def pieces(shard: Shard) -> list[Piece]:
        return open_format(found.source.format, shard.path).pieces(shard, unit_rows)

    with ThreadPoolExecutor(_THREADS) as pool:
        return [piece for part in pool.map(pieces, found.shards) for piece in part]


def _headed(found: Survey, pieces: list[Piece], rows: int) -> list[Piece]:
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
