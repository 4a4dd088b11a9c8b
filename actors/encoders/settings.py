"""The settings of an encoder, as a user chooses them. Torch-free; `spec.describe` checks them against a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """A model and the settings that change its vectors.

    Attributes:
        model: Hub id or local directory.
        revision: Branch, tag or commit of a hub id.
        task: One of the model's tasks; None selects its default.
        dim: Width of shortened vectors (pool, slice, normalise); None keeps the full width.
        max_tokens: Limit per text, special tokens included; None uses the repository's.
        dtype: "auto" (16-bit arithmetic where the hardware supports it), "bfloat16" (the same class), "float32", or "int8"
            (products of 8-bit integers, CPUs only: faster, but an approximation whose quality must be measured).
        prompt: Text put before each text instead of the published one.
        allow_untrained_dim: Shorten vectors of a model that was not trained for it.
    """

    model: str
    revision: str | None = None
    task: str | None = None
    dim: int | None = None
    max_tokens: int | None = None
    dtype: str = "auto"
    prompt: str | None = None
    allow_untrained_dim: bool = False

    @classmethod
    def of(cls, model: str | EncoderSettings, **others: Any) -> EncoderSettings:
        """Returns settings as they are, or those of a model's name and of the other attributes.

        Raises:
            TypeError: There is no such attribute, or settings were given twice.
        """
        if isinstance(model, str):
            return cls(model, **others)
        if others:
            raise TypeError(f"{', '.join(others)}: the settings of {model.model!r} are complete; change them there.")
        return model
