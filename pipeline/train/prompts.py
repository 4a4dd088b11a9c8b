"""Prompts of the two sides of a pair. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from actors.encoders.spec import ModelSpec


def prompts_of(spec: ModelSpec, tasks: Sequence[str]) -> tuple[str, str]:
    """Return the texts put before each query and each passage.

    Those of the trained tasks if the model has them, of which some have a prompt for each side. A new task has those of the
    model.
    """
    query, passage = (tasks[0], tasks[-1]) if tasks else ("", "")
    of_queries = (f"{query}.query", query)
    of_passages = (f"{passage}.passage", passage)
    return (
        next((spec.prompts[name] for name in of_queries if name in spec.prompts), spec.query_side().prompt),
        next((spec.prompts[name] for name in of_passages if name in spec.prompts), spec.prompt),
    )
