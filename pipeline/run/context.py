"""Model, corpus and table when a run begins, with the changes of other tools to the table.

Called by every command that embeds a corpus, before it does anything else. It reads the table's log, and data files only
if another tool has changed some.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyarrow as pa
from deltalake import DeltaTable

from actors import storage
from actors.encoders.spec import ModelSpec, describe
from actors.errors import ConfigError, TableConflict
from actors.schema import Shard
from actors.storage.listed import LeftOut
from actors.text.chunk_rules import Chunking
from actors.unit.writer import table_schema
from actors.vectors import has_many
from pipeline.execute.progress import Reporter
from pipeline.execute.task_column import check_task_column
from pipeline.job import fingerprint
from pipeline.job.config import Job, Multi
from pipeline.job.validation import shown
from pipeline.plan.corpus import list_corpus, model_for
from pipeline.plan.identify import identified
from pipeline.table import delta_table
from pipeline.table.features import check_features
from pipeline.table.foreign import Foreign, look


def describe_model(job: Job) -> ModelSpec:
    """Return the checked model of a job, without loading its weights.

    Raises:
        ConfigError: it is no job; or see `describe`.
    """
    if not isinstance(job, Job):
        raise ConfigError(f"the job is {shown(job)}; give what vectide.load_job returns, or a vectide.Job")
    job.encoder.check_adapters_readable(job.run.address)
    model = describe(job.encoder.settings())
    try:
        job.check_adapters_used()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    multi = job.table.multi
    if all(output.kind == "dense" for output in model.outputs):
        if multi != Multi():
            raise ConfigError(
                f"table.multi is {{precision: {multi.precision}, layout: {multi.layout}}}, and the model makes one vector a row. "
                f"Add multi to encoder.outputs, or leave table.multi out"
            )
        return model
    stored = tuple(output.stored_as(multi.precision, multi.layout) for output in model.outputs)
    return replace(model, own_outputs=stored)


def _check_form(table: DeltaTable, url: str, model: ModelSpec) -> None:
    """Raise ConfigError if the table stores many vectors in another form than the job, TableConflict if it has none."""
    embedding_spec = delta_table.embedding_spec_of(table)
    if embedding_spec is not None and embedding_spec.is_curation:
        raise TableConflict(f"{url!r} {delta_table.OF_CURATION}")
    before, after = (
        {(output.precision, output.layout) for output in outputs if output.kind == "multi"}
        for outputs in ((() if embedding_spec is None else embedding_spec.outputs), model.outputs)
    )
    if before and after and before != after:
        (precision, layout), (new_precision, new_layout) = *before, *after
        raise ConfigError(
            f"table.multi is {{precision: {new_precision}, layout: {new_layout}}}, and the table {url!r} has "
            f"{{precision: {precision}, layout: {layout}}}, which does not change once it exists. Write that in the job, or "
            f"name another table.uri"
        )


@dataclass(frozen=True, slots=True)
class RunContext:
    """Model, corpus and table when a run begins.

    Attributes:
        content: Hash of the job, the embedding spec and the shards: it identifies the rows that the run publishes.
        table: The table; None if it does not exist.
        state: Run and number of the current version; None if no run has published yet.
        retries: Name of the run whose quarantined rows are retried (`pipeline.run.retry`); None if there is none.
        foreign: Changes of other tools since the last commit of vectide; None if there are none.
        left_out: Objects that match source.uri and that the run does not read.
    """

    job: Job
    url: str
    model: ModelSpec
    chunking: Chunking | None
    shards: tuple[Shard, ...]
    embedding_spec: delta_table.EmbeddingSpec
    content: str
    table: DeltaTable | None
    state: delta_table.State | None
    retries: str | None = None
    foreign: Foreign | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def restores(self) -> bool:
        """True if the run undoes changes of other tools: new ones, or those that an earlier run kept."""
        is_restore = self.job.table.foreign_commits == "restore"
        return is_restore and (self.foreign is not None or (self.state is not None and self.state.kept is not None))

    def columns(self, keep: pa.Schema) -> pa.Schema:
        """Return the columns of the table, given the kept ones."""
        outputs = self.model.outputs
        return table_schema(
            keep,
            outputs,
            chunked=self.chunking is not None,
            keep_text=self.job.table.keep_text,
            grids=self.model.modality == "page" and has_many(outputs),
        )

    def run_name(self) -> str:
        """Return the name of the run. The same command on the same source and table gets the same name."""
        is_foreign = self.foreign is not None or self.restores
        return fingerprint.run_name(
            self.content,
            None if self.state is None else str(self.state),
            foreign=self.job.table.foreign_commits if is_foreign else None,
            retries=self.retries,
        )


def resolve_context(job: Job, reporter: Reporter, *, hash_limit_bytes: float = math.inf) -> RunContext:
    """Check the model, list the corpus and read the table's log.

    Args:
        job: The job.
        reporter: Receives the steps.
        hash_limit_bytes: Size of the source above which it is not hashed, even if the job asks for that.

    Raises:
        VectideError: one of them does not exist, or is invalid.
    """
    model = describe_model(job)
    check_task_column(job.source.task_column, model)
    reporter.step("listing the corpus")
    listing = list_corpus(job)
    shards = identified(job, listing.shards, reporter.step, limit_bytes=hash_limit_bytes)
    model = model_for(job, shards, model)
    chunking = fingerprint.chunking_of(model, job)
    lineage = fingerprint.lineage(model, chunking, job)
    embedding_spec = delta_table.EmbeddingSpec(
        fingerprint.fingerprint(lineage), lineage, job.encoder.model_dump(mode="json")
    )
    url = storage.absolute(job.table.uri)
    table = delta_table.open_table(url)
    if table is not None:
        check_features(table, url)
        _check_form(table, url, model)
    state = delta_table.state_of(table)
    return RunContext(
        job=job,
        url=url,
        model=model,
        chunking=chunking,
        shards=shards,
        embedding_spec=embedding_spec,
        content=fingerprint.content_name(job, embedding_spec.fingerprint, shards),
        table=table,
        state=state,
        foreign=look(table, url, state),
        left_out=listing.left_out,
    )
