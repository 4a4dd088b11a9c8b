"""Reads sentence-transformers' files of a repository: pooling, prompts and token limit.

Torch-free; called by `spec.describe`. An unknown module that would change vectors is refused, not skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.encoders.checkpoint import read_json, within
from actors.errors import ModelError

# mean_sqrt_len_tokens divides the sum by another number, which is the same as the mean after normalising to unit length.
_POOLINGS = {
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
    "lasttoken": "last",
}
# In the order in which sentence-transformers looks for them.
_SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# A token and one special token on each side.
SHORTEST_TEXT = 3
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Repository:
    """Settings of a repository outside config.json.

    Attributes:
        folder: The folder of config.json, weights and tokenizer.json (the root, or the first module's folder).
        pooling: "mean", "cls", "last", or None if not specified.
        max_tokens: `max_seq_length`, or None if not specified; a value that is not a whole number is kept as text.
        lowercase: The tokenizer lower-cases texts before its other steps.
        prompts: Named texts to put before texts.
        default_prompt: Name of the prompt used when none is named.
    """

    folder: Path
    pooling: str | None = None
    max_tokens: int | str | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def read_repository(root: Path) -> Repository:
    """Reads modules.json and the files it refers to; without them, no setting is specified.

    Raises:
        ModelError: A module or a pooling that is not supported or whose folder is missing, or a default prompt without text.
    """
    folder, pooling = _modules(root)
    sentence: dict[str, Any] = {}
    for name in _SENTENCE_CONFIGS:
        if sentence := _document(folder / name):
            break
    asked = _document(root / "config_sentence_transformers.json")
    prompts = _prompts(asked, root)
    default = asked.get("default_prompt_name")
    # sentence-transformers has these two built in, without a text.
    if default is not None and default not in (*prompts, "query", "document"):
        known = f"its prompts are {', '.join(map(repr, prompts))}" if prompts else "it has no prompts"
        raise ModelError(
            f"{root}/config_sentence_transformers.json has default_prompt_name {default!r}, and {known}. Name one of them "
            "there, or take the setting out for texts without a prompt."
        )
    return Repository(
        folder=folder,
        pooling=pooling,
        max_tokens=_max_seq_length(sentence, folder),
        lowercase=bool(sentence.get("do_lower_case", False)),
        prompts=prompts if any(prompts.values()) else {},
        default_prompt=default,
    )


def _modules(root: Path) -> tuple[Path, str | None]:
    """Returns the transformer's folder and the pooling of the modules in modules.json."""
    folder, pooling = root, None
    listed = root / "modules.json"
    modules = read_json(listed) or ()
    if not isinstance(modules, list | tuple) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{listed} is not a list of modules. Fetch the checkpoint again.")
    for number, module in enumerate(modules):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        path = str(module.get("path", ""))
        at = within(root, path)
        if kind == "Pooling" and number and pooling is None:
            if not (at / "config.json").is_file():
                raise ModelError(
                    f"{listed} has a Pooling module in the folder {path!r}, and {at}/config.json is not there. "
                    "Fetch the checkpoint again with its subfolders."
                )
            pooling = _pooling(at / "config.json")
        elif kind in ("Normalize", "Dropout") and number:
            continue  # vectors are normalised anyway, and dropout is inactive outside of training
        elif kind == "Transformer" and not number:
            if not at.is_dir():
                raise ModelError(
                    f"{listed} has its transformer in the folder {path!r}, and {at} is not there. "
                    "Fetch the checkpoint again with its subfolders."
                )
            folder = at
        else:
            raise ModelError(
                f"{listed} has a module of type {module.get('type')!r} at place {number} that would change vectors and is "
                "not supported (known: a transformer, then Pooling, then Normalize or Dropout). Take another model."
            )
    if modules and pooling is None and str(modules[0].get("type", "")).startswith("sentence_transformers."):
        raise ModelError(
            f"{listed} has no Pooling module, so it does not say what a text's vector is. Fetch the checkpoint again, or add "
            "the module that its model card names."
        )
    return folder, pooling


def _document(path: Path) -> dict[str, Any]:
    """Returns a JSON file's object; empty if there is no file.

    Raises:
        ModelError: It is not an object.
    """
    found = read_json(path)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ModelError(f"{path} has {type(found).__name__} where an object of settings is needed. Fetch it again.")
    return found


def _prompts(asked: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Returns the named prompts; null means no text, as in sentence-transformers."""
    prompts = asked.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise ModelError(
            f"{root}/config_sentence_transformers.json has prompts {str(prompts)[:_SHOWN]!r} where texts by their names are needed. "
            "Fetch it again."
        )
    return {name: text or "" for name, text in prompts.items()}


def _max_seq_length(sentence: Mapping[str, Any], folder: Path) -> int | str | None:
    """Returns `max_seq_length` or, if missing, the tokenizer's `model_max_length`, as in sentence-transformers."""
    said = sentence.get("max_seq_length")
    if said is None:
        limit = _document(folder / "tokenizer_config.json").get("model_max_length")
        # Files without a limit have 10^30 here, as a float.
        return limit if type(limit) is int and limit >= SHORTEST_TEXT else None
    return said if type(said) is int else repr(said)


def _pooling(path: Path) -> str:
    config = _document(path)
    named = config.get("pooling_mode")
    on = [named] if isinstance(named, str) else list(named) if isinstance(named, list) else []
    on = on or [key.removeprefix("pooling_mode_") for key, value in config.items() if _is_mode(key) and value]
    if not any(key.startswith("pooling_mode") for key in config):
        on = ["mean"]  # as in sentence-transformers
    if len(on) != 1 or not isinstance(on[0], str) or on[0] not in _POOLINGS:
        asked = ", ".join(map(str, on)) or "none that is known"
        raise ModelError(
            f"{path} asks for pooling {asked}; supported is one of mean, cls, lasttoken. Take another model: one with the right "
            "pooling was trained for it."
        )
    if config.get("include_prompt") is False:
        raise ModelError(
            f"{path} has include_prompt false (pooling without the prompt), which is not supported. Set it to true if no "
            "prompt is used: the vectors are the same then."
        )
    return _POOLINGS[on[0]]


def _is_mode(key: str) -> bool:
    return key.startswith("pooling_mode_")
