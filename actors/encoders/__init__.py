"""Encoders: turn texts or token ids into unit vectors, with one interface for every model family.

Used by the encode actors, the search command and notebooks. Importing this package, `describe` and `ModelSpec` must
not import torch, because readers, writers and the driver import them. `load_encoder` imports torch when it is called.

To add a model family, change these three places and no other:

1. `families/`, two modules:
   - `<family>_layout.py`, torch-free: `layout(config, tensors)` recognises a checkpoint by its config and tensor names
     and returns a `FamilyFacts` (required tensors, tasks, prompts, limits), or None for another family's checkpoint.
   - `<family>.py`, which imports torch: `build(checkpoint, compute) -> Family`. A `Family` turns a `PackedBatch` into
     hidden states `[tokens, hidden]`; the tasks of the rows are in `batch.tasks`. The encoder does the pooling, slicing
     and normalising, because late chunking needs the token states. A model with many vectors a row is a
     `build.LateFamily` too, and its facts name their width. A model whose input is not token ids is a `build.RowFamily`
     instead, and its facts name modality and outputs.
2. `families/detect.py`: one line in `FAMILIES` that names both.
3. `tests/checkpoints/`: a function that writes a tiny random checkpoint in the exact published layout.

To train it too, add its torch module to `twins/`, and a line to `TWINS` there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.encoders.settings import EncoderSettings
from actors.encoders.spec import ModelSpec, describe

if TYPE_CHECKING:
    from pathlib import Path

    from actors.encoders.encoder import Encoder

__all__ = ["EncoderSettings", "ModelSpec", "describe", "load_encoder"]


def load_encoder(
    model: str | Path | EncoderSettings | ModelSpec,
    *,
    device: str = "auto",
    threads: int | None = None,
    one_task: bool = False,
    **settings: Any,
) -> Encoder:
    """Loads a model for encoding.

    Args:
        model: A hub id, a local directory, settings, or a spec made by `describe`.
        device: "auto" uses a GPU if there is one; or "cpu", "cuda", "cuda:1".
        threads: Torch threads on a CPU; None keeps the process's setting. One thread per process is fastest when
            there is one process per core.
        one_task: No row will have another task than the encoder's own, so its adapter may be merged into the weights.
        settings: With a hub id or directory: the other attributes of `EncoderSettings`, such as `task` and `dim`.

    Raises:
        ConfigError: A setting is invalid.
        ModelError: The checkpoint is missing, incomplete or not supported.
    """
    from actors.encoders.encoder import Encoder

    if not isinstance(model, ModelSpec):
        model = describe(model, **settings)
    elif settings:
        raise TypeError(
            f"{', '.join(settings)}: the spec of {model.model!r} is complete; describe it with that setting."
        )
    return Encoder(model, device=device, threads=threads, one_task=one_task)
