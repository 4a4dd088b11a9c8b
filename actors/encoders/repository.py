"""What a repository says about itself beside config.json: pooling, prompts, token limit, in sentence-transformers' files.

Torch-free; called by `spec.describe`. A module that would change vectors and is not known here is refused rather
than skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.encoders.checkpoint import read_json, within
from actors.errors import ModelError

_POOLINGS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "lasttoken": "last"}


@dataclass(frozen=True, slots=True)
class Repository:
    """Settings found beside a model's config.

    Attributes:
        folder: Where config.json, weights and tokenizer.json are (the root, or the first module's folder).
        pooling: "mean", "cls", "last", or None where it is not said.
        max_tokens: `max_seq_length`, or None.
        lowercase: Texts are lower-cased before the tokenizer.
        prompts: Named texts to put in front.
        default_prompt: Name of the one used when none is asked for.
    """

    folder: Path
    pooling: str | None = None
    max_tokens: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def read_repository(root: Path) -> Repository:
    """Reads modules.json and the files it leads to; without them, everything is left open.

    Raises:
        ModelError: A module or a pooling that is not supported.
    """
    folder, pooling = root, None
    for module in read_json(root / "modules.json") or ():
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        at = within(root, str(module.get("path", "")))
        if kind == "Pooling":
            pooling = _pooling(at / "config.json")
        elif kind == "Normalize":
            continue
        elif module.get("idx") == 0:
            folder = at
        else:
            raise ModelError(
                f"{root}/modules.json has a module of type {module.get('type')!r} that would change vectors and is "
                "not supported (known: a transformer, Pooling, Normalize)."
            )
    sentence = read_json(folder / "sentence_bert_config.json") or {}
    asked = read_json(root / "config_sentence_transformers.json") or {}
    prompts = {str(name): str(text) for name, text in (asked.get("prompts") or {}).items() if text is not None}
    return Repository(
        folder=folder,
        pooling=pooling,
        max_tokens=sentence.get("max_seq_length"),
        lowercase=bool(sentence.get("do_lower_case", False)),
        prompts=prompts if any(prompts.values()) else {},
        default_prompt=asked.get("default_prompt_name"),
    )


def _pooling(path: Path) -> str:
    config: dict[str, Any] = read_json(path) or {}
    named = config.get("pooling_mode")
    on = [named] if isinstance(named, str) else []
    on = on or [key.removeprefix("pooling_mode_") for key, value in config.items() if _is_mode(key) and value]
    if len(on) != 1 or on[0] not in _POOLINGS:
        raise ModelError(f"{path} asks for pooling {on}; supported is one of mean, cls, lasttoken.")
    if config.get("include_prompt") is False:
        raise ModelError(f"{path} has include_prompt false (pooling without the prompt), which is not supported.")
    return _POOLINGS[on[0]]


def _is_mode(key: str) -> bool:
    return key.startswith("pooling_mode_")
