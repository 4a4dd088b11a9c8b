"""Detects the family of a checkpoint from its config and tensor names, never from the repository's name.

Torch-free. `FAMILIES` is the only registry of families; its order does not matter, because every layout returns None
for a checkpoint that is not its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from actors.encoders.families import (
    bert_layout,
    jina_colbert_v2_layout,
    jina_v1_layout,
    jina_v2_layout,
    jina_v3_layout,
    jina_v4_layout,
)
from actors.encoders.layout import Config, FamilyFacts, Tensors
from actors.errors import ModelError

# family -> (its layout, "module:function" of its builder). The builder is imported by `build.build_family` when it is
# needed, because it imports torch.
FAMILIES: dict[str, tuple[Callable[[Config, Tensors], FamilyFacts | None], str]] = {
    "jina_v1": (jina_v1_layout.layout, "actors.encoders.families.jina_v1:build"),
    "jina_v2": (jina_v2_layout.layout, "actors.encoders.families.jina_v2:build"),
    "jina_v3": (jina_v3_layout.layout, "actors.encoders.families.jina_v3:build"),
    "jina_v4": (jina_v4_layout.layout, "actors.encoders.families.jina_v4:build"),
    "jina_colbert_v2": (jina_colbert_v2_layout.layout, "actors.encoders.families.jina_colbert_v2:build"),
    "bert": (bert_layout.layout, "actors.encoders.families.bert:build"),
}


_EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps")
# Prefixes of every name in a file that holds a larger object, as sentence-transformers and DDP save it.
_WRAPPERS = ("0.auto_model.", "0.model.", "auto_model.", "module.", "model.")


def detect(config: Config, tensors: Tensors, *, where: str) -> tuple[FamilyFacts, Tensors]:
    """Returns the facts of the family that recognises this checkpoint.

    Args:
        config: config.json.
        tensors: Tensors of the weight files.
        where: Name of the checkpoint in messages.

    Returns:
        The facts, and the tensors by the names that the facts use: without a wrapper's prefix common to all names.

    Raises:
        ModelError: No family recognises it, its weights are quantized, or the epsilon of its norms is not between 0
            and 1.
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
        for recognise, _ in FAMILIES.values():
            facts = recognise(config, inner)
            if facts is not None:
                return facts, inner
        inner = _remove_wrapper(inner)
    raise ModelError(
        f"{where} is of no family that is known (model_type {config.get('model_type')!r}, first tensors: "
        f"{', '.join(sorted(tensors)[:4])}). Known families: {', '.join(sorted(FAMILIES))}."
    )


def _remove_wrapper(tensors: Tensors) -> Tensors | None:
    """Returns the tensors without a wrapper's prefix that all names share; None if there is none."""
    for wrapper in _WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return {
                name.removeprefix(wrapper): info if info.name else replace(info, name=name)
                for name, info in tensors.items()
            }
    return None
