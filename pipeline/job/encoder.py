"""The section `encoder` of the job file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from actors.encoders.settings import EncoderSettings
from pipeline.job.values import Section


class Encoder(Section):
    """Model and the settings that change its vectors."""

    model: Annotated[str, Field(min_length=1)] = Field(
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

    def settings(self) -> EncoderSettings:
        """Return the settings with which the encoder is loaded."""
        return EncoderSettings(**dict(self))
