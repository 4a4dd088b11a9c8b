"""fastembed on an export of the checkpoint, added as a model of its own, with its defaults but for the threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

from benchmarks.race.workers.serve import Engine, Floats, Settings, serve

NAME = "local/all-MiniLM-L6-v2"


class FastEmbed:
    """Batches of 256 texts as they come, padded to the longest: the library neither sorts nor counts tokens."""

    def __init__(self, settings: Settings) -> None:
        TextEmbedding.add_custom_model(
            model=NAME,
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf=NAME),
            dim=384,
            model_file="model.onnx",
        )
        folder = Path(settings.exported) / "fastembed"
        self._model = TextEmbedding(
            NAME, specific_model_path=str(folder), threads=settings.threads, local_files_only=True
        )
        tokenizer = self._model.model.tokenizer
        tokenizer.enable_truncation(settings.max_tokens)
        self._tokenizer = tokenizer
        self.places: int | None = None

    def encode(self, texts: list[str]) -> Floats:
        return np.asarray(list(self._model.embed(texts)), np.float32)


class Counting(FastEmbed):
    """Counts places afterwards in its first call for a list of texts: by the batches that the library makes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._known: dict[int, int] = {}

    def encode(self, texts: list[str]) -> Floats:
        vectors = super().encode(texts)
        if id(texts) not in self._known:  # each list lives as long as the worker
            starts = range(0, len(texts), 256)
            batches = [self._tokenizer.encode_batch(texts[start : start + 256]) for start in starts]
            self._known[id(texts)] = sum(len(batch) * len(batch[0].ids) for batch in batches)
        self.places = self._known[id(texts)]
        return vectors


def load(settings: Settings) -> Engine:
    return Counting(settings)


if __name__ == "__main__":
    serve(load, ("fastembed", "onnxruntime"))
