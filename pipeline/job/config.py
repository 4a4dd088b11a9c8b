"""Sections and keys of the job file, as frozen pydantic models.

Used by every command; `pipeline.job.load` reads the file and `pipeline.job.reference` renders docs/jobs.md from the
descriptions. Unknown keys are refused with the most similar key. No I/O, no torch, no ray. Environment variables are
expanded in URIs only, so that no secret gets into a setting that is written to a ledger.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from actors.errors import ConfigError
from actors.source.column_names import misnamed
from actors.text.chunk_rules import By, Mode
from pipeline.job.encoder import Encoder
from pipeline.job.source import Source
from pipeline.job.validation import explain
from pipeline.job.values import Columns, Section, Size, Uri, check_labels

_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")
Auto = Literal["auto"]


def _count_or_range(value: object) -> object:
    if isinstance(value, int | dict | BaseModel) or value == "auto":
        return value
    raise ValueError(f"must be a number of encoders, auto, or {{min: 0, max: 8}} for a pool that grows, not {value!r}")


def _zero_for_auto(value: object) -> object:
    return 0 if value == "auto" else value


class Multi(Section):
    """Form of many vectors in the table; every row has the same."""

    precision: Literal["int8", "float16", "float32"] = Field(
        default="int8",
        description="Type of the stored numbers: `int8` has a quarter of the bytes of `float32`, and a cosine of 0.9999 to it.",
    )
    layout: Literal["blob", "list"] = Field(
        default="blob",
        description=(
            "Form of the column: `blob` is one binary value a row, its vectors one after the other; `list` is a list of lists "
            "of numbers (float16 as float32), for readers that prefer them."
        ),
    )


class Place(Section):
    """Folder of a Delta Lake table."""

    uri: Uri = Field(
        description="Path or URL of the table's folder; `${NAME}` is replaced from the environment, and a missing folder is created."
    )

    @field_validator("uri", mode="after")
    @classmethod
    def _no_escapes(cls, uri: str) -> str:
        """Refuse `%20` in a path: deltalake reads it as a space and would write the log to another folder."""
        if "://" not in uri and (escape := _ESCAPE.search(uri)):
            raise ValueError(
                f"has {escape.group()!r}, which table readers decode to another character; name another folder"
            )
        return uri


class Table(Place):
    """Delta Lake table that the embeddings are written to."""

    partition_by: Columns = Field(
        default=(),
        description="Columns of `source.keep` that the table is partitioned by; by default none; they cannot change once the table exists.",
    )
    precision: Literal["float32", "float16", "bfloat16"] = Field(
        default="float16",
        description="Precision to which the numbers of a vector are rounded in storage; readers always get float32.",
    )
    multi: Multi = Field(
        default=Multi(),
        exclude_if=lambda value: value == Multi(),  # a job without it is written as before there were many vectors
        description="Form of the column `embedding_multi`, for `encoder.outputs` with `multi`.",
    )
    file_size: Size | None = Field(
        default="128MiB",
        description=(
            "Size of the files into which a run merges small ones before its commit: those below an eighth of it, where a "
            "partition has more than two, or more than eight with those of earlier refreshes; null merges none."
        ),
    )
    keep_text: bool = Field(
        default=False,
        description=(
            "Whether the embedded text is stored in a column `text`, in a table of chunks that of the chunk; by default not."
        ),
    )
    foreign_commits: Literal["refuse", "keep", "restore"] = Field(
        default="refuse",
        description=(
            "What a refresh does with rows that other tools added or removed: `refuse` stops, `keep` leaves those changes "
            "in place, `restore` undoes them."
        ),
    )


class Chunking(Section):
    """Cutting of texts into chunks, each with a vector of its own."""

    mode: Mode = Field(
        default="none",
        description=(
            "How texts are chunked: `none` embeds whole texts, `split` encodes each chunk alone, `late` encodes the whole "
            "text and averages the token states of each chunk."
        ),
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Most tokens of text in a chunk; by default 512, or in mode `split` the model's limit if that is less.",
    )
    by: By = Field(default="sentence", description="Boundary that a chunk ends at where `max_tokens` allows it.")
    overlap_tokens: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description=(
            "Tokens that two windows of a text longer than the model's limit share, in mode `late` only; by default 512, "
            "or a quarter of a window if that is less."
        ),
    )

    @model_validator(mode="after")
    def _check(self) -> Chunking:
        if self.mode == "none" and (self.max_tokens, self.overlap_tokens) != (None, None):
            raise ValueError("mode is none, which makes no chunks: set mode: late or split, or remove the other keys")
        return self


class Replicas(Section):
    """Pool of encoders that grows with the cluster, from `min` to `max`."""

    min: Annotated[int, Field(ge=0)] = Field(
        default=1,
        description="Number of encoders that must fit on the cluster when the run starts; 0 waits for machines.",
    )
    max: Annotated[int, Field(ge=1)] = Field(description="Largest number of encoders that the run may start.")

    @model_validator(mode="after")
    def _check(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max {self.max}; min must not be larger")
        return self


def _kind(value: object) -> str:
    """Return the form that a value of `replicas` has, so that only the errors of that form are reported."""
    return "auto" if value == "auto" else "int" if isinstance(value, int) else "range"


class Run(Section):
    """Distribution of the work; none of these keys changes a vector."""

    address: str = Field(
        default="auto",
        description=(
            "Where to run: `inline` (this process), `local` (Ray on this machine) or the address of a Ray cluster; `auto` "
            "takes the cluster that `RAY_ADDRESS` names, else `inline` for a small job, else `local`."
        ),
    )
    replicas: Annotated[
        Annotated[int, Field(ge=1), Tag("int")] | Annotated[Replicas, Tag("range")] | Annotated[Auto, Tag("auto")],
        Discriminator(_kind),
        BeforeValidator(_count_or_range),
    ] = Field(
        default="auto",
        description=(
            "Number of encoder processes, or a range for a pool that grows with the cluster; `auto` is as many as the "
            "GPUs or CPU cores of the cluster allow."
        ),
    )
    gpus_per_replica: Annotated[float, Field(ge=0)] | Auto = Field(
        default="auto",
        description=(
            "GPUs of one encoder: a whole number, or a fraction to share a GPU; `auto` is 1 where the cluster (with "
            "`inline`, this machine) has GPUs and `encoder.dtype` is not `int8`, else 0."
        ),
    )
    labels: Annotated[dict[str, str], BeforeValidator(check_labels)] | None = Field(
        default=None,
        description=(
            "Ray node labels that a machine must have to run encoders, as in `{ray.io/accelerator-type: H100}`; values "
            "may be `!T4`, `in(A100, H100)` or `!in(T4, P4)`; by default any machine will do."
        ),
    )
    unit_rows: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto",
        description="Rows of one unit of work; `auto` is about 10 seconds of work of one encoder, less for a small corpus.",
    )
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01,
        description="Largest share of quarantined rows, 0 to 1; a run with more fails and publishes nothing.",
    )
    # The default is far more than any micro-batch needs, so that no valid row is quarantined on a slow machine.
    row_timeout_s: Annotated[float, Field(gt=0, le=1e9)] = Field(
        default=600.0,
        description="Seconds without progress after which a micro-batch counts as hung and is retried in smaller parts.",
    )

    @model_validator(mode="after")
    def _check(self) -> Run:
        share = self.gpus_per_replica
        if share != "auto" and share > 1 and share != int(share):
            raise ValueError(f"gpus_per_replica is {share:g}; an encoder takes whole GPUs, or a fraction of one")
        if isinstance(self.replicas, Replicas) and self.replicas.min == 0 and share in ("auto", 0):
            raise ValueError(
                "replicas.min is 0, so the run may have to wait for its GPUs; set how many an encoder takes, as in "
                "gpus_per_replica: 1"
            )
        return self


class Generation(Section):
    """Conditions for publishing a re-embedding, checked when a refresh changes the model or the chunking."""

    publish: bool = Field(
        default=True, description="Whether the re-embedding is published when it is finished; `false` only builds it."
    )
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description=(
            "Smallest share, 0 to 1, of the 10 nearest neighbours of sampled documents that must be the same with the old "
            "and the new vectors; by default not measured."
        ),
    )
    queries: Uri | None = Field(
        default=None,
        description="Parquet file of queries (`id`, `text`) to compare nDCG@10 with; by default nDCG is not measured.",
    )
    judgements: Uri | None = Field(
        default=None,
        description="Parquet file of judgements (`query`, `doc`, optionally `relevance`), required with `queries`.",
    )
    max_ndcg_drop: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Largest drop of nDCG@10, 0 to 1, with which the re-embedding is still published."
    )
    late: bool = Field(
        default=False,
        description="Whether both are measured by late interaction, for models with many vectors a row.",
        exclude_if=lambda value: not value,  # a job without it is written as before
    )

    @model_validator(mode="after")
    def _check(self) -> Generation:
        if (self.queries is None) != (self.judgements is None):
            raise ValueError("queries and judgements go together: give both, or neither")
        return self


class Job(Section):
    """One job file."""

    source: Source
    table: Table
    encoder: Encoder
    chunking: Chunking = Chunking()
    run: Run = Run()
    generation: Generation = Generation()

    @model_validator(mode="before")
    @classmethod
    def _int8_needs_no_gpu(cls, document: Any) -> Any:
        """Read `gpus_per_replica: auto` as 0 for an int8 encoder, which runs on CPUs even where there are GPUs."""
        encoder, run = (document.get(name, {}) for name in ("encoder", "run"))
        if not isinstance(encoder, dict) or encoder.get("dtype") != "int8" or not isinstance(run, dict):
            return document
        return {**document, "run": {**run, "gpus_per_replica": _zero_for_auto(run.get("gpus_per_replica", "auto"))}}

    @model_validator(mode="after")
    def _check(self) -> Job:
        if self.encoder.dtype == "int8" and self.run.gpus_per_replica != 0:
            raise ValueError(
                f"encoder.dtype int8 is for CPUs and run.gpus_per_replica is {self.run.gpus_per_replica:g}; leave that "
                "out, or use dtype auto, which is bfloat16 on a GPU"
            )
        kept = self.source.kept
        chunked, keep_text = self.chunking.mode != "none", self.table.keep_text
        if wrong := misnamed(kept, chunked=chunked, keep_text=keep_text, multi="multi" in self.encoder.outputs):
            raise ValueError(f"source.{wrong}")
        # A task that no adapter has may be one of the model, or a wrong name: `describe_model` knows.
        if self.encoder.task is None or self.encoder.is_task_of_adapter():
            self.check_adapters_used()
        missing = [name for name in self.table.partition_by if name not in kept.values()]
        if missing:
            raise ValueError(
                f"table.partition_by names {missing}, and the columns from source.keep are {[*kept.values()]} in the table; "
                f"name some of these, or add to source.keep"
            )
        return self

    def check_adapters_used(self) -> None:
        """Raise ValueError if no row can use an adapter."""
        if self.source.task_column is None and (unused := self.encoder.unused_adapter()):
            raise ValueError(unused)


def parse_job(document: object, *, origin: str = "the job file") -> Job:
    """Return the job that plain data describes.

    Args:
        document: Sections, as YAML gives them.
        origin: Name of the source of the data, for messages.

    Raises:
        ConfigError: a key or value is wrong; the message names each key, its value, the rule, and for an unknown
            key the most similar one.
    """
    if not isinstance(document, dict):
        raise ConfigError(
            f"{origin} must hold sections (source, table, encoder, chunking, run, generation), not {type(document).__name__}"
        )
    try:
        return Job.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain(error, origin, Job, {"range": Replicas})) from None
