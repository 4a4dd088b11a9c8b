"""Finds the weight files of a checkpoint and the tensors in them. Torch-free.

Called by `spec.describe` on the driver and by the loader on workers. Files are chosen by the index, then by name, and never
by their order: a second training state, an EMA copy or an adapter besides `model.safetensors` must not change a vector.
Ambiguous folders are refused with the names of all files.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.encoders.checkpoint import TensorInfo, read_json, tensor_index, within
from actors.errors import ModelError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
_ADAPTER = "adapter_config.json"
# Name patterns of other tools' formats: first those that can run code when opened, then the others.
_PICKLED = (
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
    "model.pth",
    "model.ckpt",
    "consolidated*.pth",
)
_FOREIGN = (
    "tf_model.h5",
    "flax_model.msgpack",
    "*.gguf",
    "*.onnx",
    "onnx/*.onnx",
    "openvino/*.xml",
    "openvino_model.xml",
)
_CONVERT = (
    "Use a revision with model.safetensors, or load it once with transformers and save it with `save_pretrained`, which "
    "writes one"
)
_SHARD = re.compile(r".*-(\d+)-of-(\d+)\.safetensors")
_OLD_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_NAMED = 8


def read_tensors(folder: Path) -> tuple[tuple[str, ...], dict[str, TensorInfo]]:
    """Finds the weight files in `folder` and every tensor in them; reads only headers.

    Returns:
        Names of the files, sorted, and the tensors by their current names: `LayerNorm.gamma` and `LayerNorm.beta` of files
        from before 2019 become `LayerNorm.weight` and `LayerNorm.bias`.

    Raises:
        ModelError: There is no file, more than one candidate, a broken file, or an index that does not match the files.
    """
    if (folder / _ADAPTER).is_file():
        raise ModelError(
            f"{folder} has {', '.join((_ADAPTER, *_found(folder)))}: transformers would load the model that the adapter names, and "
            "add the adapter. Merge it into its model (PEFT's merge_and_unload) and save that, or give the model's folder and "
            "name the adapter in `encoder.adapters`."
        )
    index = _index(folder)
    files = _choose(folder) if index is None else tuple(sorted(set(index.values())))
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in tensor_index(folder, [file]).items():
            if name in tensors:
                raise ModelError(
                    f"{folder} has the tensor {name!r} in {tensors[name].file} and in {file}. One of them must go: fetch "
                    "the checkpoint again."
                )
            tensors[name] = info
    wrong = [name for name, file in (index or {}).items() if name not in tensors or tensors[name].file != file]
    if index is not None and wrong:
        name = wrong[0]
        where = f"which is in {tensors[name].file}" if name in tensors else "which is in none of its files"
        raise ModelError(
            f"{folder}/{INDEX} puts {len(wrong)} tensors into files that do not have them: {name!r} into {index[name]}, {where}. "
            "Fetch the index and the files of one revision."
        )
    return files, _of_today(tensors, folder)


def _found(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.glob("*.safetensors")))


def _choose(folder: Path) -> tuple[str, ...]:
    """Returns the name of the only weight file of a folder without an index, as a tuple.

    Raises:
        ModelError: There is none, more than one candidate, or only files of other formats.
    """
    found = _found(folder)
    if WEIGHTS in found:
        _check_link(folder / WEIGHTS)
        return (WEIGHTS,)
    if len(found) == 1:
        part = _SHARD.fullmatch(found[0])
        if part is not None and int(part[2]) > 1:
            raise ModelError(
                f"{folder} has {found[0]}, one part of {int(part[2])}, and no {INDEX}. Fetch it again, whole."
            )
        _check_link(folder / found[0])
        return found
    if found:
        raise ModelError(
            f"{folder} has {len(found)} files of weights and neither {WEIGHTS} nor {INDEX} to choose by: {_some(found)}. "
            f"Fetch the index, or keep one file and name it {WEIGHTS}."
        )
    if pickled := _matching(folder, _PICKLED):
        raise ModelError(
            f"{folder} has only pickled weights ({_some(pickled)}), which can run code when opened and are refused. {_CONVERT}."
        )
    if foreign := _matching(folder, _FOREIGN):
        raise ModelError(
            f"{folder} has no *.safetensors file, only {_some(foreign)}, which cannot be read. {_CONVERT}."
        )
    raise ModelError(f"{folder} has no *.safetensors file. Give the folder of a complete checkpoint.")


def _index(folder: Path) -> dict[str, str] | None:
    """Returns the index's map from tensors to files, checked against the folder; None if there is no index."""
    _check_link(folder / INDEX)
    document: Any = read_json(folder / INDEX)
    if document is None:
        return None
    found = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise ModelError(f"{folder}/{INDEX} has no weight_map from tensors to files. Fetch the checkpoint again.")
    names = sorted(set(found.values()))
    if pickled := [name for name in names if not name.endswith(".safetensors")]:
        raise ModelError(
            f"{folder} names {pickled[0]!r} as a file of its weights. Only safetensors are read: others can run code "
            f"when opened. {_CONVERT}."
        )
    absent = [name for name in names if not within(folder, name).is_file()]
    if absent:
        raise ModelError(
            f"{folder} lacks weight files that its index names: {', '.join(absent)}. Fetch the checkpoint again."
        )
    return found


def _check_link(path: Path) -> None:
    """Raises `ModelError` if the path exists but is not a file, such as a broken link.

    If it counted as absent, another file would be read instead.
    """
    if os.path.lexists(path) and not path.is_file():
        raise ModelError(f"{path} is not a file, or is a link to nothing. Fetch the checkpoint again.")


def _of_today(tensors: dict[str, TensorInfo], folder: Path) -> dict[str, TensorInfo]:
    """Returns the tensors by their current names; `TensorInfo.name` keeps the name in the file."""
    renamed: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        today = name
        for old, new in _OLD_NORMS.items():
            if name.endswith(old):
                today = name.removesuffix(old) + new
        if today != name and today in tensors:
            raise ModelError(
                f"{folder} has {name!r} and {today!r}, two names of one tensor. Fetch the checkpoint again."
            )
        renamed[today] = info if today == name else replace(info, name=name)
    return renamed


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    return [str(path.relative_to(folder)) for pattern in patterns for path in sorted(folder.glob(pattern))]


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
