"""sentence-transformers, as its documentation shows it: `encode` with the default batch of 32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.race.workers.serve import Engine, Floats, Settings, serve


class SentenceTransformers:
    """Texts are sorted by characters and padded to the longest of a batch, by the library itself."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._model = SentenceTransformer(
            settings.model, device="cpu", model_kwargs={"dtype": getattr(torch, settings.compute)}
        )
        self._model.max_seq_length = settings.max_tokens
        self.places: int | None = 0
        self._model[0].register_forward_pre_hook(self._count)

    def _count(self, _: Any, inputs: tuple[dict[str, torch.Tensor], ...]) -> None:
        self.places = (self.places or 0) + inputs[0]["attention_mask"].numel()

    def encode(self, texts: list[str]) -> Floats:
        self.places = 0
        vectors = self._model.encode(texts, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


def load(settings: Settings) -> Engine:
    return SentenceTransformers(settings)


if __name__ == "__main__":
    serve(load, ("sentence-transformers", "transformers", "torch"))
