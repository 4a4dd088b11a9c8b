"""Writes a trained twin as a checkpoint in the layout of its base."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from actors.encoders.checkpoint import read_json, resolve, within
from actors.encoders.twins.base import Twin
from actors.encoders.weight_files import WEIGHTS, read_tensors
from actors.errors import ConfigError

# Settings, tokenizer, code and licence. Weights in other formats are those of the base, so they are left out.
_CARRIED = ("*.json", "*.txt", "*.model", "*.py", "LICENSE*", "NOTICE*")
_TYPE_KEYS = ("dtype", "torch_dtype")


def save_checkpoint(twin: Twin, folder: Path) -> None:
    """Writes the whole checkpoint of a model whose own weights were trained; files that are there are overwritten.

    The trained tensors are float32 whatever the base's type was, and have the names of the base's file. The base's other
    tensors, such as a pooler, are carried over as they are, and so are its settings, tokenizer, modules of
    sentence-transformers, code and licence. Its model card is not.

    Args:
        twin: The model, without adapters.
        folder: Created if it is not there.
    """
    home = copy_settings(twin, folder)
    config = dict(twin.config) | {key: "float32" for key in _TYPE_KEYS if key in twin.config}
    if config != twin.config:
        (home / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    save_file(dict(_tensors(twin)), home / WEIGHTS, metadata={"format": "pt"})


def copy_settings(twin: Twin, folder: Path) -> Path:
    """Copies the files of a twin's checkpoint that are no weights, and not the model card.

    Returns:
        The folder of config.json in the copy.

    Raises:
        ConfigError: `folder` is that of the model.
    """
    root, _ = resolve(twin.spec.model, twin.spec.revision)
    if folder.resolve() == root.resolve():
        raise ConfigError(f"{folder} is the folder of the model that was trained. Write the result to another one.")
    for path in _carried(root):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder / twin.folder.relative_to(root)


def _tensors(twin: Twin) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields all tensors of the checkpoint by their names in the base's file."""
    trained = twin.state_dict()
    for name, info in read_tensors(twin.folder)[1].items():
        own = name.removeprefix(twin.facts.prefix)
        stored = info.name or name
        if own in trained:
            yield stored, trained[own].float().cpu().contiguous()
        elif not re.fullmatch(twin.copies, own):
            with safe_open(str(twin.folder / info.file), framework="pt") as file:
                yield stored, file.get_tensor(stored)


def _carried(root: Path) -> Iterator[Path]:
    """Yields the files of the base to copy: of its own folder and of those of sentence-transformers' modules."""
    modules = read_json(root / "modules.json") or ()
    for sub in dict.fromkeys(("", *(str(module.get("path", "")) for module in modules))):
        for pattern in _CARRIED:
            yield from (path for path in within(root, sub).glob(pattern) if not path.name.endswith(".index.json"))
