"""The vision tower of jina-embeddings-v4: pixels of pictures to states of the language model's tokens, packed.

All patches of a group of pictures are one flat axis, as the tokens of texts are. In most blocks a patch attends to a window
of 8 x 8 patches; in a few, to its whole picture. Patches are ordered so that those of a window are neighbours, and the
windows of a picture by their size: windows at the right and lower edge are smaller, and windows of one size share an
attention call. No state depends on another picture or on padding. A LoRA adapter never changes the tower, so its result is
the same for all tasks.

On a CPU the tower computes in float32 whatever the model's compute type: its error in bfloat16 is larger than that of the
language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from actors.encoders.build import Checkpoint
from actors.encoders.compute.attention import attend
from actors.encoders.compute.device import Compute
from actors.encoders.compute.linear import Linear, RmsNorm, swiglu
from actors.encoders.compute.transfer import to_device
from actors.encoders.families.jina_v4_vision_layout import CHANNELS, MERGE, PATCH, THETA, TowerSizes, tower_sizes
from actors.encoders.packed import PackedBatch, pack
from actors.encoders.pictured import Pictures
from actors.encoders.preprocessor import MEAN, STD
from actors.encoders.rope import apply_rotary_
from actors.encoders.weights import Weights
from actors.images.pixels import unpack_pixels

Ints = npt.NDArray[np.int64]

# Patches that go through the tower together, unless one picture has more. It bounds the memory of the states.
_GROUP_PATCHES = 16_384
_EPS = 1e-6
_UNIT = MERGE**2  # patches of a merged token


class Block:
    """One block of the tower."""

    def __init__(self, weights: Weights, i: int, *, heads: int, compute: Compute) -> None:
        def linear(*names: str) -> Linear:
            parts = [f"blocks.{i}.{name}" for name in names]
            weight, bias = (weights.stack(*(f"{part}.{kind}" for part in parts)) for kind in ("weight", "bias"))
            return Linear(weight, bias, compute=compute)

        self.heads = heads
        self.qkv, self.out = linear("attn.qkv"), linear("attn.proj")
        self.gate_up, self.down = linear("mlp.gate_proj", "mlp.up_proj"), linear("mlp.down_proj")
        self.norm1, self.norm2 = (
            RmsNorm(weights.get(f"blocks.{i}.norm{number}.weight"), _EPS, compute=compute) for number in (1, 2)
        )

    def __call__(
        self, x: torch.Tensor, segments: PackedBatch, angles: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Updates float32 [patches, hidden] in place."""
        qkv = self.qkv(self.norm1(x)).view(len(x), 3 * self.heads, -1)
        apply_rotary_(qkv[:, : 2 * self.heads], angles)
        query, key, value = qkv.chunk(3, dim=1)
        x += self.out(attend(query, key, value, segments))
        x += self.down(swiglu(self.gate_up(self.norm2(x))))
        return x


class Tower:
    """The vision tower."""

    def __init__(self, weights: Weights, sizes: TowerSizes, *, compute: Compute) -> None:
        self.sizes = sizes
        self.compute = compute
        self.dtype = compute.dtype
        # Both frames of a picture are equal, so the sum of their weights gives the same product at half the size.
        patch = weights.get("patch_embed.proj.weight").sum(dim=2).reshape(sizes.hidden, -1)
        self.patch = Linear(patch, None, compute=compute)
        self.blocks = [Block(weights, i, heads=sizes.heads, compute=compute) for i in range(sizes.blocks)]
        self.norm = RmsNorm(weights.get("merger.ln_q.weight"), _EPS, compute=compute)
        self.merge_in, self.merge_out = (
            Linear(
                weights.get(f"merger.mlp.{i}.weight"), weights.get(f"merger.mlp.{i}.bias"), compute=compute, gelu=not i
            )
            for i in (0, 2)
        )
        half = sizes.hidden // sizes.heads // 2
        steps = torch.arange(0, half, 2, dtype=torch.float32, device=compute.device) / half
        self.frequencies = 1.0 / THETA**steps
        mean, std = (torch.tensor(each).repeat_interleave(PATCH**2).to(compute.device) for each in (MEAN, STD))
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, pictures: Pictures) -> torch.Tensor:
        """Returns the states of the pictures' tokens, [tokens, out], picture by picture, each row by row."""
        return torch.cat([self._encode(group) for group in _groups(pictures)])

    def _encode(self, pixels: list[npt.NDArray[np.uint8]]) -> torch.Tensor:
        device = self.compute.device
        side = MERGE * PATCH
        layouts = [_layout(len(each) // side, each.shape[1] // side, self.sizes.window) for each in pixels]
        ends = np.cumsum([len(order) for order, _, _ in layouts])
        order = np.concatenate([order + end - len(order) for (order, _, _), end in zip(layouts, ends, strict=True)])
        places = to_device(np.concatenate([places for _, places, _ in layouts]), device)
        windows = _segments(np.concatenate([lengths for _, _, lengths in layouts]), device)
        wholes = _segments(_UNIT * np.diff(ends, prepend=0), device)
        angles = (places[..., None] * self.frequencies).flatten(1)
        turn = angles.cos(), angles.sin()

        patches = torch.cat([_patches(to_device(each, device)) for each in pixels])[to_device(order, device)]
        x = patches.view(-1, CHANNELS * PATCH**2) * self.scale + self.shift
        x = self.patch(x.to(self.dtype)).float()
        for i, block in enumerate(self.blocks):
            x = block(x, wholes if i in self.sizes.whole else windows, turn)
        merged = self.merge_out(self.merge_in(self.norm(x).view(-1, _UNIT * self.sizes.hidden)))
        return merged[to_device(np.argsort(order), device)]


def build_tower(checkpoint: Checkpoint, compute: Compute) -> Tower:
    """Loads the vision tower of a checkpoint."""
    if compute.device.type == "cpu":
        compute = Compute(compute.device, torch.float32)
    weights = checkpoint.weights.under(checkpoint.facts.tower)
    return Tower(weights, tower_sizes(checkpoint.config, checkpoint.facts.hidden), compute=compute)


def _groups(pictures: Pictures) -> Iterator[list[npt.NDArray[np.uint8]]]:
    """Yields the pixels of pictures in groups with a bounded number of patches."""
    group: list[npt.NDArray[np.uint8]] = []
    patches = 0
    for data in pictures.pixels:
        pixels = unpack_pixels(data)
        own = pixels.shape[0] * pixels.shape[1] // PATCH**2
        if group and patches + own > _GROUP_PATCHES:
            yield group
            group, patches = [], 0
        group.append(pixels.copy())  # torch takes no memory that is read-only
        patches += own
    yield group


def _patches(pixels: torch.Tensor) -> torch.Tensor:
    """Cuts uint8 RGB [height, width, 3] into patches.

    Returns:
        uint8 [merged tokens, 4, 588]: merged tokens row by row, in each its patches row by row, in each the channels.
    """
    height, width, _ = pixels.shape
    side = MERGE * PATCH
    cut = pixels.view(height // side, MERGE, PATCH, width // side, MERGE, PATCH, CHANNELS)
    return cut.permute(0, 3, 1, 4, 6, 2, 5).reshape(-1, _UNIT, CHANNELS * PATCH**2)


@lru_cache(maxsize=256)
def _layout(rows: int, columns: int, window: int) -> tuple[Ints, npt.NDArray[np.int32], Ints]:
    """Orders the tokens of a picture by windows, and those by size.

    Args:
        rows: Merged tokens along the picture's height.
        columns: Merged tokens along its width.
        window: Merged tokens along a side of a window.

    Returns:
        The order of the merged tokens [tokens], the row and column of each patch in that order [4 * tokens, 2], and the
        number of patches of each window, largest first.
    """
    row, column = (axis.reshape(-1) for axis in np.indices((rows, columns)))
    windows = row // window * -(-columns // window) + column // window
    sizes = np.bincount(windows)
    order = np.lexsort((windows, -sizes[windows]))
    corner = np.indices((MERGE, MERGE)).reshape(2, -1)
    places = [MERGE * axis[order][:, None] + corner[i] for i, axis in enumerate((row, column))]
    return order, np.stack(places, axis=-1).reshape(-1, 2).astype(np.int32), _UNIT * -np.sort(-sizes)


def _segments(lengths: Ints, device: torch.device) -> PackedBatch:
    """Returns a batch that has only the lengths of its rows, for `attend`."""
    return pack(np.zeros(int(lengths.sum()), np.int32), lengths, device=device)
