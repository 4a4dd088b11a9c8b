"""The factors of LoRA adapters by the modules of a twin: read from PEFT folders and published checkpoints, and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from actors.encoders.build import opened
from actors.encoders.compute.device import Compute
from actors.encoders.families import jina_v3_layout, jina_v4_layout
from actors.encoders.lora.files import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    AdapterFiles,
    Part,
    Target,
    endings,
    read_adapter,
    unwrapped,
)
from actors.encoders.spec import check_task
from actors.encoders.twins.base import Twin
from actors.errors import ModelError

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """An adapter (Hu et al. 2021, arXiv 2106.09685): each weight W becomes W + alpha / rank * B A.

    Attributes:
        rank: Rank of the factors.
        alpha: Numerator of their scale.
        pairs: A and B by the modules of the twin, as PEFT shapes them: of a linear layer [rank, inputs] and
            [outputs, rank], of an embedding [rank, rows] and [width, rank].
    """

    rank: int
    alpha: float
    pairs: Mapping[str, Pair]


def folder_factors(twin: Twin, folder: Path) -> LoraFactors:
    """Reads a PEFT folder.

    Raises:
        ModelError: It does not fit the model, is more than plain LoRA, or changes parts of one module of the twin by
            different down factors.
    """
    return _of_files(twin, read_adapter(folder, twin.facts.targets))


def published_factors(twin: Twin, task: str) -> LoraFactors:
    """Reads the adapter that the checkpoint of a twin has for a task.

    Raises:
        ConfigError: The model has no such task.
        ModelError: The checkpoint has no adapter for it, or see `folder_factors`.
    """
    name = jina_v4_layout.adapter_of(task) if twin.facts.family == "jina_v4" else task
    if name in twin.facts.adapters:
        return _of_files(twin, twin.facts.adapter(twin.folder, name))
    check_task(task, twin.facts.tasks, where=twin.spec.model)
    if twin.facts.variant != "hub":
        raise ModelError(f"model {twin.spec.model} has no adapter for {task!r} to start from. Leave start_from out.")
    k, pairs = twin.facts.tasks.index(task), {}
    with opened(twin.spec, Compute(torch.device("cpu"), torch.float32)) as checkpoint, torch.inference_mode(mode=False):
        for module, targets in modules_of(twin).items():
            factors = (f"{module}.{factor}" for factor in (jina_v3_layout.DOWN, jina_v3_layout.UP))
            # Copies, because the tensors of all tasks are one.
            down, up = (checkpoint.weights.get(name)[k].clone() for name in factors)
            # The file has the factors of an embedding transposed.
            pairs[module] = (down.T, up.T) if targets[0].embedding else (down, up)
    return LoraFactors(int(twin.config["lora_rank"]), float(twin.config.get("lora_alpha", 1)), pairs)


def save_factors(twin: Twin, factors: LoraFactors, folder: Path) -> None:
    """Writes a PEFT folder for transformers' class of the model; the encoder takes it too (`encoder.adapters`).

    The class of v4 has no projector: PEFT loads its factors only after `model.multi_vector_projector` was set.

    Args:
        twin: The model of the adapter.
        factors: The adapter.
        folder: Is created if needed; files in it are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(peft_tensors(twin, factors), folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": twin.spec.model,
        "revision": twin.spec.revision,
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "inference_mode": True,
        "r": factors.rank,
        "lora_alpha": factors.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        # Whole names: the last parts of some are names of other layers too (a pooler, a vision tower).
        "target_modules": [unwrapped(part) for module in factors.pairs for part in twin.parts_of(module)],
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def peft_tensors(twin: Twin, factors: LoraFactors, named: str | None = None) -> dict[str, torch.Tensor]:
    """Returns the factors by PEFT's names for transformers' class.

    Args:
        twin: The model.
        factors: The adapter.
        named: The adapter's name in a file of several; None for a file of its own.
    """
    tensors = {}
    targets = modules_of(twin)
    for module, (down, up) in factors.pairs.items():
        parts = twin.parts_of(module)
        down_end, up_end, _ = endings(named)[targets[module][0].embedding]
        for part, rows in zip(parts, up.chunk(len(parts)), strict=True):
            # Copies, because a file has no two names for one tensor.
            tensors[f"{PREFIX}{part}{down_end}"] = down.detach().cpu().clone(memory_format=torch.contiguous_format)
            tensors[f"{PREFIX}{part}{up_end}"] = rows.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors


def modules_of(twin: Twin) -> dict[str, tuple[Target, ...]]:
    """Returns the linear layers and the tables of a twin that an adapter may change, each with its parts in files."""
    named = [
        name.removesuffix(".base_layer")  # of a layer that PEFT has wrapped
        for name, module in twin.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and ".lora_" not in name
    ]
    targets = twin.facts.targets
    parts = {name: [unwrapped(part) for part in twin.parts_of(name)] for name in named}
    return {name: tuple(targets[part] for part in own) for name, own in parts.items() if own[0] in targets}


def _of_files(twin: Twin, files: AdapterFiles) -> LoraFactors:
    modules = modules_of(twin)
    owners = {(target.module, target.start): name for name, targets in modules.items() for target in targets}
    parts: dict[str, list[Part]] = {}
    for part in files.parts:
        # A part that is a whole module of ours starts where its first part does.
        parts.setdefault(owners[part.target.module, part.target.start], []).append(part)
    pairs = {}
    with safe_open(str(files.folder / WEIGHTS), framework="pt") as file:
        for name, own in parts.items():
            down, *others = (file.get_tensor(part.down).float() for part in own)
            if any(not torch.equal(other, down) for other in others):
                raise ModelError(
                    f"{files.folder} changes the {len(own)} parts of {name!r} by different down factors (lora_A), and one "
                    f"layer of the model that is trained has one. Train a new adapter, without start_from."
                )
            up = torch.zeros(sum(target.outputs for target in modules[name]), down.shape[0])
            for part in own:
                start = part.target.start - modules[name][0].start
                up[start : start + part.target.outputs] = file.get_tensor(part.up)
            pairs[name] = down, up
    rank = next(iter(pairs.values()))[0].shape[0]
    return LoraFactors(rank, files.scale * rank, pairs)
