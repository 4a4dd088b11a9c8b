"""ONNX Runtime on an export of the checkpoint, fed with sorted batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.race.workers.serve import Engine, Floats, Settings, padded_batches, serve
from benchmarks.race.workers.tokens import TokenIds

BUDGET = 2048  # places a batch: the best of 1,024, 2,048, 4,096 and 8,192


class OnnxRuntime:
    """Pooling and normalising are part of the graph."""

    def __init__(self, settings: Settings) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        file = Path(settings.exported) / f"onnx-{settings.compute}.onnx"
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._ids = TokenIds(settings.model, settings.max_tokens)
        self.places: int | None = None

    def encode(self, texts: list[str]) -> Floats:
        vectors: Floats | None = None
        self.places = 0
        for batch in padded_batches(self._ids(texts), BUDGET):
            (part,) = self._session.run(None, batch.feeds)
            if vectors is None:
                vectors = np.empty((len(texts), part.shape[1]), np.float32)
            vectors[batch.rows] = part
            self.places += batch.feeds["input_ids"].size
        assert vectors is not None
        return vectors


def load(settings: Settings) -> Engine:
    return OnnxRuntime(settings)


if __name__ == "__main__":
    serve(load, ("onnxruntime", "tokenizers"))
