"""Places in a job as plain data: URIs of files and folders, and the settings with a model. Used where a job runs elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SECTIONS = ("source", "pairs", "corpus", "table", "out")
_OF_EVALUATION = ("corpus", "queries", "judgements")
_OF_DATA = ("uri", "negatives", "teacher")


def places(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the full key of each URI of a job, the section that holds it, and its key there."""
    for name in _SECTIONS:
        if name in document:
            yield f"{name}.uri", document[name], "uri"
    evaluate = document.get("train", {}).get("evaluate") or {}
    yield from ((f"train.evaluate.{key}", evaluate, key) for key in _OF_EVALUATION if key in evaluate)
    for number, source in enumerate(document.get("data", ())):
        yield from ((f"data.{number}.{key}", source, key) for key in _OF_DATA if source.get(key))
        if source.get("texts"):
            yield f"data.{number}.texts.uri", source["texts"], "uri"


def models(document: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the same of each model and adapter, which may be a folder of this machine, or a name on the Hub or in a model."""
    for name in ("encoder", "train"):
        if document.get(name, {}).get("model"):
            yield f"{name}.model", document[name], "model"
    starts = document.get("train", {}).get("start_from") or []
    yield from (("train.start_from", starts, number) for number in range(len(starts)))
    for step in document.get("steps", ()):
        yield from (("model", settings, "model") for settings in step.values() if settings.get("model"))
