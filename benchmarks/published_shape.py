"""Measures one page and one text through v4 at its published size, with random weights: `python -m benchmarks.published_shape`.

The weights (3.75 billion numbers) are made block by block and freed after use, so that 2 GB of memory are enough. The time to
make them is not counted. The picture is an A4 page at the default bound, the text has 512 tokens.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from actors.encoders.checkpoint import TensorInfo
from actors.encoders.compute.device import Compute, find_compute
from actors.encoders.families import jina_v4_layout as names
from actors.encoders.families import jina_v4_vision as vision
from actors.encoders.families.jina_v4 import Layer
from actors.encoders.families.jina_v4_vision_layout import tower_sizes
from actors.encoders.layout import FamilyFacts
from actors.encoders.packed import PackedBatch, pack
from actors.encoders.pictured import Picture
from actors.encoders.rope import Rope
from actors.encoders.weights import Weights
from actors.images.pixels import pack_pixels

CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 128_000,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048},
}
GRID = (32, 23)
BEFORE, AFTER = 4, 7
TEXT_TOKENS = 512


class RandomWeights:
    """Weights of any name, repeated from one block of random numbers."""

    def __init__(self, facts: FamilyFacts, prefix: str) -> None:
        self._shapes = facts.needed
        self._prefix = prefix
        self._block = torch.randn(2**24, generator=torch.Generator().manual_seed(0))

    def get(self, name: str) -> torch.Tensor:
        """Returns a new tensor of the shape that the layout says."""
        shape = self._shapes[self._prefix + name]
        if len(shape) == 1:
            return torch.ones(shape) if "norm" in name or "ln_q" in name else torch.zeros(shape)
        count = int(np.prod(shape))
        return self._block.repeat(-(-count // len(self._block)))[:count].mul_(shape[-1] ** -0.5).view(shape)

    def stack(self, *names: str) -> torch.Tensor:
        """See `Weights.stack`."""
        return torch.cat([self.get(name) for name in names])


class Seconds:
    """Seconds of the clock and of all cores, by name."""

    def __init__(self) -> None:
        self.wall: Counter[str] = Counter()
        self.cores: Counter[str] = Counter()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Adds the time of a block of code."""
        wall, cores = time.perf_counter(), time.process_time()
        yield
        self.wall[name] += time.perf_counter() - wall  # type: ignore[assignment]
        self.cores[name] += time.process_time() - cores  # type: ignore[assignment]


def look(facts: FamilyFacts, compute: Compute, batch: PackedBatch, seconds: Seconds) -> torch.Tensor:
    """Returns the tower's states of the batch's picture; its blocks are made when they are called."""
    sizes = tower_sizes(CONFIG, facts.hidden)
    compute = Compute(compute.device, torch.float32) if compute.device.type == "cpu" else compute
    weights = cast("Weights", RandomWeights(facts, facts.tower))

    def run_block(i: int, *args: Any) -> torch.Tensor:
        block = vision.Block(weights, i, heads=sizes.heads, compute=compute)
        with seconds.of("vision"):
            return block(*args)

    tower = vision.Tower(weights, replace(sizes, blocks=0), compute=compute)
    tower.blocks = [cast("vision.Block", partial(run_block, i)) for i in range(sizes.blocks)]
    assert batch.pictures is not None
    return tower(batch.pictures)


def main() -> None:
    """Measures and prints."""
    first = ("model.layers.0.self_attn.q_proj.weight", "visual.patch_embed.proj.weight")
    facts = names.layout(CONFIG, {name: TensorInfo("", (), "F32") for name in first})
    assert facts is not None
    compute, seconds = find_compute("bfloat16"), Seconds()
    tokens = GRID[0] * GRID[1]
    pixels = np.random.default_rng(0).integers(0, 256, (28 * GRID[0], 28 * GRID[1], 3), np.uint8)

    def packed(length: int, picture: Picture | None) -> PackedBatch:
        return pack(np.zeros(length, np.int32), np.array([length]), device=compute.device, pictures=[picture])

    rows = {
        "page": packed(BEFORE + tokens + AFTER, Picture(pack_pixels(pixels), BEFORE)),
        "text": packed(TEXT_TOKENS, None),
    }
    text = names.text_config(CONFIG)
    *_, width = names.head_sizes(text)
    rope = Rope(width, names.rope_theta(text), compute=compute, sections=names.rope_sections(text))
    with torch.inference_mode():
        look(facts, compute, rows["page"], seconds)
        weights = cast("Weights", RandomWeights(facts, facts.prefix))
        states = {name: torch.randn(len(row.ids), facts.hidden, device=compute.device) for name, row in rows.items()}
        results: dict[str, torch.Tensor] = {}
        for i in range(int(text["num_hidden_layers"])):
            layer = Layer(weights, i, text=text, compute=compute)
            for name, row in rows.items():
                with seconds.of(name):
                    results[name] = layer(states[name], results.get(name), row, rope.angles(row), None)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{compute.dtype}, {torch.get_num_threads()} threads, peak {peak_gb:.1f} GB")
    for what, name in (
        (f"page of {tokens} tokens, vision tower", "vision"),
        (f"page of {tokens} tokens, language model", "page"),
        (f"text of {TEXT_TOKENS} tokens", "text"),
    ):
        print(f"{what}: {seconds.wall[name]:.1f} s, {seconds.cores[name]:.1f} core seconds")


if __name__ == "__main__":
    main()
