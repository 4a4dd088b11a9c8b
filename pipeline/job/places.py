"""Places in a job as plain data: URIs of files and folders, and the settings with a model. Used where a job runs elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SECTIONS = ("source", "pairs", "corpus", "table", "out")
_OF_TRAINING = ("start_from", "corpus", "queries", "judgements")  # of `train` and of `train.evaluate`
_OF_DATA = ("uri", "negatives", "teacher")


def places(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the full key of each URI of a job, the section that holds it, and its key there."""
    for name in _SECTIONS:
        if name in document:
            yield f"{name}.uri", document[name], "uri"
    train = document.get("train", {})
    for name, section in (("train", train), ("train.evaluate", train.get("evaluate") or {})):
        yield from ((f"{name}.{key}", section, key) for key in _OF_TRAINING if section.get(key))
    for number, source in enumerate(document.get("data", ())):
        yield from ((f"data.{number}.{key}", source, key) for key in _OF_DATA if source.get(key))
        if source.get("texts"):
            yield f"data.{number}.texts.uri", source["texts"], "uri"


def models(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the full key of each model of a job, and the section that holds its key `model`."""
    for name in ("encoder", "train"):
        if name in document:
            yield f"{name}.model", document[name]
    for step in document.get("steps", ()):
        yield from (("model", settings) for settings in step.values() if settings.get("model"))
