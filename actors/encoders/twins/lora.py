"""LoRA adapters on a twin, with the `peft` library: several beside one frozen base, each trained on its own rows.

PEFT switches the gradient off for the adapters that it does not use. torch drops the gradient of a parameter whose switch
is off when the backward pass runs, even if the forward pass used it. So `use_lora` switches it on again for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import Embedding, Linear
from torch import nn

from actors.encoders.lora.files import adapter_folder
from actors.encoders.twins.base import Twin
from actors.encoders.twins.factors import LoraFactors, folder_factors, modules_of, published_factors
from actors.errors import ConfigError


def add_lora(
    twin: Twin,
    names: Sequence[str],
    *,
    rank: int,
    alpha: float,
    seed: int,
    starts: Sequence[LoraFactors] = (),
) -> None:
    """Freezes a twin and adds an adapter for each name to all its linear layers. The last one is in use.

    The adapters change no result until they are trained, because their up factors are zeros.

    Args:
        twin: A twin without adapters.
        names: Of the adapters, at least one.
        rank: Rank of the factors.
        alpha: Numerator of their scale.
        seed: Of the random numbers in the down factors.
        starts: Factors with which the adapters start, one for each; empty: as new ones. Adapters of tables are added only
            for the tables that one of them changes.

    Raises:
        ConfigError: One of `starts` has another rank or alpha.
    """
    for start in starts:
        if (start.rank, start.alpha) != (rank, alpha):
            raise ConfigError(
                f"train.start_from is an adapter with rank {start.rank} and alpha {start.alpha:g}, and the job has rank {rank} and "
                f"alpha {alpha:g}. An adapter keeps both while it is trained: leave train.rank and train.alpha out, or set them so."
            )
    linear = [name for name in modules_of(twin) if isinstance(twin.get_submodule(name), nn.Linear)]
    modules = sorted({*linear, *(module for start in starts for module in start.pairs)})
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules)  # type: ignore[arg-type]
    twin.requires_grad_(requires_grad=False)
    first, *others = (_inside(name) for name in names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        injected = LoraModel(twin, dict.fromkeys((first, *others), config), first)
        for other in others:
            injected.inject_adapter(twin, other)
    for name, start in zip(names, starts, strict=bool(starts)):
        _put(twin, name, start)
    use_lora(twin, names[-1])


def start_factors(twin: Twin, start_from: str) -> LoraFactors:
    """Reads the adapter with which a training starts.

    Args:
        twin: The model.
        start_from: An adapter of the model's checkpoint by its name or its task, or a PEFT folder: a directory, a URL or
            a hub id.

    Raises:
        ModelError: The adapter is missing, or does not fit the model.
    """
    if start_from in (*twin.facts.tasks, *twin.facts.adapters):
        return published_factors(twin, start_from)
    with adapter_folder(start_from, start_from) as folder:
        return folder_factors(twin, folder)


def use_lora(twin: Twin, name: str | None) -> None:
    """Chooses the adapter of the next forward pass; None: the base alone. All adapters keep their gradients."""
    active = [] if name is None else [_inside(name)]
    for _, layer in _layers(twin):
        if layer.active_adapters != active:
            layer.set_adapter(active)
            for part, parameter in layer.named_parameters():
                parameter.requires_grad_(part.startswith("lora_"))


def factors_of(twin: Twin, name: str) -> LoraFactors:
    """Returns a copy of the factors of an adapter, float32 on the CPU."""
    inside, pairs = _inside(name), {}
    rank, alpha = 0, 0.0
    for module, layer in _layers(twin):
        down, up = _parameters(layer, inside)
        pairs[module] = (_copy(down), _copy(up))
        rank, alpha = layer.r[inside], layer.lora_alpha[inside]
    return LoraFactors(rank, alpha, pairs)


def _put(twin: Twin, name: str, factors: LoraFactors) -> None:
    layers = dict(_layers(twin))
    with torch.no_grad():
        for module, values in factors.pairs.items():
            for parameter, value in zip(_parameters(layers[module], _inside(name)), values, strict=True):
                parameter.copy_(value)


def _parameters(layer: Linear | Embedding, inside: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns A and B of an adapter."""
    if isinstance(layer, Embedding):
        return layer.lora_embedding_A[inside], layer.lora_embedding_B[inside]
    down, up = (cast("nn.Linear", side[inside]).weight for side in (layer.lora_A, layer.lora_B))
    return down, up


def _layers(twin: Twin) -> Iterable[tuple[str, Linear | Embedding]]:
    return ((name, module) for name, module in twin.named_modules() if isinstance(module, Linear | Embedding))


def _inside(name: str) -> str:
    """Returns a name that torch's containers take: without dots, and no attribute of theirs. Two names stay two."""
    return "task_" + name.replace("%", "%25").replace(".", "%2E")


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
