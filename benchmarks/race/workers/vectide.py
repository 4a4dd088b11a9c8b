"""Vectide's engine, in one process or in one for each core."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from actors.encoders import load_encoder
from actors.encoders.encoder import Encoder
from benchmarks.race.workers.serve import Engine, Floats, Settings, serve


class One:
    """One process."""

    def __init__(self, settings: Settings) -> None:
        self._encoder: Encoder = load_encoder(
            settings.model,
            device="cpu",
            threads=settings.threads,
            max_tokens=settings.max_tokens,
            dtype=settings.compute,
        )
        self.places: int | None = None

    def encode(self, texts: list[str]) -> Floats:
        before = self._encoder.stats
        vectors = self._encoder.encode(texts)
        after = self._encoder.stats
        self.places = after.tokens + after.padding_tokens - before.tokens - before.padding_tokens
        return vectors


_one: One | None = None  # in each process of `Several`


def _start(settings: Settings) -> None:
    global _one  # noqa: PLW0603  (a pool's way to load a model once a process)
    _one = One(settings)


def _encode(texts: list[str]) -> tuple[Floats, int, float]:
    assert _one is not None
    spent = time.process_time()
    vectors = _one.encode(texts)
    return vectors, _one.places or 0, time.process_time() - spent


class Several:
    """A process a core with one thread each, every one with its share of the texts."""

    def __init__(self, settings: Settings) -> None:
        self._count = settings.processes
        alone = Settings(**{**settings.__dict__, "threads": max(settings.threads // settings.processes, 1)})
        self._pool = ProcessPoolExecutor(self._count, get_context("spawn"), initializer=_start, initargs=(alone,))
        self.places: int | None = None
        self.children_s = 0.0
        self.encode(["one text for each process"] * self._count)

    def encode(self, texts: list[str]) -> Floats:
        # By turns in order of size, so that all have as much to do.
        order = np.argsort([-len(text) for text in texts], kind="stable")
        shares = [order[number :: self._count] for number in range(self._count)]
        parts = list(self._pool.map(_encode, [[texts[row] for row in share] for share in shares]))
        vectors = np.empty((len(texts), parts[0][0].shape[1]), np.float32)
        for share, (part, _, _) in zip(shares, parts, strict=True):
            vectors[share] = part
        self.places = sum(places for _, places, _ in parts)
        self.children_s = sum(spent for _, _, spent in parts)
        return vectors


def load(settings: Settings) -> Engine:
    return One(settings) if settings.processes == 1 else Several(settings)


if __name__ == "__main__":
    serve(load, ("torch", "tokenizers"))
