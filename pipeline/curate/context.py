"""Source, steps and table when a curation begins. Everything that a job can have wrong is found here, before a row is read."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from actors import storage
from actors.errors import ConfigError, DataError, ForeignCommits, TableConflict
from actors.quantities import counted
from actors.schema import ID, Shard, Unit
from actors.source.column_names import alike
from actors.source.read_unit import read_sample
from actors.storage.listed import LeftOut
from pipeline.curate.extra import need_module
from pipeline.curate.read import ReadSpec, units_of
from pipeline.curate.steps import steps_of
from pipeline.curate.steps.base import Step
from pipeline.execute.progress import Reporter
from pipeline.job import fingerprint
from pipeline.job.config import Job, parse_job
from pipeline.job.curation import SOURCE, Curation
from pipeline.job.validation import shown
from pipeline.ledger.ledger import FOLDER, ROWS_FOLDER
from pipeline.plan.corpus import Survey, list_corpus, survey
from pipeline.plan.identify import identified, untagged
from pipeline.plan.units import pieces_of
from pipeline.table import delta_table
from pipeline.table.delta_table import CURATION, EmbeddingSpec, State
from pipeline.table.features import check_features
from pipeline.table.foreign import look

KEPT, DROPPED_BY = "kept", "dropped_by"
_UNIT_BYTES = 32 << 20
_UNIT_ROWS = 65_536  # at most, unless the job says
_SAMPLE_ROWS = 256
_SOURCE_ROWS = 20  # from so many rows on, sources that are all different are a mistake


@dataclass(frozen=True)
class Context:
    """A curation before it begins.

    Attributes:
        spec: Steps and settings, in the form of an embedding spec: it identifies what made a version.
        content: Hash of the job, the steps and the shards.
        state: Run and number of the current version; None if there is none.
        unit_rows: Rows of a unit.
    """

    job: Curation
    url: str
    survey: Survey
    steps: tuple[Step, ...]
    read: ReadSpec
    spec: EmbeddingSpec
    content: str
    table: DeltaTable | None
    state: State | None
    left_out: tuple[LeftOut, ...]
    unit_rows: int

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The files of the source."""
        return self.survey.shards

    def schema(self) -> pa.Schema:
        """Return the columns of the table."""
        own = [(ID, pa.string()), *self.read_columns(), *(field for step in self.steps for field in step.schema())]
        return pa.schema([*own, (KEPT, pa.bool_()), (DROPPED_BY, pa.string())])

    def read_columns(self) -> pa.Schema:
        """Return the columns of the table that come from the source: sides, source, kept columns."""
        kept = self.read.source.kept_schema()
        return pa.schema([field.with_type(pa.string()) if field.name == SOURCE else field for field in kept])

    def run_name(self) -> str:
        """Return the name of the run."""
        return fingerprint.run_name(self.content, None if self.state is None else str(self.state))

    def units(self) -> list[Unit]:
        """Return the units of the source.

        Raises:
            ConfigError: it has no rows.
            DataError: a shard cannot be read as what it claims to be.
        """
        units = list(units_of(pieces_of(self.survey, self.unit_rows), self.unit_rows))
        if not units:
            raise ConfigError(f"{_files_of(self.job, self.shards)} hold no row")
        if [(piece.rows, piece.rows_exact) for unit in units for piece in unit.pieces] == [(1, True)]:
            raise _one_row(self.job, self.shards)
        return units


def resolve(job: Curation, reporter: Reporter) -> Context:
    """Check the steps, list the source, look at its columns, and read the table's log.

    Raises:
        VectideError: one of them does not exist, or is invalid.
    """
    if not isinstance(job, Curation):
        raise ConfigError(f"the job is {shown(job)}; give what vectide.load_curation returns, or a vectide.Curation")
    need_module("duckdb")
    steps = steps_of(job)
    for step in steps:
        step.check()
    reporter.step("listing the source")
    with named(job):
        backfill = _as_backfill(job)
        listing = list_corpus(backfill)
        shards = identified(backfill, listing.shards, reporter.step)
        found = survey(backfill, shards, modality="text")
    if found.source.format == "pages":
        raise ConfigError(
            f"{job.section}.uri {job.rows.uri!r} has pictures or PDFs, and texts are curated; narrow it to texts"
        )
    read = _read_spec(job, found, steps)
    _check_names(job, steps)
    url = storage.absolute(job.table.uri)
    table = delta_table.open_table(url)
    state = delta_table.state_of(table)
    if table is not None:
        _check_table(table, url, state)
    lineage = {
        "kind": CURATION,
        "of": job.section,
        "steps": ", ".join(step.name for step in steps),
        **{
            f"{each.name}.{key}": value
            for each, step in zip(job.steps, steps, strict=True)
            for key, value in {**each.settings.model_dump(mode="json"), **step.lineage()}.items()
        },
    }
    spec = EmbeddingSpec(fingerprint.digest(lineage), lineage, {})
    rows = job.rows.model_dump(mode="json", exclude={"uri", "verify"})
    # A shard without a tag may have changed: each call reads it again.
    salt = secrets.token_hex(8) if untagged(shards) else ""
    content = fingerprint.digest([spec.fingerprint, fingerprint.listing_digest(shards), rows, salt], length=8)
    if salt:
        read = replace(read, salt=salt)
    sample = _sample(found, read)
    if sample.num_rows == len(shards) == 1:
        raise _one_row(job, shards)
    _check_sources(job, sample)
    return Context(job, url, found, steps, read, spec, content, table, state, listing.left_out, _unit_rows(job, sample))


def _files_of(job: Curation, shards: Sequence[Shard]) -> str:
    return f"{job.section}.uri {job.rows.uri!r}: its {counted(len(shards), 'file')}"


def _one_row(job: Curation, shards: Sequence[Shard]) -> ConfigError:
    return ConfigError(f"{_files_of(job, shards)} holds one row, and a curation compares rows with each other")


def _sample(found: Survey, read: ReadSpec) -> pa.Table:
    """Return the first rows of the first shard that has some."""
    for shard in found.shards:
        sample = read_sample(shard, read.source, rows=_SAMPLE_ROWS).table
        if sample.num_rows:
            return sample
    return read.source.schema().empty_table()


def _unit_rows(job: Curation, sample: pa.Table) -> int:
    """Return the rows of a unit: a power of two, so that a few more or longer rows do not change it."""
    if job.run.unit_rows != "auto":
        return job.run.unit_rows
    fit = int(_UNIT_BYTES / max(sample.nbytes / max(sample.num_rows, 1), 1))
    return min(_UNIT_ROWS, 1 << max(fit, 1).bit_length() - 1)


def _check_sources(job: Curation, sample: pa.Table) -> None:
    """Raise ConfigError if each source has one row, as where a column of ids is named."""
    if SOURCE not in sample.column_names or sample.num_rows < _SOURCE_ROWS:
        return
    if pc.count_distinct(sample[SOURCE], mode="all").as_py() == sample.num_rows:
        raise ConfigError(
            f"{job.section}.source_column names {job.rows.source_column!r}, which is different in each of the first "
            f"{sample.num_rows} rows, such as {sample[SOURCE][0].as_py()!r}: a source with one row has no figures of its own. "
            f"Name a column such as a site, or leave source_column out"
        )


@contextmanager
def named(job: Curation) -> Iterator[None]:
    """Turn the keys of a backfill's source in messages into those of the job."""
    rows, section = job.rows, job.section
    uses = {column: key for key, column in rows.sides.items()}
    if rows.source_column is not None:
        uses[rows.source_column] = "source_column"

    def key_of(match: re.Match[str]) -> str:
        key, rest = match[1], match[2] or ""
        column = re.search(r"'([^']*)'", rest)
        use = uses.get(column[1]) if column is not None and key in ("text", "keep") else None
        return f"{section}.{use or key}{rest}"

    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(re.sub(r"\bsource\.([a-z_]+)( names (?:the column )?'[^']*')?", key_of, str(error))) from None


def _as_backfill(job: Curation) -> Job:
    """Return the job of a backfill of the same files, for what lists and checks a source."""
    rows = job.rows
    files = rows.model_dump(include={"uri", "format", "quote", "escape", "id", "unique_ids", "hive", "verify"})
    source = {**files, "text": list(rows.sides.values()), "keep": rows.columns}
    document = {
        "source": source,
        "table": {"uri": job.table.uri},
        "encoder": {"model": "none"},
        "run": job.run.model_dump(exclude={"memory"}),
    }
    return parse_job(document, origin="the job")


def _read_spec(job: Curation, found: Survey, steps: tuple[Step, ...]) -> ReadSpec:
    """Return what readers need. The sides are text whatever a few rows of a schemaless file look like."""
    texts = job.rows.sides.values()
    kept = tuple((name, pa.string() if name in texts else kind) for name, kind in found.source.keep)
    column = job.rows.source_column
    kind = dict(kept).get(column) if column is not None else None
    if kind is not None and not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise ConfigError(
            f"{job.section}.source_column names {column!r}, which is {kind}; it must be text or whole numbers"
        )
    source = replace(found.source, keep=kept, keeps_empty=True)
    return ReadSpec(
        source, storage.join(storage.absolute(job.table.uri), FOLDER, ROWS_FOLDER), tuple(job.rows.sides), steps
    )


def _check_names(job: Curation, steps: tuple[Step, ...]) -> None:
    """Raise ConfigError if a kept column has the name of a column of a step."""
    of_steps = [name for step in steps for name in (*step.schema().names, *step.raw().names)]
    for column, name in job.rows.kept.items():
        if pair := next((each for each in of_steps if alike((each, name))), None):
            raise ConfigError(
                f"{job.section}.keep gives {name!r}, and a step has the column {pair!r}; give another name, as in keep: "
                f"{{{column}: my_{name}}}"
            )


def _check_table(table: DeltaTable, url: str, state: State | None) -> None:
    """Raise TableConflict if the table is not one of a curation, or another tool changed it."""
    check_features(table, url)
    spec = delta_table.embedding_spec_of(table)
    if spec is None:
        raise TableConflict(f"{url!r} is a Delta table that vectide did not make; set table.uri to an empty folder")
    if not spec.is_curation:
        raise TableConflict(
            f"{url!r} is a table of embeddings, which `vectide backfill` made; set table.uri of the curation to another folder"
        )
    foreign = look(table, url, state)
    if foreign is not None:
        raise ForeignCommits(
            f"{foreign.words(url)}. `vectide rollback {url} --to {foreign.since}` undoes that; then curate again"
            if foreign.since is not None
            else f"{foreign.words(url)}. Set table.uri to another folder"
        )
