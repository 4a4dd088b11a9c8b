"""The settings of an encoder, as a user chooses them. Torch-free; `spec.describe` checks them against a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from actors.arguments import need_place
from actors.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """A LoRA adapter to add to a model.

    Attributes:
        path: Its PEFT folder: a local directory, a URL or a hub id.
        prompt: Text put before each text.
        query_prompt: Text put before each query; None: queries have the same prompt as texts.
        query_path: PEFT folder of the adapter for queries; None: queries have the same adapter as texts.
    """

    path: str
    prompt: str = ""
    query_prompt: str | None = None
    query_path: str | None = None

    @classmethod
    def of(cls, value: object, name: str) -> AdapterSettings:
        """Returns settings as they are, or those that a path or a dict of the attributes stands for, as in the job file.

        Args:
            value: What was given.
            name: The adapter's name, for messages.

        Raises:
            ConfigError: The value is none of these.
        """
        if isinstance(value, AdapterSettings):
            return value
        if not isinstance(value, Mapping):
            return cls(need_place(value, f"the adapter {name!r}"))
        known = [each.name for each in fields(cls)]
        if "path" not in value or not value.keys() <= {*known}:
            raise ConfigError(
                f"the adapter {name!r} is {dict(value)!r}; it must be its path, or a dict with `path` and none but these keys: "
                f"{', '.join(known)}"
            )
        given = ("path",) if value.get("query_path") is None else ("path", "query_path")
        paths = {key: need_place(value[key], f"{key} of the adapter {name!r}") for key in given}
        return cls(**{**value, **paths})

    def prompts(self, name: str) -> dict[str, str]:
        """Returns its tasks with their prompts: `name`, and `<name>.query` if queries have a prompt or adapter of their own."""
        if self.query_prompt is None and self.query_path is None:
            return {name: self.prompt}
        return {name: self.prompt, f"{name}.query": self.prompt if self.query_prompt is None else self.query_prompt}


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
        adapters: LoRA adapters to add to the model, by name. Each name becomes a task.
        max_pixels: Larger pictures are reduced to at most this area; None uses the repository's limit.
        exif: "rotate" obeys the orientation in a picture's EXIF data; "ignore" does not, like the publisher's code.
        alpha: "white" draws transparent pictures on white; "drop" drops the alpha channel, like the publisher's code.
        outputs: "dense" (one vector a row), "multi" (one a token, for late interaction), or both.
        multi_pool: 2 or 3: about that many similar vectors of a picture become one (Ward's clustering); None keeps all.
        multi_keep: "all" keeps the vector of each token, as the publisher does; "content" drops those of the prompt.
    """

    model: str
    revision: str | None = None
    task: str | None = None
    dim: int | None = None
    max_tokens: int | None = None
    dtype: str = "auto"
    prompt: str | None = None
    allow_untrained_dim: bool = False
    adapters: Mapping[str, AdapterSettings] = field(default_factory=dict)
    max_pixels: int | None = None
    exif: str = "rotate"
    alpha: str = "white"
    outputs: tuple[str, ...] = ("dense",)
    multi_pool: int | None = None
    multi_keep: str = "all"

    @classmethod
    def of(cls, model: str | Path | EncoderSettings, **others: Any) -> EncoderSettings:
        """Returns settings as they are, or those of a model's name and of the other attributes.

        Args:
            model: The model, or settings.
            others: Attributes. Each of `adapters` may also be a path, or a dict of the attributes of `AdapterSettings`.

        Raises:
            ConfigError: The model or an adapter is none of these.
            TypeError: There is no such attribute, or settings were given twice.
        """
        if not isinstance(model, EncoderSettings):
            if (adapters := others.get("adapters")) is not None:
                if not isinstance(adapters, Mapping):
                    raise ConfigError(
                        f"adapters is {adapters!r}; it must be adapters by name, as in {{'legal': 'adapters/legal'}}"
                    )
                others["adapters"] = {name: AdapterSettings.of(each, name) for name, each in adapters.items()}
            return cls(need_place(model, "the model"), **others)
        if others:
            raise TypeError(f"{', '.join(others)}: the settings of {model.model!r} are complete; change them there.")
        return model
