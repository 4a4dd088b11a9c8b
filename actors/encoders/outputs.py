"""Chooses the outputs of a model by the settings, and checks them against the checkpoint. Torch-free; called by `describe`."""

from __future__ import annotations

from importlib.util import find_spec

from actors.encoders import muvera
from actors.encoders.layout import FamilyFacts
from actors.encoders.settings import EncoderSettings
from actors.errors import ConfigError
from actors.schema import EMBEDDING, EMBEDDING_MULTI
from actors.vectors import VectorColumn

KINDS = ("dense", "multi")
POOLS = (2, 3)
KEEPS = ("all", "content")


def choose_outputs(settings: EncoderSettings, facts: FamilyFacts) -> tuple[tuple[VectorColumn, ...], int]:
    """Returns the outputs, none for a single dense vector, and the width of the dense vector, or of the many if it is alone.

    Raises:
        ConfigError: A setting does not fit the model or the others.
    """
    outputs = tuple(settings.outputs)
    unknown = [kind for kind in outputs if kind not in KINDS]
    if unknown or not outputs or len(set(outputs)) < len(outputs):
        raise ConfigError(f"encoder.outputs is {list(outputs)}; name dense or multi or both, each once.")
    if facts.outputs:
        return facts.outputs, _dim(settings, facts)
    if facts.encoded and "multi" not in outputs:
        raise ConfigError(
            f"encoder.outputs is {list(outputs)}, and {settings.model} makes many vectors a row: its dense one is an encoding "
            f"of them, which finds candidates only. Set encoder.outputs to [dense, multi] or [multi]."
        )
    if "multi" not in outputs:
        _refuse_settings_of_many(settings)
        return (), _dim(settings, facts)
    if not facts.multi_dim:
        raise ConfigError(
            f"encoder.outputs names multi, and {settings.model} has no projector for many vectors a row. Leave multi out, or "
            f"take jinaai/jina-embeddings-v4 (its -vllm- repositories have none) or jinaai/jina-colbert-v2."
        )
    _check_many(settings)
    if facts.encoded:
        dim = _dim(settings, facts)
        encoding = (VectorColumn(EMBEDDING, "dense", muvera.DIM, normalized=False),) if "dense" in outputs else ()
        return (*encoding, VectorColumn(EMBEDDING_MULTI, "multi", dim)), dim
    many = VectorColumn(EMBEDDING_MULTI, "multi", facts.multi_dim)
    if "dense" in outputs:
        dim = _dim(settings, facts)
        return (VectorColumn(EMBEDDING, "dense", dim), many), dim
    if settings.dim is not None:
        raise ConfigError(
            f"encoder.dim {settings.dim} shortens the dense vector, and encoder.outputs names multi only. Leave dim out, or "
            f"add dense."
        )
    return (many,), facts.multi_dim


def _refuse_settings_of_many(settings: EncoderSettings) -> None:
    unset = EncoderSettings(settings.model)
    for name in ("multi_pool", "multi_keep"):
        if (value := getattr(settings, name)) != getattr(unset, name):
            raise ConfigError(
                f"encoder.{name} is {value}, which is for many vectors a row, and encoder.outputs does not name multi. Add "
                f"multi there, or leave {name} out."
            )


def _check_many(settings: EncoderSettings) -> None:
    if settings.multi_keep not in KEEPS:
        raise ConfigError(f"encoder.multi_keep {settings.multi_keep!r} is not known; use one of {', '.join(KEEPS)}.")
    if settings.multi_pool is None:
        return
    if settings.multi_pool not in POOLS:
        raise ConfigError(f"encoder.multi_pool {settings.multi_pool!r} is not known; use 2 or 3, or leave it out.")
    if find_spec("scipy") is None:
        raise ConfigError("encoder.multi_pool needs the package scipy: pip install 'vectide[pool]'.")


def _dim(settings: EncoderSettings, facts: FamilyFacts) -> int:
    dim, model = settings.dim, settings.model
    full = facts.multi_dim if facts.encoded else facts.hidden
    if dim is None or dim == full:
        return full
    if not 0 < dim < full:
        raise ConfigError(f"dim {dim} is outside 1..{full}, the width of {model}.")
    if settings.allow_untrained_dim or (facts.dims is not None and dim in facts.dims):
        return dim
    if not facts.dims:
        reason = f"{model} was not trained for shorter vectors, so cutting its {full} loses accuracy blindly"
    else:
        reason = f"{model} was trained for dims {', '.join(map(str, facts.dims))}"
    raise ConfigError(f"dim {dim}: {reason}. Leave dim out, or set allow_untrained_dim to take the loss.")
