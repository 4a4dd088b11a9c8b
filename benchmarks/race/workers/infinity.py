"""infinity's engine inside this process, without its server, with its defaults for a CPU but for the threads."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import torch
from infinity_emb import AsyncEmbeddingEngine, EngineArgs

from benchmarks.race.workers.serve import Engine, Floats, Settings, serve


class Infinity:
    """Its batches are made by length within a window of its queue."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._loop = asyncio.new_event_loop()
        self._engine = AsyncEmbeddingEngine.from_args(
            EngineArgs(
                model_name_or_path=settings.model,
                device="cpu",
                engine="torch",
                dtype="float32",
                bettertransformer=False,
                model_warmup=False,
                lengths_via_tokenize=True,
            )
        )
        self._loop.run_until_complete(self._engine.astart())
        self.places: int | None = None

    def encode(self, texts: list[str]) -> Floats:
        answer: Any = self._loop.run_until_complete(self._engine.embed(sentences=texts))
        return np.asarray(answer[0], np.float32)


def load(settings: Settings) -> Engine:
    return Infinity(settings)


if __name__ == "__main__":
    serve(load, ("infinity-emb", "transformers", "torch"))
