"""Places in a job as plain data: the sections with a URI, and the settings with a model. Used where a job runs elsewhere."""

from __future__ import annotations

from typing import Any


def sections_with_uri(document: dict[str, Any]) -> list[str]:
    """Return the names of the sections of a job that have a URI."""
    return [name for name in ("source", "pairs", "corpus", "table") if name in document]


def sections_with_model(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of a job that name a model: an encoder, steps of a curation."""
    steps = [settings for step in document.get("steps", ()) for settings in step.values()]
    return [settings for settings in (document.get("encoder", {}), *steps) if settings.get("model")]
