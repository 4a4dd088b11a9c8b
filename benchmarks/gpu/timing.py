"""Mixes of random token ids, tokens a second of a call, and the highest rate of the GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

Ints = npt.NDArray[np.int64]


def mixes(tokens: int) -> dict[str, Ints]:
    """Lengths of texts, `tokens` together, by mix."""
    random = np.random.default_rng(0)
    drawn = {
        "short": random.integers(20, 51, tokens),
        "long": random.integers(200, 257, tokens),
        "heavy-tailed": np.clip(random.lognormal(4.2, 0.9, tokens), 8, 512).astype(np.int64),
    }
    return {name: lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1] for name, lengths in drawn.items()}


def random_ids(lengths: Ints, vocabulary: int) -> pa.ListArray:
    """Token ids, one list a text."""
    values = np.random.default_rng(1).integers(5, vocabulary, int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def wait(device: torch.device) -> None:
    """Wait until the GPU has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def let_go(device: torch.device) -> None:
    """Free the memory of models without references, so that no two models of 3 billion weights are loaded at once.

    What the compiler made for them goes too: it makes only a few forms of one function.
    """
    gc.collect()
    if device.type == "cuda":
        torch.compiler.reset()
        torch.cuda.empty_cache()


def limit(device: torch.device, size: int) -> float:
    """Operations a second of square bfloat16 products: the best of a few rounds."""
    x, y = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        wait(device)
        started = time.perf_counter()
        for _ in range(10):
            x @ y
        wait(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def timed(
    call: Callable[[], object], tokens: int, repeats: int, device: torch.device, *, warm: bool = True
) -> list[float]:
    """Tokens a second of each repeat, after one that is not counted if `warm`."""
    rates = []
    for number in range(repeats + warm):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        if number >= warm:
            rates.append(tokens / (time.perf_counter() - started))
    return rates
