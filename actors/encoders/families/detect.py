"""Which family a checkpoint is of, found from its config and tensor names and never from the repository's name.

Torch-free. The order matters only in so far as every layout must refuse what is not its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from actors.encoders.families import bert_layout, jina_v1_layout, jina_v2_layout, jina_v3_layout, jina_v4_layout
from actors.encoders.layout import Config, FamilyFacts, Tensors
from actors.errors import ModelError

# family -> what recognises it. A layout returns None for a checkpoint that is not its own.
LAYOUTS: dict[str, Callable[[Config, Tensors], FamilyFacts | None]] = {
    "jina_v1": jina_v1_layout.layout,
    "jina_v2": jina_v2_layout.layout,
    "jina_v3": jina_v3_layout.layout,
    "jina_v4": jina_v4_layout.layout,
    "bert": bert_layout.layout,
}


_EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps")
# What stands before every name where the whole of a larger object was saved, as sentence-transformers and DDP have them.
_WRAPPERS = ("0.auto_model.", "0.model.", "auto_model.", "module.", "model.")


def detect(config: Config, tensors: Tensors, *, where: str) -> tuple[FamilyFacts, Tensors]:
    """The facts of the one family that recognises this checkpoint.

    Args:
        config: config.json.
        tensors: Of the files.
        where: The checkpoint, for messages.

    Returns:
        The facts, and the tensors by the names that the facts have for them: without what stood before all of them.

    Raises:
        ModelError: No family does, its numbers are quantized, or its norms add no small number.
    """
    if quantized := config.get("quantization_config"):
        how = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelError(
            f"{where} has weights that are quantized ({how!r}), which cannot be read. Take the model that was quantized; "
            "`encoder.dtype: int8` computes it in 8-bit integers on CPUs."
        )
    for key in _EPSILONS:
        eps = config.get(key)
        if eps is not None and not (isinstance(eps, int | float) and 0 < eps < 1):
            raise ModelError(f"{where} has {key} {eps!r} in its config.json, which must be a number between 0 and 1.")
    inner: Tensors | None = tensors
    while inner is not None:
        for recognise in LAYOUTS.values():
            facts = recognise(config, inner)
            if facts is not None:
                return facts, inner
        inner = _unwrapped(inner)
    raise ModelError(
        f"{where} is of no family that is known (model_type {config.get('model_type')!r}, first tensors: "
        f"{', '.join(sorted(tensors)[:4])}). Known families: {', '.join(sorted(LAYOUTS))}."
    )


def _unwrapped(tensors: Tensors) -> Tensors | None:
    """The tensors without what stands before every name; None where nothing does."""
    for wrapper in _WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return {
                name.removeprefix(wrapper): info if info.name else replace(info, name=name)
                for name, info in tensors.items()
            }
    return None
