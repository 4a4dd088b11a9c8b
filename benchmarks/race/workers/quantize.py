"""Makes OpenVINO's int8 model of the exported one, by nncf, calibrated on texts that are given.

Run in OpenVINO's environment: `python -m benchmarks.race.workers.quantize MODEL OUT TEXTS MAX_TOKENS`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nncf
import openvino as ov

from benchmarks.race.workers.serve import padded_batches
from benchmarks.race.workers.tokens import TokenIds

ROWS = 128


def main(model: str, to: str, texts: str, max_tokens: str) -> None:
    out = Path(to)
    ids = TokenIds(model, int(max_tokens))(json.loads(Path(texts).read_text())[:ROWS])
    feeds = [batch.feeds for batch in padded_batches(ids, 1024)]
    quantized = nncf.quantize(
        ov.Core().read_model(out / "onnx-float32.onnx"),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(feeds),
    )
    ov.save_model(quantized, out / "openvino-int8.xml", compress_to_fp16=False)
    (out / "openvino.done").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
