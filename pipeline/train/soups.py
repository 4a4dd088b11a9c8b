"""Soups: the weighted mean of several trained results of one base (Wortsman et al., 2022, arXiv:2203.05482).

Called by `vectide soup`. Of adapters, the changes B A that they make to the weights are combined, and not their factors, whose
mean has another product. The factors of all are put side by side, so the result is exact and its rank is the sum of theirs.
Of whole checkpoints, each tensor is combined.

- linear: sum of w_i D_i, with weights that sum to 1.
- slerp: spherical interpolation (Shoemake, 1985), layer by layer, one result after the other. With the angle a between the
  mix so far and the next one, and the share t of the next one, they count sin((1 - t) a) / sin a and sin(t a) / sin a, so the
  length of the change does not shrink where the results disagree.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from actors import storage
from actors.encoders import describe, load_encoder
from actors.encoders.checkpoint import read_json, resolve
from actors.encoders.lora.files import CONFIG, FILES, WEIGHTS, adapter_folder
from actors.encoders.settings import AdapterSettings, EncoderSettings
from actors.encoders.spec import ModelSpec
from actors.encoders.weight_files import read_tensors
from actors.errors import ConfigError, ModelError
from actors.storage.temp_dirs import disk_errors
from pipeline.train.record import read_record

Method = Literal["linear", "slerp"]
_PARALLEL = 1e-6  # sine of an angle below which there is no arc between two tensors
# Ending of a down factor, and that of its up factor.
_ENDINGS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
_PROBES = ("A short text.", "Another text, which has a few words more than the first one.")
Matrix = npt.NDArray[np.float64]
_Result = tuple[str, Path]  # as the user named it, and its folder on this machine


@dataclass(frozen=True, slots=True)
class Souped:
    """A finished soup.

    Attributes:
        kind: "adapter" or "model".
        base: The model that an adapter is for; of whole models None.
        weights: Share of each result.
        rank: Rank of the adapter; None: a whole model.
        layers: Number of layers, or of tensors, that were combined.
    """

    out: str
    kind: str
    base: str | None
    weights: tuple[float, ...]
    rank: int | None
    layers: int


def soup(
    places: Sequence[str],
    out: str,
    *,
    weights: Sequence[float] | None = None,
    method: Method = "linear",
    model: str | None = None,
) -> Souped:
    """Combine trained results, and load the result before it is put into its place.

    Args:
        places: Adapters (folders of PEFT, local or URLs), or whole models (local folders): two or more of one base.
        out: A folder that has no adapter and no model yet; of whole models a local one.
        weights: Share of each, above 0, of any sum; None: equal shares.
        method: How they are combined.
        model: Base of adapters; None: the one that they name.

    Raises:
        ConfigError: an argument is wrong, or the results do not fit together.
        ModelError: a result is missing or broken, or is for another base.
        StorageError: the store failed.
    """
    shares, place = _shares(places, weights), storage.absolute(out)
    if found := [name for name in (CONFIG, "config.json") if storage.exists(storage.join(place, name))]:
        raise ConfigError(f"--out {out!r} already has {found[0]}; name an empty folder")
    with ExitStack() as stack:
        results = [(each, _folder(each, stack)) for each in places]
        if len({folder.resolve() for _, folder in results}) < len(results):
            raise ConfigError(
                f"two of {', '.join(map(repr, places))} are one folder; name it once, with a larger weight"
            )
        adapters = [(folder / CONFIG).is_file() for _, folder in results]
        if any(adapters) and not all(adapters):
            odd = [places[adapters.index(kind)] for kind in (True, False)]
            raise ConfigError(f"{odd[0]!r} is an adapter and {odd[1]!r} is a whole model; give results of one kind")
        if not any(adapters):
            if model is not None:
                raise ConfigError("--model is the base of adapters, and these are whole models; leave it out")
            return _models(results, shares, method, place)
        return _adapters(results, shares, method, place, model)


def coefficients(products: Matrix, shares: Sequence[float], method: Method) -> npt.NDArray[np.float64]:
    """Return how much of each tensor is in the mix, float64 [tensors].

    Args:
        products: Inner products of the tensors with each other, float64 [tensors, tensors].
        shares: Their weights.
        method: How they are combined.
    """
    mix, total = np.zeros(len(shares)), 0.0
    for number, share in enumerate(shares):
        total += share
        t = share / total
        before, now = 1 - t, t
        if method == "slerp" and number:
            length = math.sqrt(max(0.0, float(mix @ products @ mix))) * math.sqrt(products[number, number])
            cosine = 1.0 if length == 0 else float(np.clip(mix @ products[number] / length, -1, 1))
            angle = math.acos(cosine)
            if math.sin(angle) > _PARALLEL:
                before, now = (math.sin(part * angle) / math.sin(angle) for part in (before, now))
        mix *= before
        mix[number] += now
    return mix


def _shares(places: Sequence[str], weights: Sequence[float] | None) -> tuple[float, ...]:
    if len(places) < 2:
        raise ConfigError(f"a soup is made of two results or more, not of {len(places)}; name them one after the other")
    given = [1.0] * len(places) if weights is None else weights
    if len(given) != len(places):
        raise ConfigError(f"--weights has {len(given)} numbers for {len(places)} results; give one for each")
    if wrong := [each for each in given if not (math.isfinite(each) and each > 0)]:
        raise ConfigError(f"--weights {wrong[0]:g} must be a number above 0; leave a result out that shall not count")
    parts = [each / max(given) for each in given]  # the sum of very large ones is no number
    return tuple(each / math.fsum(parts) for each in parts)


def _folder(place: str, stack: ExitStack) -> Path:
    if "://" in place:
        return stack.enter_context(adapter_folder(place, place))
    folder, _ = resolve(place, what="the result")
    if not any((folder / name).is_file() for name in (CONFIG, "config.json", "modules.json")):
        inside = [*sorted(path.parent for path in folder.glob("*/*/adapter_config.json")), folder / "model"]
        hint = f"; name what was trained, as in {str(inside[0])!r}" if inside[0].is_dir() else ""
        raise ConfigError(f"{place!r} is neither an adapter nor a model: it has no {CONFIG} and no config.json{hint}")
    return folder


def _adapters(
    results: Sequence[_Result], shares: Sequence[float], method: Method, out: str, model: str | None
) -> Souped:
    places, folders = zip(*results, strict=True)
    configs = [read_json(folder / CONFIG) for folder in folders]
    named = [_base(config) for config in configs]
    base = model or named[0]
    if base is None or (model is None and (len(set(named)) > 1 or not base)):
        listed = ", ".join(f"{place}: {base!r}" for place, base in zip(places, named, strict=True))
        raise ConfigError(
            f"these adapters do not name one base ({listed}); if they are for one model, name it: --model"
        )
    revision = None if model is not None else configs[0].get("revision")
    for place, folder in results:
        spec = describe(_with_adapter(base, revision, str(folder), "soup"))  # raises, if it does not fit the base
        if _trained_from(folder) not in (None, spec.weights_sha256):
            raise ConfigError(f"{place!r} was trained on another model than {base!r}, by the record of its training")
    tensors = [load_file(folder / WEIGHTS) for folder in folders]
    for place, each in zip(places, tensors, strict=True):
        if other := tensors[0].keys() ^ each.keys():
            raise ConfigError(
                f"{places[0]!r} and {place!r} do not change the same layers: {min(other)!r} is in one only"
            )
    mixed: dict[str, torch.Tensor] = {}
    for down in tensors[0]:
        ending = next((end for end in _ENDINGS if down.endswith(end)), None)
        if ending is not None:
            up = down.removesuffix(ending) + _ENDINGS[ending]
            mixed[down], mixed[up] = _side_by_side(
                [
                    (_scale(config) * each[up].double(), each[down].double())
                    for config, each in zip(configs, tensors, strict=True)
                ],
                shares,
                method,
            )
    rank = sum(int(config["r"]) for config in configs)
    config = {**configs[0], "base_model_name_or_path": base, "r": rank, "lora_alpha": rank, "use_rslora": False}
    with tempfile.TemporaryDirectory(prefix="vectide-soup-") as made:
        (Path(made) / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(mixed, Path(made) / WEIGHTS, metadata={"format": "pt"})
        spec = describe(_with_adapter(base, revision, made, "soup"))
        _try(replace(spec, task="soup", prompt=""))
        for name in FILES:
            storage.put(storage.join(out, name), (Path(made) / name).read_bytes())
    return Souped(out, "adapter", base, tuple(shares), rank, len(mixed) // 2)


def _base(config: object) -> str | None:
    """Return the base that the config of an adapter names; None if it names none."""
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return base if isinstance(base, str) else None


def _with_adapter(base: str, revision: str | None, folder: str, name: str) -> EncoderSettings:
    return EncoderSettings(base, revision, dtype="float32", adapters={name: AdapterSettings(folder)})


def _scale(config: dict[str, Any]) -> float:
    return float(config["lora_alpha"]) / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])


def _side_by_side(
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]], shares: Sequence[float], method: Method
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors (down [rank, in], up [out, rank]) of a combination of the changes `up @ down`, float32."""
    products = np.array(
        [
            [float(((up.T @ other_up) * (down @ other_down.T)).sum()) for other_up, other_down in factors]
            for up, down in factors
        ]
    )
    mix = coefficients(products, shares, method)
    ups = [float(part) * up for part, (up, _) in zip(mix, factors, strict=True)]
    return torch.cat([down for _, down in factors]).float(), torch.cat(ups, dim=1).float()


def _models(results: Sequence[_Result], shares: Sequence[float], method: Method, out: str) -> Souped:
    places, folders = zip(*results, strict=True)
    if not storage.is_local(out):
        raise ConfigError(f"--out {out!r} is not on this machine; whole models are written to a local folder")
    specs = [describe(EncoderSettings(str(folder), dtype="float32")) for folder in folders]
    for place, spec in zip(places, specs, strict=True):
        for name in ("family", "variant", "config_sha256", "tokenizer_sha256", "pooling"):
            if getattr(spec, name) != getattr(specs[0], name):
                raise ConfigError(
                    f"{places[0]!r} and {place!r} are not of one base: they differ in their {_words(name)}"
                )
    roots = [Path(spec.path) for spec in specs]
    files = [read_tensors(root) for root in roots]
    shapes = [{name: (info.file, info.shape) for name, info in tensors.items()} for _, tensors in files]
    for place, each in zip(places, shapes, strict=True):
        if other := {name for name in shapes[0].keys() | each.keys() if shapes[0].get(name) != each.get(name)}:
            raise ConfigError(f"{places[0]!r} and {place!r} are not of one layout: they differ in {min(other)!r}")
        if lora := next((name for name in each if "lora_" in name), None):
            raise ConfigError(f"{place!r} has adapters inside ({lora!r}); name the folders of its adapters instead")
    bases = {place: base for place, folder in results if (base := _trained_from(folder)) is not None}
    if len(set(bases.values())) > 1:
        raise ConfigError(
            f"{' and '.join(map(repr, bases))} were not trained from one base, by the records of their trainings"
        )
    target, layers = storage.local_path(out), 0
    if any(place.is_file() for place in (target, *target.parents)) or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"--out {out!r} is a file, below one, or a folder with files in it; name an empty folder")
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            made = Path(name) / "model"
            _copy(folders[0], made)
            inside = made / roots[0].relative_to(folders[0])
            for file in files[0][0]:
                paths = [root / file for root in roots]
                layers += _mix_file(paths, inside / file, lambda each: _mixed(each, shares, method))
            _try(describe(EncoderSettings(str(made), dtype="float32")))
            made.rename(target)
    return Souped(out, "model", None, tuple(shares), None, layers)


def _trained_from(folder: Path) -> str | None:
    """Return the hash of the base's weights, if the result is still where `vectide train` has written it."""
    records = map(read_record, map(str, folder.absolute().parents[:2]))  # of <out>/model, and of <out>/adapters/<name>
    return next((record.settings.get("train.model.weights") for record in records if record is not None), None)


def _words(attribute: str) -> str:
    return attribute.removesuffix("_sha256").replace("_", " ").replace("config", "config.json")


def _copy(source: Path, target: Path) -> None:
    """Copy a model without its card, which is not true of a soup, and without what a training keeps beside it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("_vectide", "README.md", ".git"))


def _mix_file(paths: Sequence[Path], target: Path, mix: Callable[[Sequence[torch.Tensor]], torch.Tensor]) -> int:
    """Write a file of tensors that are mixed from those of the same name, and return their number."""
    opened = [load_file(path) for path in paths]
    mixed = {name: mix([each[name] for each in opened]) for name in opened[0]}
    save_file(mixed, target, metadata={"format": "pt"})
    return len(mixed)


def _mixed(tensors: Sequence[torch.Tensor], shares: Sequence[float], method: Method) -> torch.Tensor:
    """Return the combination in the first tensor's type. Numbers of positions and the like are taken as they are."""
    first = tensors[0]
    if not first.is_floating_point():
        return first
    flat = torch.stack([each.double().flatten() for each in tensors])
    mix = torch.from_numpy(coefficients((flat @ flat.T).numpy(), shares, method))
    return (mix @ flat).view(first.shape).to(first.dtype)


def _try(spec: ModelSpec) -> None:
    """Raise ModelError unless the encoder loads a model and makes finite vectors with it."""
    vectors = load_encoder(spec, device="cpu").encode(list(_PROBES), spec.task)
    if not np.isfinite(vectors).all():
        raise ModelError("the soup makes vectors that are not finite; leave out the result whose weights have grown")
