"""LoRA adapters as plain data: any number of them beside one base, chosen per row, changed at run time.

A family computes with its base weights and asks a `Route` to add what the adapters of this micro-batch contribute.
For rows of several tasks the narrow factors are stacked into one product, `z = x D^T` of a few columns per adapter;
every token keeps the columns of its own adapter and zeros the rest, then `y += z U^T`. So a mixed micro-batch costs
two thin products per layer, needs no sorting, and gives each row what its adapter alone gives. Merging an adapter
into the base would save those products, at the price of one copy of the model per task.

A swap replaces one reference. A micro-batch takes its adapters before its first layer, so it is computed with the
old set or with the new one, never with a mixture.
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
    """What an adapter adds to one layer.

    Attributes:
        down: [rank, inputs]; for an embedding [rows, rank].
        up: [outputs, rank], the adapter's scale included.
    """

    down: torch.Tensor
    up: torch.Tensor


# Our name of a layer -> what is added to it.
Adapter = Mapping[str, Factors]


class Route:
    """The adapters of one micro-batch, and which token uses which.

    Args:
        adapters: Those in use, at least one.
        owner: int64 [tokens], number of each token's adapter or -1 for none; None where all use the first.
    """

    def __init__(self, adapters: Sequence[Adapter], owner: torch.Tensor | None) -> None:
        self._adapters = adapters
        self._owner = owner
        self._foreign: dict[tuple[int, ...], torch.Tensor] = {}

    def add(self, module: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds to the output `y` [tokens, outputs] of a linear layer (in place) what adapters make of `x`."""
        numbers, factors = self._of(module)
        if not factors:
            return y
        down = factors[0].down if len(factors) == 1 else torch.cat([f.down for f in factors])
        return self._widen(functional.linear(x, down), numbers, factors, y)

    def look_up(self, module: str, ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds to the rows `y` [tokens, width] that were looked up for `ids` (in place) what adapters add to them."""
        numbers, factors = self._of(module)
        if not factors:
            return y
        narrow = torch.cat([functional.embedding(ids, f.down) for f in factors], dim=1)
        return self._widen(narrow, numbers, factors, y)

    def _of(self, module: str) -> tuple[list[int], list[Factors]]:
        found = [(i, adapter[module]) for i, adapter in enumerate(self._adapters) if module in adapter]
        return [i for i, _ in found], [factors for _, factors in found]

    def _widen(self, narrow: torch.Tensor, numbers: list[int], factors: list[Factors], y: torch.Tensor) -> torch.Tensor:
        if self._owner is not None:
            # Not a product with 0: what another row's adapter makes of this token may be infinite.
            narrow = narrow.masked_fill(self._of_others(numbers, factors, self._owner), 0)
        up = factors[0].up if len(factors) == 1 else torch.cat([f.up for f in factors], dim=1)
        return y.addmm_(narrow, up.T)

    def _of_others(self, numbers: list[int], factors: list[Factors], owner: torch.Tensor) -> torch.Tensor:
        """Bool [tokens, all ranks]: true where a column is not of the token's adapter; most layers share one."""
        columns = tuple(n for n, f in zip(numbers, factors, strict=True) for _ in range(f.up.shape[1]))
        if columns not in self._foreign:
            self._foreign[columns] = owner[:, None] != torch.tensor(columns, device=owner.device)
        return self._foreign[columns]


def adding(route: Route | None, layer: str) -> Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]:
    """`Route.add` for the modules of one layer, or what leaves outputs as they are where a micro-batch has no route."""

    def added(module: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y if route is None else route.add(f"{layer}.{module}", x, y)

    return added


class AdapterStore:
    """The adapters beside a loaded base. A family has one as `adapters`.

    Args:
        targets: The layers that adapters may change, by their names in files.
        compute: Device and type of the base.
        adapters: Those that the checkpoint brought.
    """

    def __init__(self, targets: Mapping[str, Target], compute: Compute, adapters: Mapping[str, Adapter]) -> None:
        self._targets = targets
        self._compute = compute
        self._adapters: dict[str, Adapter] = dict(adapters)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters that are there."""
        return tuple(self._adapters)

    def load(self, name: str, folder: Path) -> None:
        """Reads a PEFT folder and puts it under `name`, in the place of one that has it.

        Raises:
            ModelError: It does not fit this model, or has values that are not finite; nothing was changed.
        """
        adapter = load_adapter(read_adapter(folder, self._targets), compute=self._compute)
        self._adapters = {**self._adapters, name: adapter}

    def remove(self, name: str) -> None:
        """Takes an adapter out; unknown names are left to the caller to refuse."""
        self._adapters = {known: adapter for known, adapter in self._adapters.items() if known != name}

    def route(self, batch: PackedBatch) -> Route | None:
        """The adapters that a micro-batch uses, or None where it uses none.

        Raises:
            ConfigError: A row's adapter is not there (any more).
        """
        if batch.tasks is None or not any(batch.tasks):
            return None
        current = self._adapters
        used = sorted({task for task in batch.tasks if task is not None})
        absent = [task for task in used if task not in current]
        if absent:
            raise ConfigError(f"no adapter {absent[0]!r} is loaded; there are {', '.join(current) or 'none'}.")
        # Tasks that differ in their prompts alone share an adapter, which is computed with once; some have an empty one.
        distinct = {id(current[task]): current[task] for task in used if current[task]}
        if not distinct:
            return None
        number = {key: i for i, key in enumerate(distinct)}
        owners = [-1 if task is None else number.get(id(current[task]), -1) for task in batch.tasks]
        owner = batch.spread(torch.tensor(owners, device=batch.device)) if any(owners) else None
        return Route(list(distinct.values()), owner)


def load_adapter(files: AdapterFiles, *, compute: Compute) -> Adapter:
    """A PEFT folder, checked, as factors for our layers.

    Raises:
        ModelError: A value is not finite.
    """
    # Tensor by tensor: several adapters may share a file.
    with safe_open(str(files.folder / WEIGHTS), framework="pt") as file:
        used = [name for part in files.parts for name in (part.down, part.up)]
        tensors = {name: file.get_tensor(name).to(torch.float32) for name in used}
    for name, tensor in tensors.items():
        # What widens is multiplied with the scale before it is narrowed.
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
    """Float32 factors, scaled and brought to the model's device and type."""
    down, up = pair
    place = (compute.device, compute.dtype)
    return Factors(down.to(*place).contiguous(), (up * scale).to(*place).contiguous())


def _join(parts: Sequence[Part], tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of a module out of those of its parts (query, key and value are one module here)."""
    target = parts[0].target
    downs, ups = [tensors[part.down] for part in parts], [tensors[part.up] for part in parts]
    if target.embedding:
        return downs[0].T, ups[0]
    if all(torch.equal(down, downs[0]) for down in downs):
        # A fused layer's adapter that was written in parts: all share what narrows.
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
