"""Reads a LoRA adapter from a PEFT folder and checks it against its model. Torch-free.

Called by `describe` on the driver and by `lora.store` when an adapter is loaded, so
that an adapter that does not fit fails with a reason before anything is encoded. PEFT features beyond plain LoRA (DoRA,
trained biases, replaced modules, ranks per layer) are refused: ignoring them would give other vectors than the adapter's
author had.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import storage
from actors.encoders.checkpoint import TensorInfo, read_json, resolve, sha256_files, tensor_index, understanding
from actors.errors import ConfigError, ModelError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
PREFIX = "base_model.model."
# Prefixes in the names of a model that was trained as a part of a larger one, from the outermost to the innermost.
_WRAPPERS = ("bert.", "roberta.", "model.", "language_model.")
# Ending of the down factor's name, ending of the up factor's name, and whether they belong to an embedding.
Ending = tuple[str, str, bool]
_MUST_BE_OFF = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
# Other initialisations (PiSSA, OLoRA, ...) change the base weights, so the factors alone are not the adapter.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Target:
    """A layer that an adapter may change, as the files name it.

    Attributes:
        module: Our name of the layer that contains it.
        inputs: Width of its input; for an embedding its number of rows.
        outputs: Width of its output.
        start: First of its outputs within the module's (query, key and value are one module here).
        total: Outputs of the whole module.
        embedding: It looks up rows instead of multiplying.
        idle: The model does not use it for vectors, so the adapter's factors for it are ignored.
        halves: Our layers with the first and the second half of its outputs, where one layer of the files is two here.
    """

    module: str
    inputs: int
    outputs: int
    start: int
    total: int
    embedding: bool = False
    idle: bool = False
    halves: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """The two factors for one target, by their names in the file."""

    target: Target
    down: str
    up: str


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A PEFT folder that fits a model.

    Attributes:
        folder: The PEFT folder.
        scale: Multiplier of the product of the two factors.
        parts: The changed layers that the model uses.
    """

    folder: Path
    scale: float
    parts: tuple[Part, ...]


@contextmanager
def adapter_folder(name: str, path: str) -> Iterator[Path]:
    """Yields the PEFT folder of an adapter on this machine; that of a URL is downloaded and removed afterwards.

    Args:
        name: The adapter's name, for messages.
        path: A local directory, a URL or a hub id.

    Raises:
        ModelError: There is no such folder, or the caller found something wrong in it.
    """
    with tempfile.TemporaryDirectory(prefix="vectide-adapter-") as download:
        folder = Path(download)
        try:
            if "://" in path:
                for file in FILES:
                    with suppress(FileNotFoundError):
                        (folder / file).write_bytes(storage.read(storage.join(path, file)))
            else:
                folder, _ = resolve(path, what="its path")
            with understanding(folder):
                yield folder
        except ModelError as error:
            raise ModelError(f"adapter {name!r}: {str(error).replace(download, path)}") from error


def takes_no_adapters(model: str, family: str) -> ConfigError:
    """Returns the error for a model of a family without LoRA."""
    return ConfigError(
        f"model {model} is of family {family!r}, which takes no LoRA adapters; BERT-like models and Jina v2, v3 and v4 do. "
        "Take one of those, or merge the adapter into its model (PEFT's merge_and_unload) and give the merged model."
    )


def read_adapter(
    folder: Path,
    targets: Mapping[str, Target],
    *,
    named: str | None = None,
    other_names: Collection[str] = (),
    whole: bool = False,
) -> AdapterFiles:
    """Reads config and headers of a PEFT folder and checks them against the layers of a model.

    Args:
        folder: Has `FILES`.
        targets: The layers, by their names in files.
        named: The adapter's name in a file of several; None if the file has one adapter.
        other_names: Names of the other adapters in the file.
        whole: Require factors for every linear layer that is not idle, whatever the config names.

    Raises:
        ModelError: A file is missing or broken, the adapter is for another model, incomplete, or more than plain LoRA.
    """
    config = read_json(folder / CONFIG)
    if config is not None and not isinstance(config, dict):
        raise ModelError(f"{folder}/{CONFIG} is {str(config)[:40]!r}, not a JSON object. Fetch the adapter again.")
    if config is None or not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{folder} is not an adapter: it needs {CONFIG} and {WEIGHTS}, as PEFT's save_pretrained writes them."
        )
    rank, scale = _settings(config, folder)
    tensors = tensor_index(folder, [WEIGHTS])
    parts: dict[str, Part] = {}
    others = tuple(end for other in other_names for ending in endings(other) for end in ending[:2])
    for name in tensors:
        if name.endswith(others):
            continue
        module, ending = _split(name, folder, named)
        if module not in targets:
            raise ModelError(
                f"{folder} changes {module!r}, which is no layer of this model that an adapter may change. Use an adapter made "
                "for this model."
            )
        down, up, embedding = ending
        target = targets[module]
        if target.embedding != embedding:
            raise ModelError(f"{folder} has {name!r}: {module!r} is {_kind(target)} in this model.")
        stem = name[: -len(down if name.endswith(down) else up)]
        parts[module] = Part(target, stem + down, stem + up)
    for module, part in parts.items():
        _check_shapes(module, part, tensors, rank, folder)
    _check_complete(config, parts, targets, folder, whole=whole)
    used = tuple(part for part in parts.values() if not part.target.idle)
    if not used:
        raise ModelError(
            f"{folder} changes only {', '.join(list(parts)[:_NAMED])}, which this model does not use for its vectors. Use an "
            "adapter of its layers."
        )
    return AdapterFiles(folder, scale, used)


def sha256_adapter(folder: Path) -> str:
    """Returns a hash of an adapter's content."""
    return sha256_files(folder, FILES)


def _settings(config: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    """Returns rank and scale.

    Raises:
        ModelError: The config asks for more than plain LoRA, or has no valid rank and alpha.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder}/{CONFIG} has peft_type {kind!r}; adapters of type 'LORA' are supported.")
    on = [f"{key} {config[key]!r}" for key in _MUST_BE_OFF if config.get(key)]
    if config.get("bias", "none") not in ("none", None):
        on.append(f"bias {config['bias']!r}")
    if config.get("init_lora_weights", True) not in _INITS:
        on.append(f"init_lora_weights {config['init_lora_weights']!r}")
    if on:
        raise ModelError(
            f"{folder}/{CONFIG} asks for {', '.join(on)}, which is more than plain LoRA. Merge or retrain."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ModelError(f"{folder}/{CONFIG} has r {rank!r} and lora_alpha {alpha!r}, where numbers are needed.")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def endings(named: str | None) -> tuple[Ending, Ending]:
    """Returns the name endings of a linear layer's factors and of an embedding's, in a file of several of that adapter."""
    own = "" if named is None else f".{named}"
    return (
        (f".lora_A{own}.weight", f".lora_B{own}.weight", False),
        (f".lora_embedding_A{own}", f".lora_embedding_B{own}", True),
    )


def _split(name: str, folder: Path, named: str | None) -> tuple[str, Ending]:
    """Splits a tensor's name into its layer and the name endings of the layer's kind."""
    for ending in endings(named):
        for part in ending[:2]:
            if name.startswith(PREFIX) and name.endswith(part):
                return unwrapped(name[len(PREFIX) : -len(part)]), ending
    raise ModelError(f"{folder}/{WEIGHTS} has {name!r}, which is not a factor of a LoRA. Leaving it out is not safe.")


def unwrapped(module: str) -> str:
    """Returns the name of a layer of a larger model within its encoder, as the keys of targets are."""
    for wrapper in _WRAPPERS:
        module = module.removeprefix(wrapper)
    return module


def _kind(target: Target) -> str:
    return "an embedding" if target.embedding else "a linear layer"


def _check_shapes(module: str, part: Part, tensors: Mapping[str, TensorInfo], rank: int, folder: Path) -> None:
    wanted = {part.down: (rank, part.target.inputs), part.up: (part.target.outputs, rank)}
    for name, shape in wanted.items():
        if name not in tensors:
            raise ModelError(f"{folder}/{WEIGHTS} lacks {name!r}. Fetch the adapter again.")
        if tensors[name].shape != shape:
            raise ModelError(
                f"{folder} has {name!r} of shape {list(tensors[name].shape)}; rank {rank} and the model's {module!r} "
                f"need {list(shape)}. Use an adapter made for this model."
            )


def _check_complete(
    config: Mapping[str, Any], parts: Mapping[str, Part], targets: Mapping[str, Target], folder: Path, *, whole: bool
) -> None:
    """Raises `ModelError` unless the file has every layer that the config names.

    Otherwise an incomplete file would be taken for a smaller adapter.
    """
    named = config.get("target_modules")
    if not parts:
        raise ModelError(f"{folder}/{WEIGHTS} has no tensors. Fetch the adapter again.")
    unlisted = not isinstance(named, list) or config.get("layers_to_transform") or config.get("exclude_modules")
    if unlisted and not whole:
        return
    # Files name the layers in one of two ways, so layers are compared by their position in the model.
    covered = {(part.target.module, part.target.start) for part in parts.values()}
    missing = [
        name
        for name, target in targets.items()
        if (target.module, target.start) not in covered
        and not target.idle
        and (not target.embedding if whole else any(name == end or name.endswith(f".{end}") for end in named or ()))
    ]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ModelError(
            f"{folder}/{WEIGHTS} lacks the factors of {', '.join(missing[:_NAMED])}{more}, "
            f"{'of which the adapters of this checkpoint change each' if whole else 'which its config names'}. "
            "Fetch the adapter again."
        )
