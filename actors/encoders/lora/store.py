"""Stores the LoRA adapters of one base model and applies them per row; they can be changed at run time.

A family computes with its base weights and calls a `Route` to add the contribution of the micro-batch's adapters. For rows
of several tasks the down factors are stacked into one product, `z = x D^T`, with a few columns per adapter. Each token keeps
the columns of its own adapter, the others are set to zero, then `y += z U^T`. So a mixed micro-batch costs two thin products
per layer, needs no sorting, and gives each row the same result as its adapter alone. Merging an adapter into the base saves
those products, but needs one copy of the model per task: `merge` is for encoders with one task.

Loading an adapter replaces one reference. A micro-batch reads the set of adapters before its first layer, so it is computed
with the old set or with the new one, never with a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn import functional

from actors.encoders.compute.device import Compute
from actors.encoders.compute.linear import Add
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


# Sets of adapters whose joined factors are kept: a set of all three of v4 takes 0.4 GB.
_JOINED_SETS = 8
# Rows of a weight that are merged at a time; the float32 sum of all rows of v3's word table would take 1 GB.
_MERGED_ROWS = 16_384
# Module of a layer and its input -> what adds the adapters' contributions to its output; None adds nothing.
Adding = Callable[[str, torch.Tensor], Add | None]
# Our name of a layer -> its factors.
Adapter = Mapping[str, Factors]


@dataclass(frozen=True, slots=True)
class Joined:
    """The factors of several adapters for one layer, joined so that two products compute all of them.

    Attributes:
        ranks: Number of each adapter that changes the layer, and its rank.
    """

    ranks: tuple[tuple[int, int], ...]
    factors: Factors


class Route:
    """The adapters of one micro-batch and their assignment to tokens.

    Args:
        adapters: The adapters in use, at least one.
        users: For each adapter the numbers of its tasks.
        task: int32 [tokens], number of each token's task; None if all tokens use the first adapter.
        joined: Joined factors by layer, of earlier routes with the same adapters.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        users: Sequence[Sequence[int]],
        task: torch.Tensor | None,
        joined: dict[str, Joined | None],
    ) -> None:
        self._adapters = adapters
        self._users = users
        self._task = task
        self._joined = joined
        self._masks: dict[tuple[tuple[int, int], ...], torch.Tensor] = {}

    def add(self, module: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds the adapters' contribution for input `x` to the output `y` [tokens, outputs] of a linear layer, in place.

        It is computed in the type of `x` and `y`, which may be wider than that of the factors.
        """
        joined = self._join(module, axis=0)
        return y if joined is None else self._widen(functional.linear(x, joined.factors.down.to(x.dtype)), joined, y)

    def look_up(self, module: str, ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds the adapters' contribution for `ids` to the rows `y` [tokens, width] of an embedding, in place."""
        joined = self._join(module, axis=1)
        return y if joined is None else self._widen(functional.embedding(ids, joined.factors.down), joined, y)

    def look_up_words(self, words: str, types: str, ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Calls `look_up` for the table of words and for that of types, of which every token has type 0."""
        return self.look_up(types, torch.zeros_like(ids), self.look_up(words, ids, y))

    def _join(self, module: str, *, axis: int) -> Joined | None:
        """Returns the factors of all adapters that change a layer; `axis` of the down factors is the rank."""
        if module not in self._joined:
            numbered = [(i, adapter[module]) for i, adapter in enumerate(self._adapters) if module in adapter]
            parts = [factors for _, factors in numbered]
            joined = parts[0] if len(parts) == 1 else None
            if len(parts) > 1:
                joined = Factors(torch.cat([f.down for f in parts], axis), torch.cat([f.up for f in parts], 1))
            ranks = tuple((i, factors.up.shape[1]) for i, factors in numbered)
            self._joined[module] = None if joined is None else Joined(ranks, joined)
        return self._joined[module]

    def _widen(self, narrow: torch.Tensor, joined: Joined, y: torch.Tensor) -> torch.Tensor:
        if self._task is not None:
            # Not a product with 0: the result of another row's adapter for this token may be infinite.
            narrow = narrow.masked_fill(self._mask(joined.ranks, self._task), 0)
        return y.addmm_(narrow, joined.factors.up.T.to(y.dtype))

    def _mask(self, ranks: tuple[tuple[int, int], ...], task: torch.Tensor) -> torch.Tensor:
        """Returns bool [tokens, all ranks]: true where a column is of another adapter than the token's.

        Cached, because most layers have the same mask. Computed on the device: a copy of it would make the host wait.
        """
        if ranks not in self._masks:
            other = [torch.stack([task != user for user in self._users[number]]).all(0) for number, _ in ranks]
            columns = [mask[:, None].expand(-1, rank) for mask, (_, rank) in zip(other, ranks, strict=True)]
            self._masks[ranks] = torch.cat(columns, dim=1)
        return self._masks[ranks]


def adding(route: Route | None, layer: str) -> Adding:
    """Returns a function of a module of one layer and its input, which returns `Route.add` for its output, None without a route."""

    def add(module: str, x: torch.Tensor) -> Add | None:
        return None if route is None else partial(route.add, f"{layer}.{module}", x)

    return add


class AdapterStore:
    """The adapters of a loaded base model. A family with adapters has one as attribute `adapters`.

    Args:
        targets: The layers that adapters may change, by their names in files.
        compute: Device and type of the base.
        adapters: The checkpoint's own adapters; empty for a task that has a prompt only.
    """

    def __init__(self, targets: Mapping[str, Target], compute: Compute, adapters: Mapping[str, Adapter]) -> None:
        self._targets = targets
        self._compute = compute
        self._adapters: dict[str, Adapter] = dict(adapters)
        # The adapters that micro-batches used together, and their joined factors by layer. Keys are the adapters' ids.
        self._joined: dict[tuple[int, ...], tuple[list[Adapter], dict[str, Joined | None]]] = {}
        self._merged_task: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return tuple(name for name, adapter in self._adapters.items() if adapter or self._merged_task is not None)

    def load(self, names: Sequence[str], folder: Path) -> None:
        """Loads a PEFT folder under one or several names. Adapters with these names are replaced.

        Raises:
            ModelError: It does not fit this model, or has values that are not finite. The store is unchanged.
            ConfigError: An adapter is merged.
        """
        self._refuse_if_merged()
        adapter = load_adapter(read_adapter(folder, self._targets), compute=self._compute)
        self._adapters, self._joined = {**self._adapters, **dict.fromkeys(names, adapter)}, {}

    def remove(self, names: Sequence[str]) -> None:
        """Removes adapters. Does nothing for an unknown name; the caller checks names."""
        self._adapters = {known: adapter for known, adapter in self._adapters.items() if known not in names}
        self._joined = {}

    def route(self, batch: PackedBatch) -> Route | None:
        """Returns the route of a micro-batch, or None if it uses no adapter.

        Raises:
            ConfigError: A row's adapter is not loaded, was removed, or is not the merged one.
        """
        if batch.tasks is None or None in batch.tasks or not self._adapters.keys() >= set(batch.task_names):
            self._refuse_if_merged()
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
        owner = None if same else batch.spread(batch.row_tasks)
        key = tuple(adapters)
        if key not in self._joined and len(self._joined) >= _JOINED_SETS:
            self._joined = {}
        used, joined = self._joined.setdefault(key, (list(adapters.values()), {}))
        return Route(used, list(users.values()), owner, joined)

    def merge(self, task: str, family: Any) -> None:
        """Adds the adapter of a task to the weights of its family in place; all other adapters are removed.

        Each sum is computed in float32 and rounded once to the type of the weights. In bfloat16 that loses the digits of an
        adapter that are small beside the weight. The vectors of small random checkpoints in bfloat16 have a cosine of 0.99989
        (v4) and 0.99997 (v3) with those of the adapter beside the base, which themselves have 0.9998 to 0.9999 with float32's.

        Args:
            task: The only task that rows will have, or one of those that share its adapter.
            family: Has the table `words` and `layers`. Their linear layers, and its own, have the names of the adapter's modules.
        """
        adapter = self._adapters.get(task)
        if not adapter:
            return
        tables = {target.module for target in self._targets.values() if target.embedding}
        for module, factors in adapter.items():
            if module in tables:
                # A table of one row, or of which only the first is used, is added to all words.
                weight, right = family.words, factors.up.T
                left = factors.down if len(factors.down) == len(weight) else factors.down[:1].expand(len(weight), -1)
            else:
                owner, name = family, module
                if module.startswith("layers."):
                    _, number, name = module.split(".", 2)
                    owner = family.layers[int(number)]
                weight, left, right = attrgetter(name)(owner).weight, factors.up, factors.down
            with torch.inference_mode():
                for part, rows in zip(*(torch.split(x, _MERGED_ROWS) for x in (weight, left)), strict=True):
                    part.copy_(torch.addmm(part.float(), rows.float(), right.float()))
        self._adapters = {name: {} for name, each in self._adapters.items() if each is adapter}
        self._merged_task = task

    def _refuse_if_merged(self) -> None:
        if self._merged_task is not None:
            raise ConfigError(
                f"this encoder was loaded for task {self._merged_task!r} alone, and its adapter is merged into the weights. "
                f"Load another encoder for other tasks and adapters."
            )


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
        down, up = _join(parts, tensors)
        names = parts[0].target.halves or (ours,)
        for name, rows in zip(names, up.chunk(len(names)), strict=True):
            adapter[name] = factors((down, rows), scale=files.scale, compute=compute)
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
