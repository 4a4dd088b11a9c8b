"""The section `encoder` of the job file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from actors.encoders.settings import AdapterSettings, EncoderSettings
from actors.errors import ConfigError
from pipeline.job.validation import shown
from pipeline.job.values import Section, Uri, as_list, as_text, cluster_at


class Adapter(Section):
    """LoRA adapter that is added to the model."""

    path: Uri = Field(
        description="PEFT folder of the adapter: a path, a URL, or the id of a repository on the Hugging Face Hub."
    )
    prompt: str = Field(default="", description="Text put before each text of the adapter's task; by default none.")
    query_prompt: str | None = Field(
        default=None,
        description=(
            "Text put before each query in place of `prompt`, under the task `<name>.query`; by default queries have `prompt`."
        ),
    )
    query_path: str | None = Field(
        default=None,
        exclude_if=lambda path: path is None,  # a job without it is written as before there was any
        description=(
            "PEFT folder of the adapter for queries, if both were trained as a pair, under the task `<name>.query`; by default "
            "queries have the adapter of `path`."
        ),
    )

    @property
    def has_queries(self) -> bool:
        """Return whether queries have a task of their own."""
        return self.query_prompt is not None or self.query_path is not None


def _by_name(value: object) -> object:
    """Read a path that stands alone as `{path: ...}`."""
    if not (isinstance(value, dict) and all(isinstance(name, str) and name for name in value)):
        raise ValueError(f"must be adapters by name, as in {{legal: adapters/legal}}, not {shown(value)}")
    if wrong := [
        name for name, each in value.items() if not each or not isinstance(each, str | Path | dict | BaseModel)
    ]:
        raise ValueError(
            f"has {shown(value[wrong[0]])} for {wrong[0]!r}; it must be the path of a PEFT folder, or "
            f"{{path: ..., prompt: ..., query_prompt: ...}}"
        )
    return {name: {"path": adapter} if isinstance(adapter, str | Path) else adapter for name, adapter in value.items()}


class Encoder(Section):
    """Model and the settings that change its vectors."""

    model: Annotated[str, BeforeValidator(as_text), Field(min_length=1)] = Field(
        description="Id of a model on the Hugging Face Hub, or path of a folder that holds one."
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a model on the Hub; by default its main branch."
    )
    task: str | None = Field(
        default=None,
        description="Task of the model, such as `retrieval.passage`; by default the model's own default, or no task.",
    )
    dim: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Number of dimensions to keep of each vector, as many as the model was trained for; by default all.",
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Tokens after which a text is cut, special tokens and prompt included; by default the model's limit.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        default="auto",
        description=(
            "Number format to compute in: `auto` is bfloat16 where the hardware supports it, else float32; `int8` is for "
            "CPUs, faster and approximate."
        ),
    )
    allow_untrained_dim: bool = Field(
        default=False,
        description="Whether `dim` may be one that the model was not trained for, at a loss of accuracy; by default not.",
    )
    max_pixels: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Pixels above which a picture or page is made smaller; by default the model's own limit.",
    )
    exif: Literal["rotate", "ignore"] = Field(
        default="rotate",
        exclude_if=lambda value: value == "rotate",
        description="Whether a picture is turned as its EXIF data says: `rotate` or `ignore`.",
    )
    alpha: Literal["white", "drop"] = Field(
        default="white",
        exclude_if=lambda value: value == "white",
        description="What becomes of transparency: `white` draws a picture on white, `drop` ignores it.",
    )
    outputs: Annotated[tuple[Literal["dense", "multi"], ...], BeforeValidator(as_list)] = Field(
        default=("dense",),
        exclude_if=lambda value: value == ("dense",),
        description=(
            "Vectors of a row: `dense`, one for the whole row; `multi`, one for each of its tokens, for late interaction; or "
            "both, from one pass through the model."
        ),
    )
    multi_pool: Literal[2, 3] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description=(
            "Number of similar vectors of a picture that become one, 2 or 3 (Ward's clustering; `pip install "
            "'vectide[pool]'`); by default, and of texts, none are merged."
        ),
    )
    multi_keep: Literal["all", "content"] = Field(
        default="all",
        exclude_if=lambda value: value == "all",
        description=(
            "Tokens whose vectors are kept: `all`, as the publisher's code does, or `content`, without those of the prompt."
        ),
    )
    adapters: Annotated[dict[str, Adapter], BeforeValidator(_by_name)] = Field(
        default={},
        exclude_if=lambda adapters: not adapters,  # a job without them is written as before there were any
        description=(
            "LoRA adapters to add to a BERT-like model or to one of Jina v2, v3 or v4, by name, as in "
            "`{legal: adapters/legal}`; `task` or `source.task_column` then names them."
        ),
    )

    @model_validator(mode="after")
    def _check(self) -> Encoder:
        for name, adapter in self.adapters.items():
            queries = f"{name}.query"
            if queries in self.adapters and adapter.has_queries:
                raise ValueError(
                    f"adapters names {queries!r}, and query_prompt or query_path of {name!r} makes a task of that name; rename "
                    f"one of the two, or leave that key out"
                )
            if self.task == queries and queries not in self.adapters and not adapter.has_queries:
                raise ValueError(
                    f"task is {queries!r}, and the adapter {name!r} has no query_prompt, which would make that task; give it "
                    f"one, or set task: {name}, whose prompt queries have too"
                )
        return self

    def settings(self) -> EncoderSettings:
        """Return the settings with which the encoder is loaded."""
        adapters = {name: AdapterSettings(**dict(adapter)) for name, adapter in self.adapters.items()}
        return EncoderSettings(**{**dict(self), "adapters": adapters})

    def unused_adapter(self) -> str | None:
        """Return the error message for an adapter that `task` does not use, or None."""
        for name, adapter in self.settings().adapters.items():
            if self.task not in adapter.prompts(name):
                task = "" if self.task is None else f", because encoder.task is {self.task!r}"
                return (
                    f"encoder.adapters names {name!r}, which no row uses{task}; set encoder.task: {name}, or name the column "
                    f"of the rows' tasks in source.task_column, or leave the adapter out"
                )
        return None

    def is_task_of_adapter(self) -> bool:
        """Return whether `task` is one of an adapter, and not of the model."""
        return any(self.task in adapter.prompts(name) for name, adapter in self.settings().adapters.items())

    def check_adapters_readable(self, address: str) -> None:
        """Raise ConfigError if an adapter is a folder of this machine and a cluster runs the encoders.

        Args:
            address: `run.address`.
        """
        cluster = cluster_at(address)
        if cluster in ("inline", "local"):
            return
        paths = {name: adapter.path for name, adapter in self.adapters.items()}
        paths |= {
            f"{name}.query_path": each.query_path for name, each in self.adapters.items() if each.query_path is not None
        }
        for name, path in paths.items():
            folder = Path(path).expanduser()
            if path.startswith((".", "/", "~")) or ("://" not in path and folder.is_dir()):
                raise ConfigError(
                    f"encoder.adapters.{name} is {path!r}, a folder of this machine, and the machines of the "
                    f"cluster {cluster!r} read it; give a URL that they can read, as in s3://bucket/{name}, or the id of "
                    f"a repository on the Hub, or file://{folder.absolute()} if each of them has that folder"
                )
