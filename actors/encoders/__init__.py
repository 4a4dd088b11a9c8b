"""Encoders: turn texts or token ids into unit vectors, with one interface for every model family.

Used by the encode actors, the search command and notebooks. Importing this package, `describe` and `ModelSpec` must
not import torch, because readers, writers and the driver import them. `load_encoder` imports torch when it is called.

To add a model family, change these three places and no other:

1. `families/`, two modules:
   - `<family>_layout.py`, torch-free: `layout(config, tensors)` recognises a checkpoint by its config and tensor names
     and returns a `FamilyFacts` (required tensors, tasks, prompts, limits), or None for another family's checkpoint.
   - `<family>.py`, which imports torch: `build(checkpoint, compute) -> Family`. A `Family` turns a `PackedBatch` into
     hidden states `[tokens, hidden]`; the tasks of the rows are in `batch.tasks`. The encoder does the pooling, slicing
     and normalising, because late chunking needs the token states.
2. `families/detect.py`: one line in `FAMILIES` that names both.
3. `tests/checkpoints/`: a function that writes a tiny random checkpoint in the exact published layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.encoders.spec import ModelSpec, describe

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

__all__ = ["ModelSpec", "describe", "load_encoder"]


def load_encoder(
    model: str | ModelSpec,
    *,
    device: str = "auto",
    threads: int | None = None,
    revision: str | None = None,
    task: str | None = None,
    dim: int | None = None,
    max_tokens: int | None = None,
    dtype: str = "auto",
    prompt: str | None = None,
    allow_untrained_dim: bool = False,
) -> Encoder:
    """Loads a model for encoding.

    Args:
        model: A hub id, a local directory, or a spec made by `describe`. With a spec, `revision` and the arguments
            after it are ignored.
        device: "auto" uses a GPU if there is one; or "cpu", "cuda", "cuda:1".
        threads: Torch threads on a CPU; None keeps the process's setting. One thread per process is fastest when
            there is one process per core.
        revision: Branch, tag or commit of a hub id. This and all arguments below are as for `describe`.
        task: One of the model's tasks; None selects its default.
        dim: Width of shortened vectors; None keeps the full width.
        max_tokens: Limit per text; None uses the repository's.
        dtype: "auto", "bfloat16", "float32" or "int8".
        prompt: Text put before each text instead of the published one.
        allow_untrained_dim: Shorten vectors of a model that was not trained for it.

    Raises:
        ConfigError: A setting is invalid.
        ModelError: The checkpoint is missing, incomplete or not supported.
    """
    from actors.encoders.encoder import Encoder

    if isinstance(model, ModelSpec):
        spec = model
    else:
        spec = describe(
            model,
            revision=revision,
            task=task,
            dim=dim,
            max_tokens=max_tokens,
            dtype=dtype,
            prompt=prompt,
            allow_untrained_dim=allow_untrained_dim,
        )
    return Encoder(spec, device=device, threads=threads)
