"""sentence-transformers on the same weights and ids: padded batches from the longest to the shortest, as its `encode` makes
them, in its default batch of 32 texts and in larger ones.

Without remote code it has BERT, v3 by transformers' native class, and of v4 the language model, which is a plain Qwen2; none
of them with adapters.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.gpu.shapes import POOLING, Shape
from benchmarks.gpu.timing import Ints, random_ids, timed
from tests.checkpoints.files import write_json, write_modules

DEFAULT_BATCH = 32  # of `SentenceTransformer.encode`
BATCHES = (DEFAULT_BATCH, 128, 512)
FLASH = "flash_attention_2"


def attentions(device: torch.device) -> tuple[str, ...]:
    """The ways to attend that it has here: torch's own, and flash-attention's where that is installed."""
    return ("sdpa", FLASH) if device.type == "cuda" and find_spec("flash_attn") else ("sdpa",)


def folder_of(shape: Shape, checkpoint: Path, out: Path) -> Path | None:
    """The checkpoint as sentence-transformers reads it, the same file of weights; None where it has no such model."""
    if shape.family == "bert":
        return checkpoint
    if shape.family not in ("v3", "v4"):
        return None
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    if shape.family == "v4":
        text = config["text_config"]
        del text["rope_scaling"]  # three equal positions are one
        config = {**text, "architectures": ["Qwen2Model"], "model_type": "qwen2"}
    out.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (out / name).hardlink_to(checkpoint / name)
    write_json(out / "config.json", config)
    write_modules(out, {**POOLING, "word_embedding_dimension": shape.hidden}, normalize=False)
    return out


def sentence_transformers(
    folder: Path, by_mix: dict[str, Ints], vocabulary: int, *, attention: str, device: torch.device, repeats: int
) -> list[dict[int, list[float]]]:
    """Tokens a second by texts a batch, for each mix."""
    from sentence_transformers import SentenceTransformer

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    settings = {"dtype": dtype, "attn_implementation": attention}
    model = SentenceTransformer(str(folder), device=str(device), model_kwargs=settings)
    found = []
    for lengths in by_mix.values():
        ids = random_ids(lengths, vocabulary)
        encode = partial(_encode, model, ids, lengths, device)
        rates: dict[int, list[float]] = {}
        for rows in BATCHES:
            # The largest is too large for the largest model on a small GPU.
            with suppress(torch.OutOfMemoryError):
                rates[rows] = timed(partial(encode, rows), int(lengths.sum()), repeats, device)
        found.append(rates)
    return found


def _encode(model: Any, ids: pa.ListArray, lengths: Ints, device: torch.device, rows: int) -> None:
    """All texts, `rows` at a time, vectors to the host."""
    order = np.argsort(-lengths, kind="stable")
    with torch.inference_mode():
        parts = []
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            tokens = np.zeros((len(batch), int(lengths[batch[0]])), np.int64)
            for place, row in enumerate(batch):
                tokens[place, : lengths[row]] = ids[int(row)].values.to_numpy()
            features = {
                "input_ids": torch.from_numpy(tokens),
                "attention_mask": torch.from_numpy(tokens > 0).long(),
            }
            sent = {name: tensor.to(device, non_blocking=True) for name, tensor in features.items()}
            parts.append(model(sent)["sentence_embedding"])
        torch.cat(parts).float().cpu()
