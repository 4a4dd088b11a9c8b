"""Stores the LoRA adapters of one base model and applies them per row; they can be changed at run time.

A family computes with its base weights and calls a `Route` to add the contribution of the micro-batch's adapters. For rows
of several tasks the down factors are stacked into one product, `z = x D^T`, with a few columns per adapter. Each token keeps
the columns of its own adapter, the others are set to zero, then `y += z U^T`. So a mixed micro-batch costs two thin products
per layer, needs no sorting, and gives each row the same result as its adapter alone. Merging an adapter into the base would
save those products but needs one copy of the model per task.

Loading an adapter replaces one reference. A micro-batch reads the set of adapters before its first layer, so it is computed
with the old set or with the new one, never with a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import safe_open
from torch.nn import functional

from actors.encoders.compute.device import Compute
from actors.encoders.lora.files import WEIGHTS, AdapterFiles, Part, Target, read_adapter
from actors.encoders.packed import PackedBatch
from actors.encoders.weights import check_finite
from actors.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Factors:
    """The two factors of an adapter for one layer.

    Attributes:
        down: [rank, inputs]; for an embedding [rows, rank].
        up: [outputs, rank], the adapter's scale included.
    """

    down: torch.Tensor
    up: torch.Tensor


# Our name of a layer -> its factors.
Adapter = Mapping[str, Factors]


class Route:
    """The adapters of one micro-batch and their assignment to tokens.

    Args:
        adapters: The adapters in use, at least one.
        users: For each adapter the numbers of its tasks.
        task: int32 [tokens], number of each token's task; None if all tokens use the first adapter.
    """

    def __init__(self, adapters: Sequence[Adapter], users: Sequence[Sequence[int]], task: torch.Tensor | None) -> None:
        self._adapters = adapters
        self._users = users
        self._task = task
        self._masks: dict[tuple[tuple[int, int], ...], torch.Tensor] = {}

    def add(self, module: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds the adapters' contribution for input `x` to the output `y` [tokens, outputs] of a linear layer, in place."""
        numbers, factors = self._factors_of(module)
        if not factors:
            return y
        down = factors[0].down if len(factors) == 1 else torch.cat([f.down for f in factors])
        return self._widen(functional.linear(x, down), numbers, factors, y)

    def look_up(self, module: str, ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds the adapters' contribution for `ids` to the rows `y` [tokens, width] of an embedding, in place."""
        numbers, factors = self._factors_of(module)
        if not factors:
            return y
        narrow = torch.cat([functional.embedding(ids, f.down) for f in factors], dim=1)
        return self._widen(narrow, numbers, factors, y)

    def _factors_of(self, module: str) -> tuple[list[int], list[Factors]]:
        numbered = [(i, adapter[module]) for i, adapter in enumerate(self._adapters) if module in adapter]
        return [i for i, _ in numbered], [factors for _, factors in numbered]

    def _widen(self, narrow: torch.Tensor, numbers: list[int], factors: list[Factors], y: torch.Tensor) -> torch.Tensor:
        if self._task is not None:
            # Not a product with 0: the result of another row's adapter for this token may be infinite.
            narrow = narrow.masked_fill(self._mask(numbers, factors, self._task), 0)
        up = factors[0].up if len(factors) == 1 else torch.cat([f.up for f in factors], dim=1)
        return y.addmm_(narrow, up.T)

    def _mask(self, numbers: list[int], factors: list[Factors], task: torch.Tensor) -> torch.Tensor:
        """Returns bool [tokens, all ranks]: true where a column is of another adapter than the token's.

        Cached, because most layers have the same mask. Computed on the device: a copy of it would make the host wait.
        """
        ranks = tuple((number, f.up.shape[1]) for number, f in zip(numbers, factors, strict=True))
        if ranks not in self._masks:
            other = [torch.stack([task != user for user in self._users[number]]).all(0) for number, _ in ranks]
            columns = [mask[:, None].expand(-1, rank) for mask, (_, rank) in zip(other, ranks, strict=True)]
            self._masks[ranks] = torch.cat(columns, dim=1)
        return self._masks[ranks]


def adding(route: Route | None, layer: str) -> Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Returns `Route.add` for the modules of one layer, or a function that returns `y` unchanged if there is no route."""

    def added(module: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y if route is None else route.add(f"{layer}.{module}", x, y)

    return added


class AdapterStore:
    """The adapters of a loaded base model. A family with adapters has one as attribute `adapters`.

    Args:
        targets: The layers that adapters may change, by their names in files.
        compute: Device and type of the base.
        adapters: The checkpoint's own adapters.
    """

    def __init__(self, targets: Mapping[str, Target], compute: Compute, adapters: Mapping[str, Adapter]) -> None:
        self._targets = targets
        self._compute = compute
        self._adapters: dict[str, Adapter] = dict(adapters)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return tuple(self._adapters)

    def load(self, names: Sequence[str], folder: Path) -> None:
        """Loads a PEFT folder under one or several names. Adapters with these names are replaced.

        Raises:
            ModelError: It does not fit this model, or has values that are not finite. The store is unchanged.
        """
        adapter = load_adapter(read_adapter(folder, self._targets), compute=self._compute)
        self._adapters = {**self._adapters, **dict.fromkeys(names, adapter)}

    def remove(self, names: Sequence[str]) -> None:
        """Removes adapters. Does nothing for an unknown name; the caller checks names."""
        self._adapters = {known: adapter for known, adapter in self._adapters.items() if known not in names}

    def route(self, batch: PackedBatch) -> Route | None:
        """Returns the route of a micro-batch, or None if it uses no adapter.

        Raises:
            ConfigError: A row's adapter is not loaded, or was removed.
        """
        if batch.tasks is None or not batch.task_names:
            return None
        current = self._adapters
        absent = [task for task in batch.task_names if task not in current]
        if absent:
            raise ConfigError(f"no adapter {absent[0]!r} is loaded; there are {', '.join(current) or 'none'}.")
        # Tasks that differ only in their prompts share an adapter object: compute with it once. Some tasks have an empty one.
        adapters: dict[int, Adapter] = {}
        users: dict[int, list[int]] = {}
        for number, task in enumerate(batch.task_names):
            if adapter := current[task]:
                adapters[id(adapter)] = adapter
                users.setdefault(id(adapter), []).append(number)
        if not adapters:
            return None
        same = None not in batch.tasks and len(next(iter(users.values()))) == len(batch.task_names)
        return Route(list(adapters.values()), list(users.values()), None if same else batch.spread(batch.row_tasks))


def load_adapter(files: AdapterFiles, *, compute: Compute) -> Adapter:
    """Loads a checked PEFT folder as factors for our layers.

    Raises:
        ModelError: A value is not finite.
    """
    # Read tensor by tensor, because several adapters may share a file.
    with safe_open(str(files.folder / WEIGHTS), framework="pt") as file:
        used = [name for part in files.parts for name in (part.down, part.up)]
        tensors = {name: file.get_tensor(name).to(torch.float32) for name in used}
    for name, tensor in tensors.items():
        # The up factor is multiplied by the scale before it is converted to the compute type.
        scaled = tensor * files.scale if name in {part.up for part in files.parts} else tensor
        check_finite(scaled, compute.dtype, name=name, where=files.folder / WEIGHTS)

    def module(part: Part) -> str:
        return part.target.module

    adapter = {}
    for ours, group in groupby(sorted(files.parts, key=module), key=module):
        parts = sorted(group, key=lambda part: part.target.start)
        adapter[ours] = factors(_join(parts, tensors), scale=files.scale, compute=compute)
    return adapter


def factors(pair: tuple[torch.Tensor, torch.Tensor], *, scale: float, compute: Compute) -> Factors:
    """Scales float32 factors and converts them to the model's device and type."""
    down, up = pair
    target = (compute.device, compute.dtype)
    return Factors(down.to(*target).contiguous(), (up * scale).to(*target).contiguous())


def _join(parts: Sequence[Part], tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins the factors of a module's parts (query, key and value are one module here)."""
    target = parts[0].target
    downs, ups = [tensors[part.down] for part in parts], [tensors[part.up] for part in parts]
    if target.embedding:
        return downs[0].T, ups[0]
    if all(torch.equal(down, downs[0]) for down in downs):
        # An adapter of a fused layer that was written in parts: all parts have the same down factor.
        up = torch.zeros(target.total, downs[0].shape[0])
        for part, rows in zip(parts, ups, strict=True):
            up[part.target.start : part.target.start + part.target.outputs] = rows
        return downs[0], up
    up = torch.zeros(target.total, sum(down.shape[0] for down in downs))
    column = 0
    for part, rows in zip(parts, ups, strict=True):
        rank = rows.shape[1]
        up[part.target.start : part.target.start + part.target.outputs, column : column + rank] = rows
        column += rank
    return torch.cat(downs), up
