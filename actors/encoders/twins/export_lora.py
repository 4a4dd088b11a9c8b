"""Exports trained adapters in the layouts in which the adapters of v3 and v4 are published.

A whole checkpoint is written: the base's, with the trained adapters in it. A trained adapter replaces that of the same task,
or is a task more. The other adapters keep their values bit for bit.

- v3, hub: the stacked tensors of torch's `parametrizations` in the file of the weights, with one entry for each task.
- v3, native: a PEFT folder for each task.
- v4: one file of one PEFT folder, in which the names of the factors contain the adapter's name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from actors.encoders.checkpoint import read_json, within
from actors.encoders.families import jina_v3_layout, jina_v4_layout
from actors.encoders.families.detect import detect
from actors.encoders.lora.files import CONFIG, PREFIX, WEIGHTS, endings, takes_no_adapters, unwrapped
from actors.encoders.twins.base import Twin
from actors.encoders.twins.export import copy_settings
from actors.encoders.twins.factors import LoraFactors, modules_of, peft_tensors, save_factors
from actors.encoders.weight_files import INDEX, read_tensors
from actors.errors import ConfigError

Adapters = Mapping[str, LoraFactors]
_STACKED = (jina_v3_layout.DOWN, jina_v3_layout.UP)


def export_adapters(twin: Twin, adapters: Adapters, folder: Path, *, prompts: Mapping[str, str] = {}) -> Path:
    """Writes the checkpoint of a twin with adapters of these tasks.

    Args:
        twin: The base.
        adapters: The trained adapters by task. Of v4, by the name of the adapter (`retrieval`) or of one of its tasks.
        folder: Is created if needed; files in it are replaced.
        prompts: Texts put before each text of a new task, by task. v4 has the same two for each of its tasks.

    Returns:
        The folder of config.json in it.

    Raises:
        ConfigError: The layout cannot hold such an adapter, such as one of another rank, or the base has no adapters.
    """
    if twin.facts.family == "jina_v4":
        return _export_v4(twin, adapters, folder)
    if twin.facts.family != "jina_v3":
        raise takes_no_adapters(twin.spec.model, twin.facts.family)
    export = _export_v3_hub if twin.facts.variant == "hub" else _export_v3_folders
    return export(twin, adapters, folder, prompts)


def _export_v3_hub(twin: Twin, adapters: Adapters, folder: Path, prompts: Mapping[str, str]) -> Path:
    rank = int(twin.config["lora_rank"])
    _check_sizes(twin, adapters, rank, float(twin.config.get("lora_alpha", 1)) / rank)
    tasks, config = _with_tasks(twin, adapters, prompts)
    modules, stacks = modules_of(twin), {}
    with torch.no_grad():
        for name, info in detect(twin.config, read_tensors(twin.folder)[1], where=str(twin.folder))[1].items():
            module, _, factor = name.removeprefix(twin.facts.prefix).partition(".parametrizations.")
            place = next((i for i, end in enumerate(_STACKED) if f"parametrizations.{factor}" == end), None)
            if place is None:
                continue
            with safe_open(str(twin.folder / info.file), framework="pt") as file:
                old = file.get_tensor(info.name or name)
            # A 16-bit file would round the trained factors.
            stack = old.new_zeros(len(tasks), *old.shape[1:], dtype=torch.promote_types(old.dtype, torch.float32))
            stack[: len(old)] = old
            for task, trained in adapters.items():
                if module in trained.pairs:
                    value = trained.pairs[module][place]
                    # The file has the factors of an embedding transposed.
                    stack[tasks.index(task)] = value.T if modules[module][0].embedding else value
                elif module in modules:
                    stack[tasks.index(task)] = 0  # the trained adapter does not change this module
            stacks[info.name or name] = stack
    return _copy(twin, folder, config, stacks)


def _export_v3_folders(twin: Twin, adapters: Adapters, folder: Path, prompts: Mapping[str, str]) -> Path:
    tasks, config = _with_tasks(twin, adapters, prompts)
    jina_v3_layout.check_folders(tasks)
    inner = _copy(twin, folder, config)
    for task, trained in adapters.items():
        save_factors(twin, trained, within(inner, jina_v3_layout.adapter_folder(task)))
    return inner


def _export_v4(twin: Twin, adapters: Adapters, folder: Path) -> Path:
    facts, named = twin.facts, {jina_v4_layout.adapter_of(task): trained for task, trained in adapters.items()}
    if len(named) < len(adapters):
        raise ConfigError(f"{', '.join(adapters)} share an adapter in family 'jina_v4'. Train one of them.")
    if not facts.adapters:
        raise ConfigError(
            f"model {twin.spec.model} has one task's adapter merged into its weights and no file of adapters. Take "
            "jinaai/jina-embeddings-v4, or use the PEFT folder of the trained adapter (encoder.adapters)."
        )
    source = twin.folder / jina_v4_layout.FOLDER
    rank = int(read_json(source / CONFIG)["r"])
    _check_sizes(twin, named, rank, facts.adapter(twin.folder, next(iter(facts.adapters))).scale)
    with safe_open(str(source / WEIGHTS), framework="pt") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = dict(old)
    for name, trained in named.items():
        ends = tuple(end for ending in endings(name) for end in ending[:2])
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(ends)}
        tensors |= _whole_v4_adapter(twin, name, trained, old)
    names = list(dict.fromkeys((*facts.adapters, *named)))
    inner = _copy(twin, folder, {facts.adapters_key: names})
    save_file(tensors, inner / jina_v4_layout.FOLDER / WEIGHTS, metadata={"format": "pt"})
    return inner


def _whole_v4_adapter(
    twin: Twin, name: str, trained: LoraFactors, old: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns the factors of an adapter for every linear layer, as this layout needs.

    A layer that the twin has and the adapter does not change gets zeros. One that the twin does not have (the projector, if
    one vector a row was trained) keeps the factors of the adapter that is replaced.
    """
    tensors = peft_tensors(twin, trained, named=name)
    owners = {unwrapped(part): module for module in modules_of(twin) for part in twin.parts_of(module)}
    down_end, up_end, _ = endings(name)[0]
    for layer, target in twin.facts.targets.items():
        if target.embedding or owners.get(layer) in trained.pairs:
            continue
        stem = PREFIX + (twin.parts_of(owners[layer])[0] if layer in owners else layer)
        for end, shape in ((down_end, (trained.rank, target.inputs)), (up_end, (target.outputs, trained.rank))):
            kept = None if layer in owners else old.get(stem + end)
            tensors[stem + end] = torch.zeros(shape) if kept is None else kept
    return tensors


def _check_sizes(twin: Twin, adapters: Adapters, rank: int, scale: float) -> None:
    """Raises `ConfigError` unless all adapters have the rank and the scale that the layout has for all."""
    for task, trained in adapters.items():
        if trained.rank != rank or trained.alpha / trained.rank != scale:
            raise ConfigError(
                f"adapter {task!r} has rank {trained.rank} and alpha {trained.alpha:g}, and all adapters in a checkpoint like "
                f"{twin.spec.model} have rank {rank} and alpha {rank * scale:g}. Train with train.rank: {rank} and "
                f"train.alpha: {rank * scale:g}, or use the PEFT folder of the trained adapter (encoder.adapters)."
            )


def _with_tasks(twin: Twin, adapters: Adapters, prompts: Mapping[str, str]) -> tuple[list[str], dict[str, Any]]:
    """Returns the tasks of a v3 checkpoint with the new ones, and the settings of config.json that list them."""
    new = [task for task in adapters if task not in twin.facts.tasks]
    tasks = [*twin.facts.tasks, *new]
    if not new:
        return tasks, {}
    texts = {task: twin.facts.prompts.get(task, prompts.get(task, "")) for task in tasks}
    return tasks, {twin.facts.adapters_key: tasks, "task_instructions": texts}


def _copy(
    twin: Twin, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] = MappingProxyType({})
) -> Path:
    """Copies the checkpoint of a twin, with these settings in config.json and these tensors by their names in the file."""
    inner = copy_settings(twin, folder)
    files, _ = read_tensors(twin.folder)
    index = (INDEX,) if (twin.folder / INDEX).is_file() else ()
    for name in (*files, *twin.facts.extra_files, *index):
        source, target = twin.folder / name, within(inner, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if name not in files or not _replace(source, target, tensors):
            shutil.copyfile(source, target)
    if config:
        (inner / "config.json").write_text(json.dumps({**twin.config, **config}, indent=2) + "\n", "utf-8")
    return inner


def _replace(source: Path, target: Path, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Writes a file of weights with the new values of the tensors that are in it; False if none is."""
    with safe_open(str(source), framework="pt") as file:
        names = list(file.keys())
        if tensors.keys().isdisjoint(names):
            return False
        kept = {name: tensors[name] if name in tensors else file.get_tensor(name) for name in names}
        save_file(kept, target, metadata=file.metadata())
    return True
