"""A toy of late interaction: each token has a vector, and a text has the vectors of its tokens, and maybe their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.encoders.build import Checkpoint
from actors.encoders.compute.device import Compute
from actors.encoders.layout import Config, FamilyFacts, Tensors
from actors.schema import INPUT_IDS
from actors.vectors import Encoded, VectorColumn, dense
from tests.checkpoints.files import Random, letters, write_checkpoint

DIM = 8


def layout(config: Config, tensors: Tensors) -> FamilyFacts | None:
    """See `actors.encoders.families.detect.FAMILIES`."""
    if config.get("model_type") != "toy_late":
        return None
    kinds: Mapping[str, Any] = {"embedding": "dense", "embedding_multi": "multi"}
    return FamilyFacts(
        family="toy_late",
        hidden=DIM,
        max_tokens=64,
        needed={"words": tensors["words"].shape},
        outputs=tuple(VectorColumn(name, kinds[name], DIM) for name in config["outputs"]),
    )


@dataclass
class Late:
    """See `actors.encoders.build.RowFamily`."""

    words: npt.NDArray[np.float32]
    outputs: tuple[VectorColumn, ...]
    raises: int
    unfit: int

    def encode_rows(self, rows: pa.Table, tasks: Sequence[str | None] | None) -> Encoded:
        """Encode rows of token ids."""
        ids = rows.column(INPUT_IDS).combine_chunks()
        flat, ends = ids.flatten().to_numpy(), np.cumsum(np.diff(ids.offsets.to_numpy()))
        if (flat == self.raises).any():
            raise RuntimeError("the toy cannot encode this token")
        bad = np.searchsorted(ends, np.flatnonzero(flat == self.unfit), side="right")
        vectors, offsets = self.words[flat], pa.array(np.concatenate([[0], ends]).astype(np.int32))
        made: dict[str, pa.Array] = {
            "multi": pa.ListArray.from_arrays(offsets, dense(vectors).cast(pa.list_(pa.float32())))
        }
        sums = np.add.reduceat(vectors, offsets.to_numpy()[:-1]) if len(vectors) else vectors
        made["dense"] = dense(sums / np.linalg.norm(sums, axis=1, keepdims=True))
        return Encoded(tuple(made[output.kind] for output in self.outputs), {int(row): "a toy's reason" for row in bad})


def build(checkpoint: Checkpoint, compute: Compute) -> Late:
    """See `actors.encoders.build.Builder`."""
    return Late(
        checkpoint.weights.get("words").numpy(),
        checkpoint.facts.outputs,
        checkpoint.config["raises"],
        checkpoint.config["unfit"],
    )


def write_late(folder: Path, *outputs: str, seed: int = 0) -> Path:
    """Write a checkpoint with these outputs. The token of "q" cannot be encoded, and that of "x" has no usable vector."""
    tokenizer = letters()
    words = Random(seed).matrix(tokenizer.get_vocab_size(), DIM, scale=1.0)
    words /= words.norm(dim=1, keepdim=True)
    bad = {"raises": tokenizer.token_to_id("q"), "unfit": tokenizer.token_to_id("x")}
    config = {"model_type": "toy_late", "outputs": outputs, "num_hidden_layers": 1, **bad}
    return write_checkpoint(folder, config=config, tensors={"words": words}, tokenizer=tokenizer)
