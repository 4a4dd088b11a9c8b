"""Which family a checkpoint is of, found from its config and tensor names and never from the repository's name.

Torch-free. The order matters only in so far as every layout must refuse what is not its own.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.encoders import layout_bert, layout_jina_v1, layout_jina_v2, layout_jina_v3, layout_jina_v4
from actors.encoders.layout import Config, FamilyFacts, Tensors
from actors.errors import ModelError

# family -> what recognises it. A layout returns None for a checkpoint that is not its own.
LAYOUTS: dict[str, Callable[[Config, Tensors], FamilyFacts | None]] = {
    "jina_v1": layout_jina_v1.layout,
    "jina_v2": layout_jina_v2.layout,
    "jina_v3": layout_jina_v3.layout,
    "jina_v4": layout_jina_v4.layout,
    "bert": layout_bert.layout,
}


def detect(config: Config, tensors: Tensors, *, where: str) -> FamilyFacts:
    """The facts of the one family that recognises this checkpoint.

    Raises:
        ModelError: None does.
    """
    for recognise in LAYOUTS.values():
        facts = recognise(config, tensors)
        if facts is not None:
            return facts
    raise ModelError(
        f"{where} is of no family that is known (model_type {config.get('model_type')!r}, first tensors: "
        f"{', '.join(sorted(tensors)[:4])}). Known families: {', '.join(sorted(LAYOUTS))}."
    )
