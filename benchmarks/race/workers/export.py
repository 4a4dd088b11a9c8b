"""Exports a BERT-like checkpoint for the engines that do not read it: ONNX with pooling, ONNX int8, fastembed's folder.

Run in ONNX Runtime's environment: `python -m benchmarks.race.workers.export MODEL OUT`. Nothing is downloaded.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from transformers import AutoModel

FOR_FASTEMBED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Pooled(torch.nn.Module):
    """The model with mean pooling and normalising."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1)


class Hidden(torch.nn.Module):
    """The model's token states: fastembed pools by itself, and gives a BERT its token types."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        states: torch.Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        return states


def export(module: torch.nn.Module, file: Path, names: list[str]) -> None:
    """One ONNX file for any number of rows of any length."""
    module.eval()
    ids = torch.randint(5, 1000, (3, 17))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    axes = {name: {0: torch.export.Dim("rows", min=1), 1: torch.export.Dim("length", min=2)} for name in names}
    program = torch.onnx.export(
        module, tuple(example[name] for name in names), input_names=names, dynamic_shapes=axes, dynamo=True
    )
    assert program is not None
    program.save(str(file), external_data=False)
    onnx.checker.check_model(str(file))


def has_vnni() -> bool:
    """Return True if the processor adds int8 products without saturating in between."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "avx512_vnni" in flags or "avx_vnni" in flags


def main(folder: str, to: str) -> None:
    out = Path(to)
    (out / "fastembed").mkdir(parents=True, exist_ok=True)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    export(Pooled(model), out / "onnx-float32.onnx", ["input_ids", "attention_mask"])
    export(Hidden(model), out / "fastembed" / "model.onnx", ["input_ids", "attention_mask", "token_type_ids"])
    for name in FOR_FASTEMBED:
        shutil.copy(Path(folder) / name, out / "fastembed" / name)
    quant_pre_process(str(out / "onnx-float32.onnx"), str(out / "prepared.onnx"), skip_symbolic_shape=True)
    # Without VNNI two products of 8 bits can overflow 16 on the way: 7 bits are ONNX Runtime's advice there.
    quantize_dynamic(
        out / "prepared.onnx",
        out / "onnx-int8.onnx",
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not has_vnni(),
    )
    (out / "onnx.done").touch()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
