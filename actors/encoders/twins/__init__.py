"""Encoders as plain torch modules, for training: the same checkpoints and results as `families`, with gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import cast

import torch

from actors.encoders.build import Checkpoint, opened
from actors.encoders.compute.device import Compute
from actors.encoders.spec import ModelSpec
from actors.encoders.twins.base import Twin
from actors.errors import ConfigError

# The class of each family, as "module:class".
TWINS = {
    "bert": "actors.encoders.twins.bert:BertTwin",
    "jina_v1": "actors.encoders.twins.jina_v1:JinaV1Twin",
    "jina_v2": "actors.encoders.twins.jina_v2:JinaV2Twin",
    "jina_v3": "actors.encoders.twins.jina_v3:JinaV3Twin",
    "jina_v4": "actors.encoders.twins.jina_v4:JinaV4Twin",
}


def load_twin(spec: ModelSpec, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Twin:
    """Loads the model of a spec as a torch module whose parameters all have gradients.

    Args:
        spec: The model; its adapters are not loaded.
        dtype: Type of the parameters.
        device: Device of the parameters.

    Raises:
        ConfigError: The family cannot be trained.
        ModelError: The checkpoint on this machine is incomplete, or is not the one that the spec describes.
    """
    twin_class = _class_of(spec)
    with _opened(spec) as checkpoint, torch.inference_mode(mode=False):
        with torch.device("meta"):  # the parameters are read, so none is drawn
            twin = twin_class(checkpoint)
        # A copy, because the reader's tensors are mapped from the file.
        values = {name: value.to(device, dtype, copy=True) for name, value in twin.read(checkpoint.weights)}
        twin.load_state_dict(values, assign=True)
    return twin


def empty_twin(spec: ModelSpec) -> Twin:
    """Builds the torch module of a model without reading a weight: its parameters have shapes only.

    Raises:
        ConfigError: The family cannot be trained.
        ModelError: As for `load_twin`.
    """
    with _opened(spec) as checkpoint, torch.device("meta"):
        return _class_of(spec)(checkpoint)


def _opened(spec: ModelSpec) -> AbstractContextManager[Checkpoint]:
    return opened(spec, Compute(torch.device("cpu"), torch.float32))


def _class_of(spec: ModelSpec) -> type[Twin]:
    if spec.family not in TWINS:
        raise ConfigError(
            f"model {spec.model} is of family {spec.family!r}, which cannot be trained; "
            f"those that can are {', '.join(TWINS)}."
        )
    module, name = TWINS[spec.family].split(":")
    return cast("type[Twin]", getattr(import_module(module), name))
