"""The machine's own limit: how fast it multiplies matrices of this model's shapes, and square ones, in one type.

It answers like an engine, so that it is measured in turn with them; its `seconds` are for one floating point operation.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from actors.encoders.compute.device import Compute
from actors.encoders.compute.int8 import multiply, pack, round_states, round_weights, zero_points
from actors.encoders.compute.linear import Linear
from benchmarks.race.workers.serve import Engine, Floats, Settings, serve

# (rows, in, out): all-MiniLM-L6-v2's own products at a usual micro-batch, and one that a processor likes best.
SHAPES = ((2048, 384, 1152), (2048, 384, 1536), (2048, 1536, 384), (2048, 2048, 2048))
LEAST_S = 0.15


class Limit:
    """`encode` gives no vectors but `[[operations per second]]`."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self.places: int | None = None
        if settings.compute == "int8":
            self._products = [_integers(*shape) for shape in SHAPES]
        else:
            self._dtype = getattr(torch, settings.compute)
            self._products = [product for shape in SHAPES for product in self._ways(*shape)]

    def _ways(self, rows: int, wide: int, out: int) -> list[tuple[int, Callable[[], object]]]:
        x = torch.randn(rows, wide).to(self._dtype)
        weight = torch.randn(out, wide)
        packed = Linear(weight, None, compute=Compute(torch.device("cpu"), self._dtype))
        plain = weight.to(self._dtype)
        operations = 2 * rows * wide * out
        return [(operations, lambda: packed(x)), (operations, lambda: torch.nn.functional.linear(x, plain))]

    def encode(self, texts: list[str]) -> Floats:
        del texts
        best = 0.0
        with torch.inference_mode():
            for operations, product in self._products:
                product()
                count, started = 0, time.perf_counter()
                while (spent := time.perf_counter() - started) < LEAST_S:
                    product()
                    count += 1
                best = max(best, count * operations / spent)
        return np.array([[best]], np.float32)


def _integers(rows: int, wide: int, out: int) -> tuple[int, Callable[[], object]]:
    """The bare product: states and weights rounded before."""
    states = round_states(torch.randn(rows, wide))[0]
    weight, scales = round_weights(torch.randn(out, wide))
    zeros = zero_points(out)
    packed = pack(weight)
    return 2 * rows * wide * out, lambda: multiply(states, packed, scales, zeros)


def load(settings: Settings) -> Engine:
    return Limit(settings)


if __name__ == "__main__":
    serve(load, ("torch",))
