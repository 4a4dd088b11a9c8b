"""Checkpoints of a training, and its trained weights: on a disk or in a store, complete or not there.

Below `<out>/_vectide/`:
    checkpoints/step-000050/   the files of `trainer.Trainer`, and `manifest.json` with their sizes and hashes, written last
    trained/                   `weights.safetensors`, and `fitted.json` with its hash, written last
    steps.jsonl                a line for each step

A folder without its manifest is half written, and is never loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors import storage
from actors.errors import DataError
from actors.storage.temp_dirs import disk_errors

if TYPE_CHECKING:
    from torch import Tensor, nn

KEPT = 2
STEPS = "steps.jsonl"
_MANIFEST = "manifest.json"
_WEIGHTS, _FITTED = "weights.safetensors", "fitted.json"
_NAME = re.compile(r"step-(\d{6,})")


def place(folder: str, *names: str) -> str:
    """Return the URL of something that a training keeps in its `out` folder."""
    return storage.join(folder, "_vectide", *names)


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: URL of the `out` folder of the job.
    """

    def __init__(self, folder: str) -> None:
        self._root = place(folder, "checkpoints")

    def save(self, step: int, files: Mapping[str, bytes]) -> None:
        """Write a checkpoint, and remove those before the last `KEPT`.

        Raises:
            StorageError: the store refused or failed; the checkpoints before this one are untouched.
        """
        folder = self._folder(step)
        storage.delete(storage.join(folder, _MANIFEST))  # of one that is damaged
        for name, content in files.items():
            storage.put(storage.join(folder, name), content)
        manifest = {name: {"bytes": len(content), "sha256": _hash(content)} for name, content in files.items()}
        storage.put(storage.join(folder, _MANIFEST), json.dumps(manifest, indent=2).encode())
        for old in self._steps()[KEPT:]:
            self._remove(old)

    def newest(self) -> int | None:
        """Return the step of the newest checkpoint that is complete and as it was written; None if there is none."""
        return next((step for step in self._steps() if self._read(step) is not None), None)

    def fetch(self, step: int, folder: Path) -> None:
        """Copy the files of a checkpoint into a folder of this machine.

        Raises:
            DataError: the checkpoint is damaged or not there.
            StorageError: the disk of this machine failed, for example because it is full.
        """
        files = self._read(step)
        if files is None:
            raise DataError(
                f"checkpoint {self._folder(step)!r} is damaged, or another process removed it; run the same command again"
            )
        with disk_errors(folder):
            for name, content in files.items():
                (folder / name).write_bytes(content)

    def _folder(self, step: int) -> str:
        return storage.join(self._root, f"step-{step:06d}")

    def _steps(self) -> list[int]:
        """Return the steps of all checkpoints, also of those that are half written; the newest first."""
        found = (_NAME.fullmatch(name) for name in storage.folders(self._root))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _read(self, step: int) -> dict[str, bytes] | None:
        """Return the files of a checkpoint, or None if it is half written or damaged."""
        folder = self._folder(step)
        try:
            manifest = json.loads(storage.read(storage.join(folder, _MANIFEST)))
            hashes = {name: entry["sha256"] for name, entry in manifest.items()}
            files = {name: storage.read(storage.join(folder, name)) for name in hashes}
        except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
            return None  # not JSON, or JSON of another shape
        intact = all(_hash(content) == hashes[name] for name, content in files.items())
        return files if files and intact else None

    def _remove(self, step: int) -> None:
        folder = self._folder(step)
        storage.delete(storage.join(folder, _MANIFEST))
        for shard in storage.walk(folder):
            storage.delete(shard.path)
        storage.prune(folder)


def save_trained(folder: str, weights: bytes, fitted: Mapping[str, Any]) -> None:
    """Write the trained weights, and then what is known of the training.

    Args:
        folder: URL of the `out` folder of the job.
        weights: A safetensors file of the trained parameters of the model, by name.
        fitted: What `read_fitted` returns.

    Raises:
        StorageError: the store refused or failed.
    """
    storage.put(place(folder, "trained", _WEIGHTS), weights)
    storage.put(place(folder, "trained", _FITTED), json.dumps({**fitted, "sha256": _hash(weights)}, indent=2).encode())


def read_fitted(folder: str) -> dict[str, Any] | None:
    """Return what is known of a training that ended; None if it has not ended.

    Raises:
        DataError: the file is damaged.
    """
    try:
        fitted = _fitted(folder)
    except FileNotFoundError:
        return None
    del fitted["sha256"]
    return fitted


def load_trained(model: nn.Module, folder: str) -> None:
    """Put the trained weights into a model that was built as the trainer built it.

    Raises:
        DataError: the weights are not those that the training wrote, or not of this model.
    """
    from safetensors.torch import load

    url = place(folder, "trained", _WEIGHTS)
    try:
        content = storage.read(url)
    except FileNotFoundError:
        raise _damaged(url, folder) from None
    if _hash(content) != _fitted(folder)["sha256"]:
        raise _damaged(url, folder)
    fill(dict(model.named_parameters()), load(content), url)


def fill(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], where: str) -> None:
    """Copy values into the parameters of the same names.

    Raises:
        DataError: a name or a shape is not one of the parameters'.
    """
    import torch

    with torch.no_grad():
        for name, value in values.items():
            if name not in parameters or parameters[name].shape != value.shape:
                raise DataError(f"{where!r} has {name!r} {list(value.shape)}, which this model has not")
            parameters[name].copy_(value)


def _fitted(folder: str) -> dict[str, Any]:
    """Return the content of `fitted.json`; raise DataError if it is not what `save_trained` writes."""
    url = place(folder, "trained", _FITTED)
    try:
        fitted = json.loads(storage.read(url))
    except ValueError:
        fitted = None
    if not isinstance(fitted, dict) or "sha256" not in fitted:
        raise _damaged(url, folder)
    return fitted


def _damaged(url: str, folder: str) -> DataError:
    return DataError(f"{url!r} is damaged or missing; delete {place(folder)!r} and run the same command again")


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()
