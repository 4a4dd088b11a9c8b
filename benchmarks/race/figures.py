"""The arithmetic behind the tables. Pure: numbers in, numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def rounds(names: Sequence[str], repeats: int) -> Iterator[list[str]]:
    """The order of each repeat: every one in it once, and each time another one first."""
    for number in range(repeats):
        start = number % len(names)
        yield [*names[start:], *names[:start]]


@dataclass(slots=True)
class Measured:
    """Repeats of one engine on one mix.

    Attributes:
        tokens: Real tokens of a pass.
        seconds: Of each pass.
        processor_s: Of all its threads, in each pass: other work on the machine changes it little.
        places: Token places that were computed, padding included; None where the engine does not say.
    """

    tokens: int
    seconds: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)
    places: int | None = None

    @property
    def rate(self) -> float:
        """Median of real tokens a second."""
        return statistics.median(self.rates)

    @property
    def rates(self) -> list[float]:
        """Real tokens a second of each pass."""
        return [self.tokens / spent for spent in self.seconds]

    @property
    def rates_by_core(self) -> list[float]:
        """Real tokens for each second of a core, of each pass."""
        return [self.tokens / spent for spent in self.processor_s]

    @property
    def padding(self) -> float | None:
        """Share of the places that held no token."""
        return None if not self.places else max(0.0, 1 - self.tokens / self.places)


def paired_ratio(one: Sequence[float], base: Sequence[float]) -> float:
    """Return the median over rounds of the speed of `one` relative to `base`. Other load affects both of a round."""
    return statistics.median(ours / theirs for ours, theirs in zip(one, base, strict=True))


def cosines(vectors: Floats, reference: Floats) -> tuple[float, float]:
    """Worst and mean cosine of rows with those of a reference."""
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    found = np.einsum("ij,ij->i", vectors.astype(np.float64), reference.astype(np.float64)) / norms
    return float(found.min()), float(found.mean())


def operations(config: dict[str, Any], lengths: Sequence[int]) -> float:
    """Floating point operations in the matrix products of a BERT over texts of these lengths, padding not counted."""
    hidden, inner, layers = (int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    linear = 2 * layers * (4 * hidden * hidden + 2 * hidden * inner) * sum(lengths)
    attention = 4 * layers * hidden * sum(length * length for length in lengths)
    return float(linear + attention)
