"""A job: what a person may say about a run, and nothing else.

Used by every command (`job_file` reads the file). Frozen pydantic models, unknown keys refused with the nearest right name. No I/O,
no torch, no ray. Environment variables are expanded in URIs only, so that a secret can never slip into a
setting that is written to a ledger.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from actors.errors import ConfigError
from actors.source.column_names import misnamed
from actors.storage.errors import check_url
from actors.text.chunk_rules import By, Mode
from pipeline.job.validation import explain

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# What Ray takes as a label and as the value that one must have.
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?:[A-Za-z0-9.-]{{1,253}}/)?{_WORD}")
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")
_LABEL_VALUE = re.compile(rf"!?(?:{_WORD}|in\({_WORD}(?:, ?{_WORD})*\))")


def _expand(value: object) -> object:
    """`${NAME}` replaced from the environment; a URL with credentials in it is refused."""
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ValueError(f"${{{name}}} is not set in the environment")
        return os.environ[name]

    expanded = _VARIABLE.sub(one, value)
    if "\0" in expanded:
        raise ValueError("it has a NUL character in it, which no path has")
    try:
        return check_url(expanded)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _count_or_range(value: object) -> object:
    if isinstance(value, int | dict | BaseModel) or value == "auto":
        return value
    raise ValueError(f"must be a number of encoders, auto, or {{min: 0, max: 8}} for a pool that grows, not {value!r}")


def _as_labels(value: object) -> object:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"must be labels and their values, as in {{ray.io/accelerator-type: H100}}, not {value!r}")
    for key, wanted in value.items():
        if not isinstance(key, str) or not _LABEL.fullmatch(key):
            raise ValueError(f"{key!r} is no name of a label: letters, digits, dots, dashes and one slash")
        if not isinstance(wanted, str) or not _LABEL_VALUE.fullmatch(wanted):
            raise ValueError(
                f"{key} must be a text like 'H100', '!T4', 'in(A100, H100)' or '!in(T4, P4)', not {wanted!r}"
            )
    return value


def _zero_for_auto(value: object) -> object:
    return 0 if value == "auto" else value


Uri = Annotated[str, BeforeValidator(_expand), Field(min_length=1)]
Columns = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Auto = Literal["auto"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Python counts True as 1: `max_quarantined: yes` would let every row be set aside."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"must not be {str(value).lower()}; YAML reads yes, no, on and off as true and false")
        return value


class Source(_Section):
    """Where the rows come from and which of their columns matter."""

    uri: Uri
    format: Literal["auto", "parquet", "jsonl", "csv", "text"] = "auto"
    quote: Literal["auto", '"', "'", "none"] = "auto"
    escape: Literal["auto", "double", "backslash", "none"] = "auto"
    id: str | None = None
    text: Columns = ("text",)
    keep: Columns = ()
    task_column: str | None = None
    unique_ids: bool = True
    hive: bool = False
    verify: Literal["tag", "content"] = "tag"

    @model_validator(mode="after")
    def _check(self) -> Source:
        if not self.text:
            raise ValueError("text names no column; name at least one")
        if wrong := misnamed(self.keep):
            raise ValueError(wrong)
        if self.quote == "none" and self.escape == "double":
            raise ValueError(
                "escape double writes a quote twice inside of quotes, and quote is none; say escape: backslash, none or "
                "auto, or name the quote"
            )
        for names in (self.text, self.keep):
            if len(set(names)) != len(names):
                raise ValueError(f"{list(names)} names a column twice")
        return self


class Table(_Section):
    """Where the embeddings go and how they are stored."""

    uri: Uri
    partition_by: Columns = ()
    precision: Literal["float32", "float16", "bfloat16"] = "float16"
    # What becomes of rows that other tools removed from the table, or added to it.
    foreign_commits: Literal["refuse", "keep", "restore"] = "refuse"

    @field_validator("uri", mode="after")
    @classmethod
    def _no_escapes(cls, uri: str) -> str:
        """Deltalake reads `%20` in a path as a space, so the log would lie beside the files."""
        if "://" not in uri and (found := _ESCAPE.search(uri)):
            raise ValueError(
                f"has {found.group()!r}, which table readers take for a character's code; name another folder"
            )
        return uri


class Encoder(_Section):
    """The model and every setting of it that changes vectors."""

    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    task: str | None = None
    dim: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    allow_untrained_dim: bool = False


class Chunking(_Section):
    """Whether and how texts are cut, and how their chunks are encoded."""

    mode: Mode = "none"
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    by: By = "sentence"
    overlap_tokens: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Chunking:
        if self.mode == "none" and (self.max_tokens, self.overlap_tokens) != (None, None):
            raise ValueError("mode is none, which makes no chunks: say mode: late or split, or leave the rest out")
        return self


class Replicas(_Section):
    """A pool of encoders that grows with the cluster: this many must fit at the start, and this many may come."""

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _check(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max {self.max}; min must not be larger")
        return self


def _kind(value: object) -> str:
    """Which of the forms of `replicas` a value has, so that a mistake is told for that form alone."""
    return "auto" if value == "auto" else "int" if isinstance(value, int) else "range"


class Run(_Section):
    """How the work is spread. Nothing here changes a vector."""

    address: str = "auto"
    replicas: Annotated[
        Annotated[int, Field(ge=1), Tag("int")] | Annotated[Replicas, Tag("range")] | Annotated[Auto, Tag("auto")],
        Discriminator(_kind),
        BeforeValidator(_count_or_range),
    ] = "auto"
    gpus_per_replica: Annotated[float, Field(ge=0)] | Auto = "auto"
    labels: Annotated[dict[str, str], BeforeValidator(_as_labels)] | None = None
    unit_rows: Annotated[int, Field(ge=1)] | Auto = "auto"
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    # Far more than any micro-batch needs, on any machine: a sound row must not be set aside because a machine is slow.
    row_timeout_s: Annotated[float, Field(gt=0, le=1e9)] = 600.0

    @model_validator(mode="after")
    def _check(self) -> Run:
        share = self.gpus_per_replica
        if share != "auto" and share > 1 and share != int(share):
            raise ValueError(f"gpus_per_replica is {share:g}; an encoder takes whole GPUs, or a part of one")
        if isinstance(self.replicas, Replicas) and self.replicas.min == 0 and share in ("auto", 0):
            raise ValueError(
                "replicas.min is 0, so the run may have to wait for its GPUs; say how many an encoder takes, as in "
                "gpus_per_replica: 1"
            )
        return self


class Generation(_Section):
    """What a second generation must be like before it takes over: see `pipeline.run.quality_gate`."""

    publish: bool = True
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    queries: Uri | None = None
    judgements: Uri | None = None
    max_ndcg_drop: Annotated[float, Field(ge=0, le=1)] = 0.01

    @model_validator(mode="after")
    def _check(self) -> Generation:
        if (self.queries is None) != (self.judgements is None):
            raise ValueError("queries and judgements go together: give both, or neither")
        return self


class Job(_Section):
    """One job file."""

    source: Source
    table: Table
    encoder: Encoder
    chunking: Chunking = Chunking()
    run: Run = Run()
    generation: Generation = Generation()

    @model_validator(mode="before")
    @classmethod
    def _integers_need_no_card(cls, document: Any) -> Any:
        """`gpus_per_replica: auto` is 0 for an encoder that computes in integers, GPUs or not."""
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
        if self.chunking.mode != "none" and (wrong := misnamed(self.source.keep, chunked=True)):
            raise ValueError(f"source.{wrong}")
        missing = [name for name in self.table.partition_by if name not in self.source.keep]
        if missing:
            raise ValueError(f"table.partition_by names {missing}, which source.keep does not; add them to source.keep")
        return self


def parse_job(document: object, *, origin: str = "the job file") -> Job:
    """A job from plain data.

    Raises:
        ConfigError: something in it is wrong; the message names each field, its value, the rule, and for an unknown
            key the nearest right one.
    """
    if not isinstance(document, dict):
        raise ConfigError(
            f"{origin} must hold sections (source, table, encoder, chunking, run, generation), not {type(document).__name__}"
        )
    try:
        return Job.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain(error, origin, Job, {"range": Replicas})) from None
