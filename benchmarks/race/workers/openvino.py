"""OpenVINO on an export of the checkpoint, fed with sorted batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov

from benchmarks.race.workers.serve import Engine, Floats, Settings, padded_batches, serve
from benchmarks.race.workers.tokens import TokenIds

BUDGET = 2048  # places a batch: the best of 1,024, 2,048, 4,096 and 8,192


class OpenVino:
    """Pooling and normalising are part of the graph."""

    def __init__(self, settings: Settings) -> None:
        core = ov.Core()
        name = "int8.xml" if settings.compute == "int8" else "onnx-float32.onnx"
        prefix = "openvino-" if settings.compute == "int8" else ""
        hint = "bf16" if settings.compute == "bfloat16" else "f32"
        self._model = core.compile_model(
            core.read_model(Path(settings.exported) / f"{prefix}{name}"),
            "CPU",
            {"INFERENCE_NUM_THREADS": settings.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint},
        )
        self._request = self._model.create_infer_request()
        self._ids = TokenIds(settings.model, settings.max_tokens)
        self.places: int | None = None

    def encode(self, texts: list[str]) -> Floats:
        vectors: Floats | None = None
        self.places = 0
        for batch in padded_batches(self._ids(texts), BUDGET):
            part = self._request.infer(batch.feeds)[0]
            if vectors is None:
                vectors = np.empty((len(texts), part.shape[1]), np.float32)
            vectors[batch.rows] = part
            self.places += batch.feeds["input_ids"].size
        assert vectors is not None
        return vectors


def load(settings: Settings) -> Engine:
    return OpenVino(settings)


if __name__ == "__main__":
    serve(load, ("openvino", "nncf", "tokenizers"))
