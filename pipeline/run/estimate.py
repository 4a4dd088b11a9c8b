"""Dry run: estimates the rows, tokens, bytes, time and cost of a backfill. It writes nothing.

Called by `jobs plan`. The rate is measured by encoding the sample on this machine, unless the user gives one, as for a
cluster.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from actors.arguments import need_above_zero
from actors.encoders.spec import ModelSpec
from actors.images.pixels import PATCHES_PER_TOKEN
from actors.inputs import prepare_texts
from actors.schema import COST, PARTS
from actors.source import hive
from actors.source.formats.dialects import DialectUse
from actors.storage.listed import LeftOut
from actors.text.chunk_rules import Chunking
from pipeline.execute.progress import NullReporter
from pipeline.job.config import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.corpus import Survey, survey
from pipeline.plan.resources import at_most, on_cores
from pipeline.plan.sample import Sample, take_sample
from pipeline.plan.units import cut_plan
from pipeline.run.context import resolve_context
from pipeline.table.foreign import foreign_commits

# Bytes of each number, measured with zstd over byte-stream-split.
_STORED_BYTES = {"float32": 4.08, "float16": 1.76, "bfloat16": 1.37}


# Rows that are encoded to measure this machine.
_MEASURED_ROWS = 128
_MEASURED_PICTURES = 2
BASIS = "measured on this machine with one process"
# A dry run hashes a source up to this size (`source.verify: content`), to know the run that a backfill would resume.
HASHED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class FolderColumn:
    """Column from the folder names of the source.

    Attributes:
        type: "text" or "int64".
        values: Number of different values.
        shards: Number of shards that have it.
        use: Its use in the job: "kept", "text", "id", "task" or "unused".
    """

    name: str
    type: str
    values: int
    shards: int
    use: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimate that `vectide plan` prints.

    Attributes:
        run: Name of the run; empty if the source is too large to hash for it (`source.verify: content`).
        hash_bytes: Bytes that each run reads to hash the source; 0 if the job does not ask for that.
        untagged: Shards whose store gives no tag, so that each refresh reads them.
        hive: Columns from the folder names of the source, if `source.hive` is on.
        units_done: Units that an earlier, unfinished run of the same job has finished.
        tokens_per_s: Rate of all replicas together.
        rate_basis: Origin of that rate.
        seconds: Encoder time for the remaining units.
        left_out: Objects that match source.uri and that no run reads.
        dialects: Dialects of delimited shards, with the number of shards of each.
        picture_share: Share of the sampled rows that are pictures or pages, 0 to 1.
        patches: Patches of all pictures and pages, by the sample.
        vectors: The numbers of each output, in words.
    """

    run: str
    fingerprint: str
    shards: int
    source_bytes: int
    rows: int
    rows_exact: bool
    units: int
    units_done: int
    unit_rows: int
    sampled_rows: int
    tokens_per_row: float
    tokens: int
    truncated_share: float
    max_tokens: int
    dim: int
    precision: str
    output_bytes: int
    tokens_per_s: float
    rate_basis: str
    seconds: float
    cost: float | None
    hash_bytes: int = 0
    untagged: int = 0
    hive: tuple[FolderColumn, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()
    dialects: tuple[DialectUse, ...] = ()
    picture_share: float = 0.0
    patches: int = 0
    vectors: str = ""


def estimate(job: Job, *, tokens_per_s: float | None = None, price_per_hour: float | None = None) -> Estimate:
    """Return the estimate for a backfill of `job`.

    Args:
        job: The job.
        tokens_per_s: Rate of the cluster; None: measured on this machine.
        price_per_hour: Price of the whole cluster, in any currency; None: no cost is estimated.

    Raises:
        VectideError: a backfill would refuse the job, the source or the table.
    """
    tokens_per_s = None if tokens_per_s is None else need_above_zero(tokens_per_s, "tokens_per_s")
    context = resolve_context(job, NullReporter(), hash_limit_bytes=HASHED_BYTES)
    model = context.model
    hash_bytes = sum(shard.size_bytes for shard in context.shards) if job.source.verify == "content" else 0
    is_run_known = hash_bytes <= HASHED_BYTES
    surveyed = survey(job, context.shards, modality=model.modality, settings=model.pictures)
    sample = take_sample(surveyed, model, context.chunking)
    replicas, cores = _encoders(job)
    plan = cut_plan(job, surveyed, model, sample, replicas=replicas, cores=cores)
    if context.foreign is not None and job.table.foreign_commits == "refuse":
        raise foreign_commits(context.foreign, context.url)
    run = context.run_name() if is_run_known else ""
    current = context.state if is_run_known and context.foreign is None else None
    if current is not None and Ledger(context.url, current.run).holds(context.content):
        run = current.run  # the table is up to date: a backfill has nothing to do
    ledger = Ledger(context.url, run)
    frozen = ledger.description() if is_run_known else None
    units = frozen.units if frozen else plan.units
    done = len(ledger.done()) if frozen else 0
    basis = "given"
    if tokens_per_s is None:
        tokens_per_s, basis = measure(model, sample, context.chunking)
    tokens = int(sample.tokens_per_row * plan.rows)
    seconds = tokens * (1 - done / max(units, 1)) / tokens_per_s
    tokens_of_chunk = sample.tokens_per_row / sample.chunks_per_row
    pooled = sample.patches_per_row / PATCHES_PER_TOKEN * (1 - 1 / (model.multi_pool or 1))
    row_bytes = 60 + sum(
        (tokens_of_chunk - pooled) * output.vector_bytes
        if output.kind == "multi"
        else output.dim * _STORED_BYTES[job.table.precision]
        for output in model.outputs
    )
    text_bytes = sample.compressed_bytes_per_row if job.table.keep_text else 0.0
    return Estimate(
        run=run,
        fingerprint=context.embedding_spec.fingerprint,
        shards=len(surveyed.shards),
        source_bytes=sum(shard.size_bytes for shard in surveyed.shards),
        rows=plan.rows,
        rows_exact=plan.rows_exact,
        units=units,
        units_done=done,
        unit_rows=plan.unit_rows,
        sampled_rows=sample.rows,
        tokens_per_row=sample.tokens_per_row,
        tokens=tokens,
        truncated_share=sample.truncated_share,
        max_tokens=model.max_tokens,
        dim=model.outputs[0].dim,
        precision=job.table.precision,
        output_bytes=int(plan.rows * (sample.chunks_per_row * row_bytes + text_bytes)),
        tokens_per_s=tokens_per_s,
        rate_basis=basis,
        seconds=seconds,
        cost=None if price_per_hour is None else seconds / 3600 * price_per_hour,
        hash_bytes=hash_bytes,
        untagged=sum(not shard.etag for shard in surveyed.shards),
        hive=_folders(job, surveyed) if job.source.hive else None,
        left_out=context.left_out,
        dialects=surveyed.dialects,
        picture_share=sample.picture_share,
        patches=int(sample.patches_per_row * plan.rows),
        vectors=", ".join(
            f"{each.dim} dimensions a token in {each.precision}"
            if each.kind == "multi"
            else f"{each.dim} dimensions in {job.table.precision}"
            for each in model.outputs
        ),
    )


def _folders(job: Job, surveyed: Survey) -> tuple[FolderColumn, ...]:
    """Return the columns from folder names, with their use in the job."""
    source, kept = job.source, dict(surveyed.source.keep)
    uses = {**dict.fromkeys(source.keep, "kept"), **dict.fromkeys(source.text, "text")}
    uses |= {name: use for name, use in ((source.id, "id"), (source.task_column, "task")) if name is not None}
    columns = []
    for column in hive.columns(surveyed.shards):
        kind = "int64" if pa.types.is_int64(kept.get(column.name, column.type)) else "text"
        columns.append(FolderColumn(column.name, kind, column.values, column.shards, uses.get(column.name, "unused")))
    return tuple(columns)


def _encoders(job: Job) -> tuple[int, int | None]:
    """Return the number of encoders, and the cores of each (None: a GPU). This machine decides what the job leaves open."""
    limit = at_most(job.run.replicas)
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if gpus and job.run.gpus_per_replica != 0:
        return limit or gpus, None
    return on_cores([os.cpu_count() or 1], limit)


def measure(model: ModelSpec, sample: Sample, chunking: Chunking | None) -> tuple[float, str]:
    """Return the tokens per second of this machine on the sample, and the basis of that rate."""
    count = _MEASURED_PICTURES if sample.picture_share else _MEASURED_ROWS
    rows = (prepare_texts(model, ["one short text"]) if sample.inputs is None else sample.inputs).slice(0, count)
    return rate_of(model, rows, chunking if PARTS in rows.column_names else None), BASIS


def rate_of(model: ModelSpec, rows: pa.Table, chunking: Chunking | None = None) -> float:
    """Return the tokens per second of one process of this machine on some rows of prepared inputs."""
    from actors.encoders import load_encoder

    encoder = load_encoder(model)
    encoder.encode_rows(rows.slice(0, max(1, rows.num_rows // 8)), chunking)  # the first call includes the warm-up
    started = time.perf_counter()
    encoder.encode_rows(rows, chunking)
    elapsed_s = max(time.perf_counter() - started, 1e-6)
    return float(pc.sum(rows[COST]).as_py() / elapsed_s)
