"""Writes the checkpoint of a model again, with some of its tensors and settings replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from actors.encoders.checkpoint import read_json, resolve
from actors.encoders.layout import FamilyFacts
from actors.encoders.spec import ModelSpec, folder_of
from actors.encoders.weight_files import read_tensors
from actors.errors import ConfigError

# Files that are copied besides the weights. Weights of other formats and the README would be those of another model.
_KINDS = ("*.json", "*.txt", "*.model", "*.py", "LICENSE*")


def copy_checkpoint(
    spec: ModelSpec,
    folder: Path,
    *,
    facts: FamilyFacts,
    tensors: Mapping[str, torch.Tensor] = {},
    config: Mapping[str, Any] = {},
) -> Path:
    """Copies the checkpoint of a spec. config.json is written last, so that an interrupted copy is no checkpoint.

    Args:
        spec: The model.
        folder: Is created if needed; files in it are replaced.
        facts: The model's facts, which name the files of its own adapters.
        tensors: New values of tensors, by their names in the file. All others keep their bits.
        config: New values of settings in config.json.

    Returns:
        The folder of config.json in the copy, which in a repository of sentence-transformers may be a folder within.

    Raises:
        ConfigError: The folder is that of the model.
        ModelError: The checkpoint on this machine is incomplete.
    """
    root, _ = resolve(spec.model, spec.revision)
    source = folder_of(spec)
    if folder.resolve() in (root.resolve(), source.resolve()):
        raise ConfigError(f"{folder} is the folder of the model that was trained. Write the result to another one.")
    target = folder / source.relative_to(root)
    files, _ = read_tensors(source)
    small = {path for kind in _KINDS for path in root.rglob(kind) if path.is_file() and not _hidden(path, root)}
    for path in sorted(small - {source / "config.json"}):
        _copy(path, folder / path.relative_to(root))
    for file in facts.extra_files:
        _copy(source / file, target / file)
    for file in files:
        _write(source / file, target / file, tensors)
    settings = {**read_json(source / "config.json"), **config}
    (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    return target


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(source: Path, target: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies one file of weights with the new values of those tensors that are in it."""
    with safe_open(str(source), framework="pt") as file:
        names, metadata = list(file.keys()), file.metadata()
        if not tensors.keys() & set(names):
            _copy(source, target)
            return
        kept = {name: tensors[name] if name in tensors else file.get_tensor(name) for name in names}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, target, metadata=metadata)
